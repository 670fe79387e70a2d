"""Attention over what is left: softmax(q k^T / sqrt(D) + log I) v, with the mask and without it, in one head of `tiny`.

log I is 0 for a kept token, which changes nothing, and -inf for a dropped one: its weight is exactly 0, and what it
had goes to the tokens that stay, in proportion.
Watch for: the dots on the right. A dropped token (··) is not merely small, it is not there: so a cache may forget it.
"""

import math

import numpy as np

from dcp_ref import load
from dcp_ref.attention import attention, merge_heads, split_heads
from dcp_ref.block import block_params
from dcp_ref.interaction import log_mask, scores
from dcp_ref.layers import embedding, layer_norm, linear

text = "A transformer is a deep learning model."
config, params, tokenizer = load("tiny")
ids = np.array(tokenizer.encode(text))  # [T]
T, H = ids.size, config.n_head

p = block_params(params, layer=0)
hidden, _ = embedding(ids, params["wte.weight"], params["wpe.weight"])  # [T, C]
x, _ = layer_norm(hidden, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon)  # [T, C]
qkv, _ = linear(x, p["attn.c_attn.weight"], p["attn.c_attn.bias"])  # [T, 3C]
q, k, v = (split_heads(part, H) for part in np.split(qkv, 3, axis=-1))  # [H, T, D] each
s, _ = scores(x, p["attn.q_int.weight"], p["attn.k_int.weight"], p["attn.int_bias"])  # [T, T]
log_i, _ = log_mask(s, math.inf)  # [T, T]: 0 or -inf, one mask for all heads
scale = config.attention_scale(layer=0)

keep_all, unit = np.zeros_like(log_i), np.broadcast_to(np.eye(T, dtype=q.dtype), (H, T, T))
y_full, y_pruned = (attention(q, k, v, log, scale)[0] for log in (keep_all, log_i))  # [H, T, D]
w_full, w_pruned = (attention(q, k, unit, log, scale)[0] for log in (keep_all, log_i))  # [H, T, T]: the weights
print(f"q, k, v {q.shape}, log I {log_i.shape} -> weights {w_pruned.shape}, y {y_pruned.shape}\n")

dropped = np.isneginf(log_i)  # [T, T]
lost = np.where(dropped, w_full, 0).sum(-1)  # [H, T]: attention that went to tokens which are now gone
head = int(lost.mean(-1).argmax())
print(f"Head {head}, which pruning changes most. Weights: blank, ░ from 4%, ▒ from 16%, ▓ from 36%, █ from 64%\n")
print(f"{'':14}{'all that came before':{2 * T}}    {'what is left (··: dropped)':{2 * T}}   live  was on dropped")
for i in range(T):
    left, right = "", ""
    for j in range(i + 1):
        left += 2 * " ░▒▓█"[int(4.999 * w_full[head, i, j] ** 0.5)]
        right += "··" if dropped[i, j] else 2 * " ░▒▓█"[int(4.999 * w_pruned[head, i, j] ** 0.5)]
    label = f"{i:4d} {tokenizer.decode([ids[i]]).strip()[:8]:8}"
    live = i + 1 - dropped[i].sum()
    print(f"{label}|{left:{2 * T}}|  |{right:{2 * T}}|{live:6d}{lost[head, i]:16.0%}")

by_hand = w_full * ~dropped
by_hand /= by_hand.sum(-1, keepdims=True)  # [H, T, T]
change = np.linalg.norm(merge_heads(y_pruned - y_full), axis=-1) / np.linalg.norm(merge_heads(y_full), axis=-1)  # [T]
print(f"\nWeights of the dropped: largest {w_pruned[:, dropped].max(initial=0):g}")
print(f"Every row adds up to 1: largest error {np.abs(w_pruned.sum(-1) - 1).max():.1e}")
difference = np.abs(by_hand - w_pruned).max()
print(f"Equal to the full weights with the dropped crossed out, rescaled: largest difference {difference:.1e}")
print("Change of y, all heads, token by token: " + " ".join(f"{c:.0%}" for c in change))
