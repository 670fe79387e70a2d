"""One training step, loss and all gradients, beside transformers' GPT2LMHeadModel. Ours prunes, theirs does not.

    python benchmarks/training.py [--rounds N]

Each runs in a process of its own with 2 threads; they take turns, and the table has medians. Memory is the peak of
three steps minus what the process held before them. Writes benchmarks/results/DATE-training.md and .json.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dcp_ref import Config, native
from dcp_ref.analysis.table import markdown
from dcp_ref.bench.timing import seconds
from dcp_ref.checkpoints import weights
from dcp_ref.training.parallel import Pool, keep_memory
from dcp_ref.training.run_files import State
from dcp_ref.training.step import batch_gradients

RESULTS = Path(__file__).parent / "results"
THREADS = 2
SMALL = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 256, "vocab_size": 4096, "int_n_embd": 16}
GPT2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 512, "vocab_size": 50257, "int_n_embd": 64}
SHAPES = {"4 layers of 128, batch 8 x 256": (SMALL, 8), "GPT-2 small, batch 1 x 512": (GPT2, 1)}
CASES = [(shape, alpha) for shape in SHAPES for alpha in (2.0, 5.0)]


def ours(shape, alpha):
    """A step of ours, one sequence at a time."""
    sizes, batch = SHAPES[shape]
    config = Config(**sizes, eos_token_id=0)
    params = weights.init_params(config, 0)
    state = State(0, config, params, m=params, v={})  # a step reads only the names in m
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, config.n_positions + 1))
    pool = Pool(THREADS)
    return lambda: batch_gradients(state, tokens[:, :-1], tokens[:, 1:], alpha, [0.1] * len(tokens), size=1, pool=pool)


def transformers(shape, alpha):
    """A step of theirs, the whole batch at once, without dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    sizes, batch = SHAPES[shape]
    sizes = {name: value for name, value in sizes.items() if name != "int_n_embd"}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0,
                                       attn_pdrop=0, loss_type="ForCausalLM")).train()
    ids = torch.randint(0, sizes["vocab_size"], (batch, sizes["n_positions"]))

    def step():
        model.zero_grad(set_to_none=True)
        model(ids, labels=ids).loss.backward()

    return step


CONTENDERS = {"dcp_ref": ours, "transformers": transformers}


def status(field):
    """A field of /proc/self/status, in MB."""
    return int(re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1e3


def serve(who, shape, alpha):
    """Print the MB of three steps; then, for each line on standard input, the seconds of one step."""
    step = CONTENDERS[who](shape, alpha)
    if who == "dcp_ref":
        keep_memory()  # as `dcp-ref train` does
    before = status("VmRSS")
    for _ in range(3):
        step()
    print(status("VmHWM") - before, flush=True)
    for _ in sys.stdin:
        print(seconds(step), flush=True)


def measure(shape, alpha, rounds):
    """The seconds of each round and the MB, for both contenders."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
    servers = {who: subprocess.Popen(
        [sys.executable, __file__, "--serve", who, shape, str(alpha)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
        env=environment | {"OMP_NUM_THREADS": str(THREADS)}) for who in CONTENDERS}
    memory = {who: float(server.stdout.readline()) for who, server in servers.items()}
    calls = {who: [] for who in servers}
    for _ in tqdm(range(rounds), desc=f"{shape}, alpha {alpha:g}"):
        for who, server in servers.items():
            server.stdin.write("\n")
            server.stdin.flush()
            calls[who].append(float(server.stdout.readline()))
    for server in servers.values():
        server.stdin.close()
        server.wait()
    return {"shape": shape, "alpha": alpha, "calls": calls, "memory": memory}


def table(cases):
    rows = []
    for case in cases:
        (a, b), memory = ((float(np.median(case["calls"][who])) for who in CONTENDERS), case["memory"])
        rows.append((case["shape"], f"{case['alpha']:g}", f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}",
                     f"{memory['dcp_ref']:.0f}", f"{memory['transformers']:.0f}"))
    header = ("step", "alpha", "dcp_ref, s", "transformers, s", "ratio", "dcp_ref, MB", "transformers, MB")
    return markdown(header, rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    p.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)  # who, shape, alpha
    args = p.parse_args()
    if args.serve:
        who, shape, alpha = args.serve
        serve(who, shape, float(alpha))
        return
    cases = [measure(shape, alpha, args.rounds) for shape, alpha in CASES]
    date = datetime.date.today().isoformat()
    versions = ", ".join(f"{package} {version(package)}" for package in ("numpy", "torch", "transformers"))
    heading = (f"One training step, float32, {THREADS} threads of {platform.machine()} ({native.simd_level()}), "
               f"medians of {args.rounds}, {date}; {versions}. Ours prunes, int_n_embd {SMALL['int_n_embd']} and "
               f"{GPT2['int_n_embd']}; theirs does not. MB: what a step takes beyond the model.")
    lines = [heading, "", table(cases)]
    print("\n".join(lines))
    for suffix, text in ((".md", "\n".join(lines)), (".json", json.dumps({"date": date, "cases": cases}))):
        (RESULTS / f"{date}-training{suffix}").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
