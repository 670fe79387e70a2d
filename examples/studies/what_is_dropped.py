"""What a model drops: how long tokens of each kind live in each layer's cache, and what drops them.

    python examples/studies/what_is_dropped.py --text valid.txt --windows 64

A token's lifetime is the number of rows that held it, its own included, before one drops it or the window ends.
`dcp-ref trace --file valid.txt --summary` prints the same for all windows of a text.
Watch for: the kinds whose tokens live longest; the layers that look back furthest; whether age alone decides.
"""

import argparse

import numpy as np

from dcp_ref import load, trace
from dcp_ref.analysis.texts import read_tokens
from dcp_ref.tracing import summary

PASSAGE = """The old man looked at the sea for a long time, and said nothing. His daughter had gone to the village with
the boat, and the wind was rising. "She will be back before dark," said Mr. Harris at last. "She knows these waters
better than you or I." But the old man shook his head; he had seen that sky before, and he did not like it."""

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", default="tiny")
p.add_argument("--text", nargs="+", help="text files (default: a passage of three sentences)")
p.add_argument("--windows", type=int, default=16, help="windows of n_positions tokens, evenly spread")
args = p.parse_args()

model = load(args.model)
tokens = read_tokens(model, args.text) if args.text else np.array(model.tokenizer.encode(PASSAGE))
if len(tokens) < 3:
    p.error(f"--text {' '.join(args.text)}: {len(tokens)} tokens are too few, give a longer text")
T = min(model.config.n_positions, len(tokens))
starts = np.unique(np.linspace(0, len(tokens) - T, args.windows).astype(int))
traces = [trace(model, tokens[start : start + T]) for start in starts]
print(f"{args.model}: {summary(traces)}")

print("\nstill there after so many tokens, of those whose window goes on so long:")
L = model.config.n_layer
print(f"{'tokens later':45}" + "".join(f"{f'layer {layer}':>10}" for layer in range(L)))
for age in [n for n in (1, 4, 16, 64, 256) if n < T - 1]:
    held = np.mean([one.lifetime[:, : T - age] > age for one in traces], axis=(0, 2))  # [L]
    print(f"{age:<45d}" + "".join(f"{share:10.1%}" for share in held))
