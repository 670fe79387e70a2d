"""Writes a model as one flat file for decode.c:  python examples/decode_in_c/save.py tiny /tmp/tiny.bin

Ten unsigned 64-bit integers, then float32 numbers, both in this machine's byte order:

    n_layer, n_positions, n_head, head_dim, r, n_inner, vocab_size, activation (0 gelu_new, 1 gelu, 2 relu),
        propagate_in_depth, int_delay
    epsilon
    wte [C, V], head [C, V], wpe [n_positions, C], ln_f weight and bias [C]
    and for each layer
        scale, beta
        ln_1 weight and bias [C], ln_2 weight and bias [C]
        weight [in, out] and bias [out] of attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj
        q_int and k_int side by side [C, 2 r]

A plain GPT-2 has r = 0: it keeps everything. Watch for: `head` and `wte` are transposed, as all matrices are [in, out].
"""

import sys

import numpy as np

from dcp_ref import load
from dcp_ref.config import ACTIVATIONS

name, path = sys.argv[1:]
config, params, _ = load(name)
learned = config.int_n_embd is not None
wte = params["wte.weight"]
tensors = [np.array(config.layer_norm_epsilon), wte.T, params.get("lm_head.weight", wte).T, params["wpe.weight"],
           params["ln_f.weight"], params["ln_f.bias"]]
for layer in range(config.n_layer):
    p = {name.removeprefix(f"h.{layer}."): x for name, x in params.items() if name.startswith(f"h.{layer}.")}
    tensors += [np.array(config.attention_scale(layer)), p["attn.int_bias"] if learned else np.zeros(1)]
    tensors += [p[f"{norm}.{part}"] for norm in ("ln_1", "ln_2") for part in ("weight", "bias")]
    for matrix in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        tensors += [p[f"{matrix}.weight"], p[f"{matrix}.bias"]]
    if learned:
        tensors.append(np.concatenate([p["attn.q_int.weight"], p["attn.k_int.weight"]], axis=1))

sizes = [config.n_layer, config.n_positions, config.n_head, config.head_dim, config.int_n_embd or 0, config.inner_dim,
         config.vocab_size, ACTIVATIONS.index(config.activation_function),
         config.propagate_in_depth, min(config.int_delay, config.n_positions)]
with open(path, "wb") as file:
    file.write(np.array(sizes, np.uint64).tobytes())
    for x in tensors:
        file.write(np.ascontiguousarray(x, np.float32).tobytes())
