"""The rows with rivals: who is timed beside whom, and what ours should reach."""

from typing import NamedTuple

from rival_ctranslate2 import CTranslate2
from rival_llama import LlamaCpp
from rival_openvino import PAGE, OpenVINO
from rivals import Transformers

OURS = {"no scores": None, "0% dropped": 0.0, "80% dropped": 0.8}  # the share that the learned rule drops; None: dense
NOTHING, BOTH = ("no scores", "0% dropped"), ("no scores", "0% dropped", "80% dropped")
CONTEXT = 900  # where the shares are reached: about midway through the timed steps after a prompt of 880 tokens
MORE = 3  # times as many rounds where calls are short, or the result is close to what is needed
KEEP = round((1 - OURS["80% dropped"]) * CONTEXT / PAGE) * PAGE  # OpenVINO's eviction: nearest to what ours keeps


class Need(NamedTuple):
    """What one of OURS should reach: `times` the speed of the fastest rival of its storage type.

    `times` may differ by instruction set; where it has none, the speeds are only shown. `beside` narrows the rivals to
    those whose names begin with it. A rival that evicts tokens counts beside "80% dropped" only.
    """

    ours: str
    times: float | dict[str, float] | None
    beside: str = ""


class Rows(NamedTuple):
    """What lines of the table compare. `same` are rivals that store numbers as we do; `other` ones are only shown."""

    title: str
    batch: int
    prompt: int
    steps: int  # decoded in each timed call; 0: the prompt itself is timed
    ours: tuple[str, ...]
    same: tuple
    other: tuple = ()
    needs: tuple[Need, ...] = ()
    weights: str = "float32"
    kv: str = "float32"
    repeat: int = 1  # multiplies the number of rounds
    busy: bool = False  # beside a process that never waits


FASTEST = ((LlamaCpp, {}), (OpenVINO, {}))
PLAIN = ((Transformers, {}), (CTranslate2, {}), *FASTEST)
EVICTING = ((OpenVINO, {"keep": KEEP}),)
LLAMA_F16_KV = ((LlamaCpp, {"kv": "f16"}),)  # its default
LLAMA_FLASH = ((LlamaCpp, {"flash": True}),)  # so is flash attention
INT8 = ((LlamaCpp, {"weight_type": "q8_0", "kv": "f16"}), (OpenVINO, {"weight_type": "int8", "kv": "f16"}),
        (CTranslate2, {"weight_type": "int8"}))
INT8_F32_KV = ((OpenVINO, {"weight_type": "int8"}),)


def batched(batch, steps, repeat, rivals, nothing, most, llama):
    """A batch after ~900 tokens. `nothing`, `most`: needed beside OpenVINO; `llama`: at 80%, beside llama.cpp."""
    return Rows(f"batch {batch}, ~900 tokens", batch, 880, steps, BOTH, rivals + EVICTING + LLAMA_FLASH, LLAMA_F16_KV,
                (Need("0% dropped", nothing, "OpenVINO"), Need("80% dropped", most, "OpenVINO"),
                 Need("80% dropped", llama, "llama.cpp")), repeat=repeat)


def int8(prompt):
    return Rows(f"batch 1, int8 weights, after {prompt} tokens", 1, prompt, 8, NOTHING, INT8, INT8_F32_KV,
                (Need("no scores", 1.2),), "int8", "float16", MORE)


def busy(batch, prompt, steps, ours):
    return Rows(f"batch {batch}, after {prompt} tokens, beside a busy process", batch, prompt, steps, ours,
                ((LlamaCpp, {}),), needs=tuple(Need(name, None) for name in ours[1:]), repeat=MORE, busy=True)


VERSUS = {
    "batch1-64": Rows("batch 1, after 64 tokens", 1, 64, 8, NOTHING, PLAIN, LLAMA_F16_KV,
                      (Need("0% dropped", 1.1),), repeat=MORE),
    "batch1-880": Rows("batch 1, after 880 tokens", 1, 880, 8, BOTH, PLAIN + EVICTING, LLAMA_F16_KV,
                       (Need("0% dropped", 1.1), Need("80% dropped", 1.3))),
    "batch1-float16": Rows("batch 1, float16 weights, after 64 tokens", 1, 64, 8, NOTHING,
                           ((LlamaCpp, {"weight_type": "f16", "kv": "f16"}),), (), (Need("no scores", 1.0),),
                           "float16", "float16", MORE),
    "batch1-int8": int8(64),
    "batch1-int8-880": int8(880),
    "batch8": batched(8, 6, MORE, PLAIN, 1.3, 1.6, 3),
    # Others need minutes to read 32 prompts, and are last already at batch 8.
    "batch32": batched(32, 3, 1, FASTEST, 1.5, 2, {"avx2": 4, "avx512f": 3.5}),
    "prompt": Rows("prompt of 880 tokens", 1, 880, 0, BOTH, PLAIN, LLAMA_F16_KV,
                   (Need("0% dropped", {"avx2": 1.05, "avx512f": 1.2}),
                    Need("80% dropped", {"avx2": 1.2, "avx512f": 1.4})), repeat=MORE),
    "busy1": busy(1, 64, 8, NOTHING),
    "busy8": busy(8, 880, 6, BOTH),
}
