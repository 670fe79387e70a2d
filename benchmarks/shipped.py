"""A pruned model decodes beside the same model with its rule off, and beside a dense model, at the end of a context.

    python benchmarks/shipped.py --text valid.txt [--model tiny] [--dense DIR] [--batch 32]

Windows of the text are fed up to their last STEPS tokens. Those are then decoded, one of each window a step. The models
take turns; the table has medians. With --text, writes benchmarks/results/DATE-shipped.md; without it, the README is the
text, which does not measure a model, so nothing is written.
"""

import argparse
import datetime
import platform
from pathlib import Path

import numpy as np

from dcp_ref import Engine, load, native, policies
from dcp_ref.analysis.table import markdown
from dcp_ref.analysis.texts import read_tokens
from dcp_ref.bench.timing import interleaved
from dcp_ref.training.data import windows

STEPS, ROUNDS = 15, 9


class Decoding:
    """Windows of a text [B, T], fed up to their last STEPS tokens; `run` decodes the rest."""

    def __init__(self, model, ids, policy):
        self.ids, self.engine = ids, Engine(model, policy=policy)
        self.parents = [self.engine.new_sequence() for _ in ids]
        self.engine.feed(self.parents, ids[:, :-STEPS].tolist())

    def run(self):
        """Decode in forks, so that the next run starts from the same place."""
        children = [self.engine.fork(parent) for parent in self.parents]
        for tokens in self.ids[:, -STEPS:].T:
            self.engine.feed(children, tokens[:, None].tolist())
        self.bytes = self.engine.stats().bytes_logical // 2  # parents hold as much
        for child in children:
            self.engine.release(child)


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--text")
p.add_argument("--model", default="tiny")
p.add_argument("--dense")
p.add_argument("--batch", type=int, default=32)
args = p.parse_args()
model = load(args.model)
text = args.text or str(Path(__file__).parents[1] / "README.md")
tokens, T = read_tokens(model, [text]), model.config.n_positions
if len(tokens) <= T:
    p.error(f"--text {text}: {len(tokens)} tokens are too few for a context of {T}, give a longer text")
ids, _ = windows(tokens, np.linspace(0, len(tokens) - T - 1, args.batch).astype(int), T)
name = Path(args.model).name
contenders = {f"{name}, its rule": Decoding(model, ids, None),
              f"{name}, nothing dropped": Decoding(model, ids, policies.dense)}
if args.dense:
    contenders[f"{Path(args.dense).name}, dense"] = Decoding(load(args.dense), ids, policies.dense)
timings = interleaved({name: d.run for name, d in contenders.items()}, ROUNDS, pause=0.05, title="decoding")
lines = [f"{Path(text).name}, batch {args.batch}, positions {T - STEPS} to {T - 1}, float32, {native.threads()} "
         f"threads of {platform.machine()} ({native.simd_level()}), medians of {ROUNDS}, {datetime.date.today()}", ""]
lines.append(markdown(("model", "tokens/s", "cache, MB"),
                      [(name, f"{args.batch * STEPS / timings[name].median:.0f}", f"{d.bytes / 1e6:.1f}")
                       for name, d in contenders.items()]))
print("\n".join(lines))
if args.text:
    out = Path(__file__).parent / "results" / f"{datetime.date.today()}-shipped.md"
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
