"""Decoding with a pruned cache is the dense forward: the same live tokens in every layer, the same logits.

The engine reads a prompt and then generates, one token at a time, and forgets what each layer drops. Afterwards the
dense forward sees the whole text at once, scores every pair and masks. Neither knows of the other.
Watch for: each layer's picture, taken from the cache, is a mask as in 02. Every layer keeps a context of its own.
"""

import numpy as np

from dcp_ref import Engine, forward, load, native

prompt, new_tokens = "The old man looked at the sea", 12
model = load("tiny")
config, params, tokenizer = model
L = config.n_layer

# Cached: feed the prompt's tokens one by one, then those that the model finds most likely.
engine = Engine(model, backend="native" if native.available() else "numpy")
sequence = engine.new_sequence()
ids = tokenizer.encode(prompt)  # grows to [T]
n_prompt, T = len(ids), len(ids) + new_tokens
live, cached_rows = [], []
for i in range(T):
    if i >= n_prompt:
        ids.append(int(cached_rows[-1].argmax()))
    [logits] = engine.feed([sequence], [ids[i : i + 1]])  # [V], fresh
    cached_rows.append(logits)
    live.append([engine.live_positions(sequence, layer) for layer in range(L)])  # [L] arrays of positions
cached = np.stack(cached_rows)  # [T, V]
stats = engine.stats()

# Dense: all tokens at once.
dense = forward(params, np.array([ids]), config)
logits, interaction = dense.logits[0], dense.interaction[:, 0]  # [T, V], [L, T, T]

print(f"{engine.backend} cache beside the dense forward: logits {logits.shape}, I {interaction.shape}\n")
print(f"{'':13}{'live in the cache (█), layer by layer':{L * (T + 2)}}logits differ by")
equal, differences = True, np.abs(cached - logits).max(axis=-1)  # [T]
for i in range(T):
    pictures = ""
    for layer in range(L):
        same = np.array_equal(live[i][layer], np.flatnonzero(interaction[layer, i, : i + 1]))
        equal = equal and same
        pictures += "".join("█" if j in live[i][layer] else "·" if j < i else " " for j in range(T)) + "  "
    label = tokenizer.decode([ids[i]]).strip()[:7] + " *" * (i >= n_prompt)
    print(f"{i:3d} {label:<9}{pictures}{differences[i]:.1e}")

print(f"\nText (* generated): {tokenizer.decode(ids)!r}")
print(f"Live sets equal, all tokens and layers: {equal}")
print(f"Logits, of size up to {np.abs(logits).max():.1f}: largest difference {differences.max():.1e}")
print(f"Most likely next token equal: {(cached.argmax(-1) == logits.argmax(-1)).all()}")
print(f"Held at the end: {stats.live_tokens} of {L * T} tokens, {stats.slots} slots, {stats.bytes_owned} bytes")
