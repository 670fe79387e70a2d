"""What is dropped: interaction scores, and the cumulative mask they make, for one sentence under the model `tiny`.

When token i arrives it scores every earlier token j. A score that is not above 0 drops j: for i, and for all after it.
Watch for: columns. Token j enters on the diagonal (■), stays (█) while all its scores are positive, and is dropped (×)
by the first that is not. Below the × it is gone (·), even where a later score is positive again.
"""

import math

import numpy as np

from dcp_ref import forward, load
from dcp_ref.block import block_params
from dcp_ref.interaction import log_mask, scores
from dcp_ref.layers import embedding, layer_norm

ALPHA = math.inf  # or 1 to 8: the gate then is soft, as in training
text = "A transformer is a deep learning model."
config, params, tokenizer = load("tiny")
ids = np.array(tokenizer.encode(text))  # [T]
T, L = ids.size, config.n_layer
labels = [f"{i:4d} {tokenizer.decode([token]).strip()[:8]:8}" for i, token in enumerate(ids)]

# The first layer by hand: its input is the embedding, normalised. The same x makes q, k and v.
p = block_params(params, layer=0)
hidden, _ = embedding(ids, params["wte.weight"], params["wpe.weight"])  # [T, C]
x, _ = layer_norm(hidden, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon)  # [T, C]
w_q, w_k, beta = p["attn.q_int.weight"], p["attn.k_int.weight"], p["attn.int_bias"]  # [C, r], [C, r], [1]
s, _ = scores(x, w_q, w_k, beta)  # [T, T]
log_i, _ = log_mask(s, ALPHA)  # [T, T]: cumulative sum down the columns of log keep
mask = np.exp(log_i)  # [T, T]: I, here 0 or 1

print(f'"{text}"\nx {x.shape}, W_q_int {w_q.shape}, beta {beta[0]:.2f} -> s {s.shape}, I {mask.shape}\n')
print("Layer 0, scores s[i, j] = q_int[i] . k_int[j] / sqrt(r) + beta. Row: who arrives. Column: who is judged.\n")
print(" " * 13 + "".join(f"{j:7d}" for j in range(T)))
for i in range(T):
    print(labels[i] + "".join(f"{s[i, j]:+7.2f}" for j in range(i)))

# All layers: `forward` does the same in each of them.
interaction = forward(params, ids[None], config, ALPHA).interaction[:, 0]  # [L, T, T]
kept_before = np.concatenate([np.ones((L, 1, T)), interaction[:, :-1]], axis=1)  # [L, T, T]: I one token earlier
drops_now = (kept_before == 1) & (interaction == 0)  # [L, T, T]
print("\nI[i, j], every layer by itself (■ arrives, █ kept, × dropped now, · gone):\n")
print(" " * 13 + "   ".join(f"{f'layer {layer}':<{T}}" for layer in range(L)))
for i in range(T):
    rows = []
    for layer in range(L):
        pairs = zip(interaction[layer, i, :i], drops_now[layer, i, :i], strict=True)
        rows.append("".join("█" if kept else "×" if now else "·" for kept, now in pairs) + "■" + " " * (T - 1 - i))
    print(labels[i] + "   ".join(rows))
earlier = np.tri(T, k=-1, dtype=bool)  # [T, T]: the pairs j < i
print(f"{'kept':13}" + "   ".join(f"{interaction[layer][earlier].mean():<{T}.0%}" for layer in range(L)))

too_late = int(((s > 0) & (mask == 0) & earlier).sum())
print(f"\nLayer 0 by hand and by forward(): largest difference {np.abs(mask - interaction[0]).max():g}")
print(f"Pairs of layer 0 whose score is positive, but too late: {too_late}")
