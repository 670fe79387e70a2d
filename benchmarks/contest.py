"""Our decoder against one rival at a time: both decode the same number of sequences, interleaved."""

import contextlib
import functools
import gc
import subprocess
import sys

import numpy as np
from bandwidth import read_bandwidth
from rivals import THREADS, opened
from rows import CONTEXT, OURS

from dcp_ref import Config, Engine, policies
from dcp_ref.bench.decoding import SMALL, Decoding, calibrated, random_model, random_prompt
from dcp_ref.bench.parts import KV_BYTES, kv_bytes
from dcp_ref.bench.timing import interleaved
from dcp_ref.checkpoints import weights
from dcp_ref.native import kernels as native_kernels

LOOP = """import os
parent = os.getppid()
while os.getppid() == parent:  # it ends with the benchmark, however that ends
    sum(range(100_000))"""
TINY = Config(vocab_size=1000, n_embd=128, n_layer=2, n_head=2, int_n_embd=16, eos_token_id=None)


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


@contextlib.contextmanager
def busy_process():
    """Beside it runs a Python loop that never waits, on any processor and with this process's priority."""
    process = subprocess.Popen([sys.executable, "-c", LOOP])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def versus(setting, rows):
    """{"pairs": {rival: {contender: seconds of its calls}}, ...} for `Rows`; ours start anew beside each rival."""
    result = {"batch": rows.batch, "prompt": rows.prompt, "steps": rows.steps}
    result |= {"pairs": {}, "same": [], "ours": {}, "errors": {}}
    result["weight_bytes"] = setting.weight_bytes() * KV_BYTES[rows.weights] / KV_BYTES["float32"]
    for judged, chosen in ((True, rows.same), (False, rows.other)):
        for kind, options in chosen:
            room = rows.prompt + rows.steps * (rows.repeat * setting.rounds + 1) + 2
            found = opened(kind, setting.plain, setting.config.n_head, rows.batch, room, **options)
            if found is None:
                continue
            rival, error = found
            with contextlib.closing(rival):
                name = rival.name
                result["pairs"][name] = against(setting, rows, rival, result["ours"])
            result["errors"][name] = error
            result["same"] += [name] * judged
            del found, rival
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
    with busy_process() if rows.busy else contextlib.nullcontext():
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
