"""The hidden states of a traced text, computed once more with the recorded masks: what scores are made of.

No rule is applied here: which token saw which is taken from the record. Between tokens and scores there is the residual
stream x, a plain sum of parts: the token's embedding, its position, and what the attention and the mlp of each earlier
layer added. `projected` splits interaction queries and keys into what each part gave.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcp_ref.attention import attention, merge_heads, split_heads
from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime import kernels
from dcp_ref.runtime.decoder import Packed
from dcp_ref.runtime.precision import stored

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace


class Interaction(NamedTuple):
    """Interaction queries and keys: s[i, j] = q[l, i] . k[l, j] / sqrt(r) + beta[l] in layer l."""

    q: np.ndarray  # float32 [L, T, r]
    k: np.ndarray  # float32 [L, T, r]
    beta: np.ndarray  # float32 [L]


class Replay(NamedTuple):
    """`parts` [2 + 2L, T, C]: embedding, position, and each layer's attention and mlp; the first 2 + 2l add up to the
    input of layer l. `q`, `k` [L, T, r]: interaction queries and keys. `beta` [L]. All are float32."""

    parts: np.ndarray
    q: np.ndarray
    k: np.ndarray
    beta: np.ndarray


def replay(trace: "Trace", model: Model) -> Replay:
    """The forward of the traced tokens under the recorded masks, in float32, with all numbers as they were stored."""
    config, T = model.config, len(trace.ids)
    w = Packed(model, kernels, trace.weights, trace.policy.learned)
    parts = [w.wte.w[:, trace.ids].T, w.wpe[:T]]
    x = parts[0] + parts[1]
    i = np.arange(T)[:, None]
    queries_keys = []
    for layer, p in enumerate(w.layers):
        n = kernels.layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon)
        if trace.policy.learned:
            queries_keys.append(kernels.linear(n, p["attn.interaction"]))
        q, k, v = np.split(kernels.linear(n, p["attn.c_attn"]), 3, axis=1)
        k, v = stored(k, trace.kv, config.n_head), stored(v, trace.kv, config.n_head)
        log_i = np.where(i < trace.left[layer], np.float32(0), np.float32(-np.inf))
        q, k, v = (split_heads(part, config.n_head) for part in (q, k, v))
        y, _ = attention(q, k, v, log_i, config.attention_scale(layer))
        parts.append(kernels.linear(merge_heads(y), p["attn.c_proj"]))
        x = x + parts[-1]
        n = kernels.layer_norm(x, p["ln_2.weight"], p["ln_2.bias"], config.layer_norm_epsilon)
        hidden = kernels.activation(kernels.linear(n, p["mlp.c_fc"]), config.activation_function)
        parts.append(kernels.linear(hidden, p["mlp.c_proj"]))
        x = x + parts[-1]
    r = trace.policy.rank(config) if trace.policy.learned else 0
    both = np.stack(queries_keys) if r else np.zeros((config.n_layer, T, 0), np.float32)
    beta = [p["attn.int_bias"][0] if r else 0 for p in w.layers]
    return Replay(np.stack(parts), both[..., :r], both[..., r:], np.array(beta, np.float32))


def projected(found: Replay, model: Model, layer: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # [n] -> [3 + 2 layer, n, r] x 2
    """What each part of the residual stream gave to the interaction queries and keys of these tokens in a layer.

    ln_1 is (x - mean) rstd g + b. With each token's rstd taken as it is, this is linear in x, and x is a sum; so the
    queries and keys are sums too, of one term a part, and of one for b, which is the last. In float64.
    """
    h, config = f"h.{layer}.", model.config
    g, b, w_q, w_k = (np.asarray(model.params[h + name], np.float64)
                      for name in ("ln_1.weight", "ln_1.bias", "attn.q_int.weight", "attn.k_int.weight"))
    parts = found.parts[: 2 + 2 * layer, tokens].astype(np.float64)  # [P, n, C]
    parts -= parts.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((parts.sum(0) ** 2).mean(-1, keepdims=True) + config.layer_norm_epsilon)  # [n, 1]
    normed = np.concatenate([parts * rstd * g, np.broadcast_to(b, (1, *parts.shape[1:]))])
    return normed @ w_q, normed @ w_k
