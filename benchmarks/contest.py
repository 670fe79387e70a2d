"""Our decoder against one rival at a time: both decode the same number of sequences, interleaved."""

import contextlib
import functools
import gc
from typing import NamedTuple

import numpy as np
from bandwidth import read_bandwidth
from rival_ctranslate2 import CTranslate2
from rival_llama import LlamaCpp
from rivals import THREADS, Transformers, opened

from dcp_ref import Config, Engine, policies
from dcp_ref.bench.decoding import SMALL, Decoding, calibrated, random_model, random_prompt
from dcp_ref.bench.parts import KV_BYTES, kv_bytes
from dcp_ref.bench.timing import interleaved
from dcp_ref.checkpoints import weights
from dcp_ref.native import kernels as native_kernels

TINY = Config(vocab_size=1000, n_embd=128, n_layer=2, n_head=2, int_n_embd=16, eos_token_id=None)
OURS = {"no scores": None, "0% dropped": 0.0, "80% dropped": 0.8}  # the share that the learned rule drops; None: dense
MORE = 3  # times as many rounds where calls are short, or the result is close to the requirement
CONTEXT = 900  # where the shares are reached: about midway through the timed steps after a prompt of 880 tokens


class Rows(NamedTuple):
    """What a row of the table compares. `same` are rivals that store numbers as we do; `other` ones are only shown."""

    batch: int
    prompt: int
    steps: int  # decoded in each timed call; 0: the prompt itself is timed
    ours: tuple[str, ...]
    same: tuple
    other: tuple = ()
    weights: str = "float32"
    kv: str = "float32"
    repeat: int = 1  # multiplies the number of rounds


class Setting:
    """The model that all contenders share, and the number of rounds."""

    def __init__(self, tiny, rounds):
        self.model, self.rounds = random_model(TINY if tiny else SMALL), rounds
        self.config = self.model.config
        self.plain = {name: x for name, x in self.model.params.items() if not weights.INTERACTION.fullmatch(name)}

    @functools.cache  # noqa: B019 - one setting lives as long as the process
    def calibrated(self, share, context):
        return calibrated(self.model, share, context)

    def model_of(self, name, context=CONTEXT):
        """(model, policy) of one of OURS, which reaches its share dropped after `context` tokens."""
        if OURS[name] is None:
            return self.model, policies.dense
        return self.calibrated(OURS[name], context), policies.learned

    def decoding(self, name, batch, prompt, **options):
        model, policy = self.model_of(name)
        return Decoding(model, batch, prompt, policy=policy, threads=THREADS, **options)

    def weight_bytes(self):
        """The bytes of weights that a step of a plain GPT-2 reads: its matrices, including the head."""
        return sum(x.nbytes for name, x in self.plain.items() if x.ndim == 2 and name != "wpe.weight")


def kernel_reader():
    """A call of our linear kernel with 1 row on more than 1 GB of weights, and the bytes that it reads."""
    w = np.ones((768, 50176), np.float32)
    matrices = [native_kernels.pack(w) for _ in range(7)]
    x = np.ones((1, 768), np.float32)

    def kernel():
        for matrix in matrices:
            native_kernels.linear(x, matrix, threads=THREADS)

    return kernel, sum(matrix.panels.nbytes for matrix in matrices)


def bandwidth(rounds=5):
    """Bytes a second of NumPy's reductions and of our linear kernel with 1 row, each over 1 GB, on all threads."""
    return read_bandwidth(THREADS, rounds, kernel=kernel_reader())


def between_bandwidths(measure, *arguments):
    """The result of measure(...), with the bandwidth just before and just after it."""
    before = bandwidth()
    result = measure(*arguments)
    gc.collect()
    return result | {"bandwidth": {"before": before, "after": bandwidth()}}


def versus(setting, rows):
    """{"pairs": {rival: {contender: seconds of its calls}}, ...} for `Rows`; ours start anew beside each rival."""
    result = {"batch": rows.batch, "prompt": rows.prompt, "steps": rows.steps, "pairs": {}, "same": [], "ours": {}}
    result["weight_bytes"] = setting.weight_bytes() * KV_BYTES[rows.weights] / KV_BYTES["float32"]
    for judged, chosen in ((True, rows.same), (False, rows.other)):
        for kind, options in chosen:
            room = rows.prompt + rows.steps * (rows.repeat * setting.rounds + 1) + 2
            rival = opened(kind, setting.plain, setting.config.n_head, rows.batch, room, **options)
            if rival is None:
                continue
            with contextlib.closing(rival):
                name = rival.name
                result["pairs"][name] = against(setting, rows, rival, result["ours"])
            result["same"] += [name] * judged
            gc.collect()
    return result


def against(setting, rows, rival, facts):
    """Seconds of each call of ours and of the rival's; `facts` receives what each of ours held (`held`)."""
    prompts = [random_prompt(setting.config, rows.prompt, seed).tolist() for seed in range(rows.batch)]
    if rows.steps == 0:
        contenders = prompt_contenders(setting, rows) | {rival.name: lambda: rival.start(prompts)}
    else:
        options = {"weights": rows.weights, "kv": rows.kv}
        ours = {name: setting.decoding(name, rows.batch, rows.prompt, **options) for name in rows.ours}
        rival.start(prompts)
        before = {name: decoding.engine.stats().live_tokens for name, decoding in ours.items()}
        contenders = {name: decoding.steps(rows.steps) for name, decoding in ours.items()}
        contenders[rival.name] = decoding_of(rival, rows.steps)
    timings = interleaved(contenders, rows.repeat * setting.rounds, title=rival.name)
    for name in rows.ours if rows.steps else ():
        facts[name] = held(ours[name], before[name], rows.kv)
    return {name: timing.calls for name, timing in timings.items()}


def decoding_of(rival, steps):
    def run():
        for _ in range(steps):
            rival.step()

    return run


def held(decoding, live_before, kv="float32"):
    """The keys and values, in bytes, that a step midway through the timed calls reads; the share dropped at the end."""
    config, engine = decoding.engine.config, decoding.engine
    live = (live_before + engine.stats().live_tokens) / 2 / config.n_layer
    return {"kv_bytes": kv_bytes(config, live, kv), "share_dropped": decoding.share_dropped}


def prompt_contenders(setting, rows):
    """Calls that feed the prompt to a new sequence, one for each of ours."""

    def feeding(engine):
        def run():
            sequence = engine.new_sequence()
            engine.feed([sequence], [prompt])
            engine.release(sequence)

        return run

    prompt, contenders = random_prompt(setting.config, rows.prompt).tolist(), {}
    for name in rows.ours:
        model, policy = setting.model_of(name, rows.prompt)
        contenders[name] = feeding(Engine(model, policy=policy, threads=THREADS))
    return contenders


FLOAT32 = ((Transformers, {}), (LlamaCpp, {}), (CTranslate2, {}))
LLAMA_F16_KV = ((LlamaCpp, {"kv": "f16"}),)  # its default
LLAMA_OTHERS = (*LLAMA_F16_KV, (LlamaCpp, {"flash": True}))  # so is flash attention
NOTHING, BOTH = ("no scores", "0% dropped"), ("no scores", "0% dropped", "80% dropped")
VERSUS = {
    "batch1-64": Rows(1, 64, 8, NOTHING, FLOAT32, LLAMA_F16_KV, repeat=MORE),
    "batch1-880": Rows(1, 880, 8, BOTH, FLOAT32, LLAMA_F16_KV),
    "batch1-float16": Rows(1, 64, 8, NOTHING, ((LlamaCpp, {"weight_type": "f16", "kv": "f16"}),), (),
                           "float16", "float16", MORE),
    "batch1-int8": Rows(1, 64, 8, NOTHING, ((LlamaCpp, {"weight_type": "q8_0", "kv": "f16"}),),
                        ((CTranslate2, {"weight_type": "int8"}),), "int8", "float16", MORE),
    "batch8": Rows(8, 880, 6, BOTH, FLOAT32, LLAMA_OTHERS, repeat=MORE),
    "batch32": Rows(32, 880, 3, BOTH, FLOAT32, LLAMA_OTHERS),
    "prompt": Rows(1, 880, 0, BOTH, FLOAT32, LLAMA_F16_KV, repeat=MORE),
}
