"""GPT-2 with dynamic context pruning, top to bottom: a block, the model, the loss and its gradients.

`params` is a flat dict of arrays under Hugging Face's names: nothing else is hidden anywhere. A block's own
parameters are read from a view of it, `p["attn.c_attn.weight"]` for `h.3.attn.c_attn.weight`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dcp_ref.attention import attention, attention_backward, merge_heads, split_heads
from dcp_ref.config import Config
from dcp_ref.interaction import (
    check_threshold,
    log_mask,
    log_mask_backward,
    scores,
    scores_backward,
    sparsity,
    sparsity_backward,
)
from dcp_ref.layers import (
    activation,
    activation_backward,
    cross_entropy,
    cross_entropy_backward,
    distillation,
    distillation_backward,
    embedding,
    embedding_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    project_backward,
)

Params = dict[str, np.ndarray]


class Forward(NamedTuple):
    """What `forward` returns: `logits` [B, T, V], and `interaction` [L, B, T, T], each layer's own I."""

    logits: np.ndarray
    interaction: np.ndarray


class Kernels(NamedTuple):
    """The parts that most of a training step is spent on, besides matrix products: NumPy's here, or C's."""

    attention: Callable = attention
    attention_backward: Callable = attention_backward
    log_mask: Callable = log_mask
    log_mask_backward: Callable = log_mask_backward
    activation: Callable = activation
    cross_entropy: Callable = cross_entropy


NUMPY = Kernels()


class Loss(NamedTuple):
    """`total` = `cross_entropy` (nats a token) + gamma * `sparsity` (R, the mean of I over layers and pairs j < i)
    + distill * `distillation` (KL(teacher || student), nats a token; 0 without a teacher)."""

    total: float
    cross_entropy: float
    sparsity: float
    distillation: float


def forward(
    params: Params, ids, config: Config, alpha: float = math.inf, policy=None, threshold: float = 0.0
) -> Forward:  # [B, T]
    """The dense forward: every pair is scored, and what is dropped is masked. alpha = inf is inference.

    `interaction` is 1 on and above the diagonal, and all ones for a model without interaction weights and policy.
    `policy` is None for the paper, or one of runtime/policies.py: all but `learned` leave interaction weights and alpha
    aside, and drop by a rule of their own.
    `threshold` is how much context a trained model keeps: a token stays while s > threshold. The gate is
    alpha_sigmoid(s - threshold).
    Raises ValueError when ids are not integers [B, T] in [0, V), T exceeds n_positions, threshold is NaN, or the policy
    or the threshold needs interaction weights and there are none; TypeError when it is no policy.
    """
    if policy is not None:
        if not hasattr(policy, "log_mask"):
            raise TypeError(f"policy must be None or a Policy of dcp_ref.runtime.policies, not {policy!r}")
        policy.check(config)
        config = config if policy.learned else replace(config, int_n_embd=None)
    threshold = check_threshold(threshold, config.int_n_embd is not None)
    logits, log_i, _ = _gpt2(params, _checked(ids, config), config, alpha, policy, threshold=threshold)
    return Forward(logits, np.exp(log_i))


def loss_and_grads(
    params: Params, ids, targets, config: Config, alpha: float, gamma: float, kernels: Kernels = NUMPY,
    teacher_logits=None, distill: float = 0.0,
) -> tuple[Loss, Params]:  # [B, T], [B, T], [B, T, V]
    """The training loss and its gradient, under the same names as `params`. Targets of -1 are ignored.

    `kernels` may be those of dcp_ref.training.native, for float32 and a finite alpha: the same to rounding, and faster.
    Raises ValueError as `forward` does, and when `targets` or `teacher_logits` do not fit `ids`.
    """
    ids = _checked(ids, config)
    targets = _checked(targets, config, "targets", lowest=-1)
    if targets.shape != ids.shape:
        raise ValueError(f"targets {list(targets.shape)} must have the shape of ids {list(ids.shape)}")
    logits, log_i, saved = _gpt2(params, ids, config, alpha, kernels=kernels)
    ce, saved_ce = kernels.cross_entropy(logits, targets)
    r, saved_r = sparsity(log_i)
    dlogits, kl = cross_entropy_backward(1.0, saved_ce), 0.0
    if teacher_logits is not None:
        kl, saved_kl = distillation(logits, teacher_logits, targets)
        dlogits += distillation_backward(float(distill), saved_kl)
    dlog_i = sparsity_backward(float(gamma), saved_r)  # a NumPy float64 would widen float32 gradients
    loss = Loss(float(ce + gamma * r + distill * kl), float(ce), float(r), float(kl))
    return loss, _gpt2_backward(dlogits, dlog_i, saved, config, kernels)


def _gpt2(
    params, ids, config, alpha, policy=None, kernels=NUMPY, threshold=0.0
):  # [B, T] -> [B, T, V], [L, B, T, T]
    x, saved_embedding = embedding(ids, params["wte.weight"], params["wpe.weight"])
    own, saved_blocks = [], []
    log_i = 0.0  # the mask handed down from earlier layers
    for layer in range(config.n_layer):
        p = block_params(params, layer)
        x, log_own, log_i, saved = _block(x, log_i, p, config, layer, alpha, policy, kernels, threshold)
        own.append(log_own)
        saved_blocks.append(saved)
    x, saved_ln = layer_norm(x, params["ln_f.weight"], params["ln_f.bias"], config.layer_norm_epsilon)
    head = params["wte.weight"] if config.tie_word_embeddings else params["lm_head.weight"]
    return x @ head.T, np.stack(own), (saved_embedding, saved_blocks, saved_ln, x, head)


def _gpt2_backward(dlogits, dlog_own, saved, config, kernels):  # [B, T, V], [L, B, T, T] -> grads
    saved_embedding, saved_blocks, saved_ln, x, head = saved
    grads = {}
    dhead = project_backward(x, dlogits)  # logits = x @ head.T
    dx, grads["ln_f.weight"], grads["ln_f.bias"] = layer_norm_backward(dlogits @ head, saved_ln)
    dlog_i = 0.0  # what later layers want of the mask that was handed to them
    for layer in reversed(range(config.n_layer)):
        dx, dlog_i, block_grads = _block_backward(dx, dlog_own[layer], dlog_i, saved_blocks[layer], config, kernels)
        grads |= {f"h.{layer}.{name}": grad for name, grad in block_grads.items()}
    if not config.tie_word_embeddings:
        grads["lm_head.weight"], dhead = dhead, None
    grads["wte.weight"], grads["wpe.weight"] = embedding_backward(dx, saved_embedding, dhead)
    return grads


def _block(x, log_handed, p, config, layer, alpha, policy, kernels=NUMPY, threshold=0.0):
    # [B, T, C], [B, T, T] -> [B, T, C], [B, T, T] x 2
    """One layer: x + attention(ln_1(x)), then + mlp(ln_2(x)). Also its own log I, and the one to hand on."""
    n, saved_ln_1 = layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon)
    log_own, saved_mask = _own_log_mask(n, p, config, alpha, kernels, threshold)
    log_i = log_handed + log_own if config.propagate_in_depth else log_own
    qkv, saved_qkv = linear(n, p["attn.c_attn.weight"], p["attn.c_attn.bias"])
    q, k, v = (split_heads(part, config.n_head) for part in np.split(qkv, 3, axis=-1))
    if policy is not None:  # another rule than the paper's, which may look at who attended to whom
        log_rule = policy.log_mask(q, k, log_i, config.attention_scale(layer))
        log_own, log_i = log_own + log_rule, log_i + log_rule
    y, saved_attention = kernels.attention(q, k, v, log_i, config.attention_scale(layer))
    y, saved_proj = linear(merge_heads(y), p["attn.c_proj.weight"], p["attn.c_proj.bias"])
    x = x + y
    y, saved_mlp = mlp(x, p, config, kernels)
    return x + y, log_own, log_i, (saved_ln_1, saved_mask, saved_qkv, saved_attention, saved_proj, saved_mlp)


def _block_backward(dx, dlog_own, dlog_later, saved, config, kernels):
    # [B, T, C], [B, T, T] x 2 -> [B, T, C], [B, T, T], grads
    saved_ln_1, saved_mask, saved_qkv, saved_attention, saved_proj, saved_mlp = saved
    grads = {}
    dx = dx + mlp_backward(dx, saved_mlp, grads)  # x + mlp(x)
    dy, grads["attn.c_proj.weight"], grads["attn.c_proj.bias"] = linear_backward(dx, saved_proj)
    *dqkv, dlog_i = kernels.attention_backward(split_heads(dy, config.n_head), saved_attention)
    dqkv = np.concatenate([merge_heads(part) for part in dqkv], axis=-1)
    dn, grads["attn.c_attn.weight"], grads["attn.c_attn.bias"] = linear_backward(dqkv, saved_qkv)
    dlog_handed = dlog_i + dlog_later if config.propagate_in_depth else 0.0  # log_i = log_handed + log_own
    if saved_mask:
        dn += _own_log_mask_backward(dlog_own + dlog_i + dlog_later, saved_mask, grads, kernels)
    dx_attn, grads["ln_1.weight"], grads["ln_1.bias"] = layer_norm_backward(dn, saved_ln_1)
    return dx + dx_attn, dlog_handed, grads


def _own_log_mask(n, p, config, alpha, kernels, threshold):  # [B, T, C] -> [B, T, T]
    if config.int_n_embd is None:  # a plain GPT-2 keeps everything
        return np.zeros((*n.shape[:-1], n.shape[-2]), n.dtype), None
    s, saved_scores = scores(n, p["attn.q_int.weight"], p["attn.k_int.weight"], p["attn.int_bias"])
    with np.errstate(over="ignore", invalid="ignore"):  # a threshold may be infinite, or so in float32
        s -= threshold  # s - t > 0 where s > t and nowhere else, rounding or not
    log_own, saved_gate = kernels.log_mask(s, alpha, config.int_delay)
    return log_own, (saved_scores, saved_gate)


def _own_log_mask_backward(dlog_own, saved, grads, kernels):  # [B, T, T] -> [B, T, C]
    saved_scores, saved_gate = saved
    ds = kernels.log_mask_backward(dlog_own, saved_gate)
    names = ("attn.q_int.weight", "attn.k_int.weight", "attn.int_bias")
    dn, *grads_of_scores = scores_backward(ds, saved_scores)
    grads.update(zip(names, grads_of_scores, strict=True))
    return dn


def mlp(x, p, config, kernels=NUMPY):  # [B, T, C] -> [B, T, C]
    n, saved_ln = layer_norm(x, p["ln_2.weight"], p["ln_2.bias"], config.layer_norm_epsilon)
    hidden, saved_fc = linear(n, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])
    hidden, saved_act = kernels.activation(hidden, config.activation_function)
    y, saved_proj = linear(hidden, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])
    return y, (saved_ln, saved_fc, saved_act, saved_proj)


def mlp_backward(dy, saved, grads):  # [B, T, C] -> [B, T, C]
    saved_ln, saved_fc, saved_act, saved_proj = saved
    dhidden, grads["mlp.c_proj.weight"], grads["mlp.c_proj.bias"] = linear_backward(dy, saved_proj)
    dhidden = activation_backward(dhidden, saved_act)
    dn, grads["mlp.c_fc.weight"], grads["mlp.c_fc.bias"] = linear_backward(dhidden, saved_fc)
    dx, grads["ln_2.weight"], grads["ln_2.bias"] = layer_norm_backward(dn, saved_ln)
    return dx


def block_params(params: Params, layer: int) -> Params:
    """The parameters of one layer, under their names within it."""
    prefix = f"h.{layer}."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _checked(ids, config, what="ids", lowest=0):  # -> integers [B, T]
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers [B, T], not {ids.dtype} {list(ids.shape)}")
    if ids.shape[1] > config.n_positions:
        raise ValueError(f"{what}: {ids.shape[1]} tokens are more than n_positions ({config.n_positions})")
    if ids.min() < lowest or ids.max() >= config.vocab_size:
        bad = int(ids[(ids < lowest) | (ids >= config.vocab_size)].flat[0])
        raise ValueError(f"{what}: {bad} is not in [{lowest}, {config.vocab_size})")
    return ids
