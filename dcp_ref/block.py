"""One layer of GPT-2 with dynamic context pruning: interaction mask, attention, mlp; forward and backward.

`p` holds the layer's own parameters: `p["attn.c_attn.weight"]` is `h.3.attn.c_attn.weight` of the model.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dcp_ref.attention import attention, attention_backward, merge_heads, split_heads
from dcp_ref.interaction import log_mask, log_mask_backward, scores, scores_backward
from dcp_ref.layers import (
    activation,
    activation_backward,
    cross_entropy,
    cross_entropy_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
)

Params = dict[str, np.ndarray]


class Kernels(NamedTuple):
    """The parts that most of a model's time is spent on, besides matrix products: NumPy's here, or C's."""

    attention: Callable = attention
    attention_backward: Callable = attention_backward
    log_mask: Callable = log_mask
    log_mask_backward: Callable = log_mask_backward
    activation: Callable = activation
    cross_entropy: Callable = cross_entropy
    cross_entropy_backward: Callable = cross_entropy_backward
    check: Callable = lambda params: None  # raises ValueError for parameters that they cannot compute with


NUMPY = Kernels()


def block(x, log_handed, p, config, layer, alpha, policy, threshold=0.0, kernels=NUMPY, kept=False):
    # [B, T, C], [B, T, T], bool [B, T, T] -> [B, T, C], [B, T, T] x 2
    """One layer: x + attention(ln_1(x)), then + mlp(ln_2(x)). Also its own log I, and the one to hand on.

    Row i keeps token j, whatever the rules say, where kept[i, j].
    """
    n, saved_ln_1 = layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon)
    log_own, saved_mask = _own_log_mask(n, p, config, alpha, policy, threshold, kernels, kept)
    log_i = log_handed + log_own if config.propagate_in_depth else log_own
    qkv, saved_qkv = linear(n, p["attn.c_attn.weight"], p["attn.c_attn.bias"])
    q, k, v = (split_heads(part, config.n_head) for part in np.split(qkv, 3, axis=-1))
    if policy.window is not None or policy.by_rows:  # another rule than the paper's, or more than it
        asks = policy.window is None and policy.rank(config)  # a budget, or a rule of one's own
        s = _scores(n, p)[0] if asks else None
        log_rule = policy.log_mask(q, k, log_i, config.attention_scale(layer), kept, s, config.int_delay)
        log_own, log_i = log_own + log_rule, log_i + log_rule
    y, saved_attention = kernels.attention(q, k, v, log_i, config.attention_scale(layer))
    y, saved_proj = linear(merge_heads(y), p["attn.c_proj.weight"], p["attn.c_proj.bias"])
    x = x + y
    y, saved_mlp = mlp(x, p, config, kernels)
    return x + y, log_own, log_i, (saved_ln_1, saved_mask, saved_qkv, saved_attention, saved_proj, saved_mlp)


def block_backward(dx, dlog_own, dlog_later, saved, config, kernels):
    # [B, T, C], [B, T, T] x 2 -> [B, T, C], [B, T, T], grads
    saved_ln_1, saved_mask, saved_qkv, saved_attention, saved_proj, saved_mlp = saved
    grads = {}
    dx = dx + mlp_backward(dx, saved_mlp, grads)  # x + mlp(x)
    dy, grads["attn.c_proj.weight"], grads["attn.c_proj.bias"] = linear_backward(dx, saved_proj)  # linear(y)
    *dqkv, dlog_i = kernels.attention_backward(split_heads(dy, config.n_head), saved_attention)  # attention(q, k, v)
    dqkv = np.concatenate([merge_heads(part) for part in dqkv], axis=-1)  # q, k, v = split(qkv)
    dn, grads["attn.c_attn.weight"], grads["attn.c_attn.bias"] = linear_backward(dqkv, saved_qkv)  # linear(n)
    dlog_handed = dlog_i + dlog_later if config.propagate_in_depth else 0.0  # log_i = log_handed + log_own
    if saved_mask:
        dn += _own_log_mask_backward(dlog_own + dlog_i + dlog_later, saved_mask, grads, kernels)  # _own_log_mask(n)
    dx_attn, grads["ln_1.weight"], grads["ln_1.bias"] = layer_norm_backward(dn, saved_ln_1)  # layer_norm(x)
    return dx + dx_attn, dlog_handed, grads


def _scores(n, p):  # [B, T, C] -> [B, T, T]
    return scores(n, p["attn.q_int.weight"], p["attn.k_int.weight"], p["attn.int_bias"])


def _own_log_mask(n, p, config, alpha, policy, threshold, kernels, kept=False):  # [B, T, C] -> [B, T, T]
    if not policy.learned:  # no score drops anything
        return np.zeros((*n.shape[:-1], n.shape[-2]), n.dtype), None
    s, saved_scores = _scores(n, p)
    with np.errstate(over="ignore", invalid="ignore"):  # a threshold may be infinite, or so in float32
        s -= threshold  # s - t > 0 where s > t and nowhere else, rounding or not
    if kept is not False:
        s[np.broadcast_to(kept, s.shape)] = np.inf  # an infinite score keeps
    log_own, saved_gate = kernels.log_mask(s, alpha, config.int_delay)
    return log_own, (saved_scores, saved_gate)


def _own_log_mask_backward(dlog_own, saved, grads, kernels):  # [B, T, T] -> [B, T, C]
    saved_scores, saved_gate = saved
    ds = kernels.log_mask_backward(dlog_own, saved_gate)  # log_own = log_mask(s - threshold)
    names = ("attn.q_int.weight", "attn.k_int.weight", "attn.int_bias")
    dn, *grads_of_scores = scores_backward(ds, saved_scores)  # s = scores(n, ...)
    grads.update(zip(names, grads_of_scores, strict=True))
    return dn


def mlp(x, p, config, kernels=NUMPY):  # [B, T, C] -> [B, T, C]
    """linear(activation(linear(ln_2(x))))."""
    n, saved_ln = layer_norm(x, p["ln_2.weight"], p["ln_2.bias"], config.layer_norm_epsilon)
    hidden, saved_fc = linear(n, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])
    hidden, saved_act = kernels.activation(hidden, config.activation_function)
    y, saved_proj = linear(hidden, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])
    return y, (saved_ln, saved_fc, saved_act, saved_proj)


def mlp_backward(dy, saved, grads):  # [B, T, C] -> [B, T, C]
    saved_ln, saved_fc, saved_act, saved_proj = saved
    dhidden, grads["mlp.c_proj.weight"], grads["mlp.c_proj.bias"] = linear_backward(dy, saved_proj)  # linear(hidden)
    dhidden = activation_backward(dhidden, saved_act)  # activation(hidden)
    dn, grads["mlp.c_fc.weight"], grads["mlp.c_fc.bias"] = linear_backward(dhidden, saved_fc)  # linear(n)
    dx, grads["ln_2.weight"], grads["ln_2.bias"] = layer_norm_backward(dn, saved_ln)  # layer_norm(x)
    return dx


def block_params(params: Params, layer: int) -> Params:
    """The parameters of one layer, under their names within it."""
    prefix = f"h.{layer}."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
