"""Who dropped whom, and why: the record of what the cache drops, and one of its scores taken apart.

A trace feeds a text to the engine, which says what each layer drops when. A score is a plain sum: over the r dimensions
of the interaction queries and keys, and over the parts of the hidden states that these were made from.
Watch for: a full stop drops most of its sentence; every sum is the score; what one token would have been worth.
"""

import numpy as np

import dcp_ref

TEXT = "The old man looked at the sea. He had seen that sky before, and he did not like it."
model = dcp_ref.load("tiny")
trace = dcp_ref.trace(model, TEXT)
T = len(trace.ids)
print(trace, "\n")

# Which tokens drop most: all layers together.
drops = trace.drops  # arrays [D]: layer, position, dropped_by, score, margin, reason
dropped_by_token = [int((drops.dropped_by == i).sum()) for i in range(T)]
for i in sorted(range(T), key=lambda i: -dropped_by_token[i])[:3]:
    print(f"token {i:2d} {trace.texts[i]!r:8} drops {dropped_by_token[i]:2d} of {len(drops.layer)}")

# Why: the drop that was decided most clearly, of those that more text follows.
n = min(np.flatnonzero(drops.dropped_by < T - 1), key=lambda n: drops.margin[n])
layer, j, i = int(drops.layer[n]), int(drops.position[n]), int(drops.dropped_by[n])
why = trace.why(layer, i, j)
print(f"\n{why}\n")
sums = why.terms.sum(), why.query_parts.sum(), why.key_parts.sum()
print(f"Three sums, and the score: largest difference {max(abs(s + why.beta - why.score) for s in sums):.1e}\n")

# What if: every token after it, had it been kept; and had nothing been dropped at all.
print(trace.counterfactual(layer, i, j), "\n")
print(trace.counterfactual())
