"""What a model drops: how long tokens of each kind live in each layer's cache.

    python examples/studies/what_is_dropped.py --text valid.txt --windows 64

A token's life is the number of later tokens that could still attend to it, before one drops it or the window ends.
Watch for: the kinds whose tokens live longest; the layers that look back furthest; whether age alone decides.
"""

import argparse
import re
from collections import Counter

import numpy as np

from dcp_ref import forward, load
from dcp_ref.analysis.texts import read_tokens
from dcp_ref.training.data import windows

PASSAGE = """The old man looked at the sea for a long time, and said nothing. His daughter had gone to the village with
the boat, and the wind was rising. "She will be back before dark," said Mr. Harris at last. "She knows these waters
better than you or I." But the old man shook his head; he had seen that sky before, and he did not like it."""
FUNCTION_WORDS = re.compile(
    "a|about|after|all|an?d?|any|are|as|at|be|been|before|but|by|can|could|did|do|for|from|had|has|have|he|her|him|his|"
    "how|i|if|in|into|is|it|its|may|me|might|more|my|no|nor|not|now|of|on|one|or|our|out|shall|she|should|so|some|such|"
    "than|that|the|their|them|then|there|these|they|this|to|too|up|upon|us|very|was|we|were|what|when|which|who|whom|"
    "will|with|would|you|your", re.IGNORECASE)

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", default="tiny")
p.add_argument("--text", nargs="+", help="text files (default: a passage of three sentences)")
p.add_argument("--windows", type=int, default=16, help="windows of n_positions tokens, evenly spread")
args = p.parse_args()

config, params, tokenizer = model = load(args.model)
tokens = read_tokens(model, args.text) if args.text else np.array(tokenizer.encode(PASSAGE))
if len(tokens) < 3:
    p.error(f"--text {' '.join(args.text)}: {len(tokens)} tokens are too few, give a longer text")
T = min(config.n_positions, len(tokens) - 1)
starts = np.unique(np.linspace(0, len(tokens) - T - 1, args.windows).astype(int))
ids, _ = windows(tokens, starts, T)  # [B, T]
mask = np.concatenate([forward(params, row[None], config).interaction for row in ids], axis=1) > 0  # [L, B, T, T]
earlier = np.tri(T, k=-1, dtype=bool)  # [T, T]: the pairs j < i
life = (mask & earlier).sum(-2)  # [L, B, T]: of token j, down its column
L, span = config.n_layer, T - 1 - np.arange(T)  # the longest life that a window allows


def kind(token, before):
    """What a reader would call it."""
    text = tokenizer.decode([token])
    if not text.strip() or token == tokenizer.eos_id:
        return "space or line end"
    if re.fullmatch(r"\W+", text):
        return "punctuation"
    if not text.startswith(" ") and before is not None and re.search(r"\w$", tokenizer.decode([before])):
        return "rest of a word"
    word = text.strip()
    return "function word" if FUNCTION_WORDS.fullmatch(word) else "capitalised" if word[0].isupper() else "other word"


kinds = np.array([[kind(row[j], row[j - 1] if j else None) for j in range(T)] for row in ids])  # [B, T]
kept = (mask & earlier).mean((1, 2, 3)) / earlier.mean()  # [L]
print(f"{args.model}: {len(ids)} windows of {T} tokens; kept: {kept.mean():.1%}")
print("by layer: " + "  ".join(f"{share:.1%}" for share in kept))
print(f"\n{'':45}mean life in\n{'kind':18}{'of tokens':>10}{'of what is kept':>17}"
      + "".join(f"{f'layer {layer}':>10}" for layer in range(L)))
for name, count in Counter(kinds.ravel().tolist()).most_common():
    of = kinds == name
    lives = "".join(f"{life[layer][of].mean():10.1f}" for layer in range(L))
    print(f"{name:18}{count / kinds.size:10.1%}{life[:, of].sum() / life.sum():17.1%}{lives}")

print("\nstill there after so many tokens, of those whose window goes on so long:")
print(f"{'tokens later':45}" + "".join(f"{f'layer {layer}':>10}" for layer in range(L)))
for age in [n for n in (1, 4, 16, 64, 256) if n < T - 1]:
    old_enough = np.broadcast_to(span >= age, kinds.shape)
    print(f"{age:<45d}" + "".join(f"{(life[layer][old_enough] >= age).mean():10.1%}" for layer in range(L)))
