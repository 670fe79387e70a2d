"""GPT-2 with dynamic context pruning: the model, the loss and its gradients.

`params` is a flat dict of arrays under Hugging Face's names: nothing else is hidden anywhere.
"""

import math
from typing import NamedTuple

import numpy as np

from dcp_ref.block import NUMPY, Kernels, Params, block, block_backward, block_params
from dcp_ref.config import Config, check_threshold
from dcp_ref.interaction import sparsity, sparsity_backward
from dcp_ref.layers import (
    distillation,
    distillation_backward,
    embedding,
    embedding_backward,
    layer_norm,
    layer_norm_backward,
    project_backward,
)
from dcp_ref.policies import Policy, for_model


class Forward(NamedTuple):
    """What `forward` returns: `logits` [B, T, V], and `interaction` [L, B, T, T], each layer's own I."""

    logits: np.ndarray
    interaction: np.ndarray


class Loss(NamedTuple):
    """`total` = `cross_entropy` (nats a token) + gamma * `sparsity` (R, the mean of I over layers and pairs j < i)
    + distill * `distillation` (KL(teacher || student), nats a token; 0 without a teacher)."""

    total: float
    cross_entropy: float
    sparsity: float
    distillation: float


def forward(
    params: Params, ids, config: Config, alpha: float = math.inf, policy: Policy | None = None, threshold: float = 0.0,
    kernels: Kernels = NUMPY, kept=None, pinned=None,
) -> Forward:  # [B, T], bool that broadcasts to [L, B, T, T], bool that broadcasts to [B, T]
    """The dense forward: every pair is scored, and what is dropped is masked. alpha = inf is inference.

    `interaction` is 1 on and above the diagonal, and all ones for a model without interaction weights and policy.
    `policy` (policies.py) decides what is dropped: None is the learned scores, if the model has them. Other policies
    leave interaction weights and alpha aside.
    `threshold` is how much context a trained model keeps: a token stays while s > threshold. The gate is
    alpha_sigmoid(s - threshold).
    `kernels` may be those of dcp_ref.native.training, for float32: the same to rounding, and faster.
    `kept`: where kept[l, b, i, j], row i of layer l does not drop token j, whatever the rules say: keep[i, j] = 1.
    Earlier rows may have dropped it, and later rows judge it anew.
    `pinned`: token j is never dropped where pinned[b, j]: keep[i, j] = 1 for all i > j, in every layer.
    Raises ValueError when ids are not integers [B, T] in [0, V), T exceeds n_positions, threshold is NaN, the policy
    or the threshold needs interaction weights and there are none, kept or pinned do not fit, or the kernels do not
    take the parameters' type; TypeError when it is no policy.
    """
    policy, ids = for_model(config, policy), _checked(ids, config)
    threshold = check_threshold(threshold, policy.learned)
    kernels.check(params)
    B, T = ids.shape
    kept = None if kept is None else _checked_bools("kept", kept, (config.n_layer, B, T, T))
    if pinned is not None:
        column = _checked_bools("pinned", pinned, (B, T))[:, None]  # [B, 1, T]
        kept = np.broadcast_to(column if kept is None else column | kept, (config.n_layer, B, T, T))
    logits, log_i, _ = _gpt2(params, ids, config, alpha, policy, threshold, kernels, kept)
    return Forward(logits, np.exp(log_i))


def loss_and_grads(
    params: Params, ids, targets, config: Config, alpha: float, gamma: float, kernels: Kernels = NUMPY,
    teacher_logits=None, distill: float = 0.0, threshold: float = 0.0,
) -> tuple[Loss, Params]:  # [B, T], [B, T], [B, T, V]
    """The training loss and its gradient, under the same names as `params`. Targets of -1 are ignored.

    `kernels` and `threshold` are `forward`'s. Raises ValueError as `forward` does, and when `targets` or
    `teacher_logits` do not fit `ids`.
    """
    ids = _checked(ids, config)
    targets = _checked(targets, config, "targets", lowest=-1)
    if targets.shape != ids.shape:
        raise ValueError(f"targets {list(targets.shape)} must have the shape of ids {list(ids.shape)}")
    policy = for_model(config, None)
    threshold = check_threshold(threshold, policy.learned)
    kernels.check(params)
    logits, log_i, saved = _gpt2(params, ids, config, alpha, policy, threshold, kernels)
    ce, saved_ce = kernels.cross_entropy(logits, targets)
    r, saved_r = sparsity(log_i)
    dlogits, kl = kernels.cross_entropy_backward(1.0, saved_ce), 0.0
    if teacher_logits is not None:
        kl, saved_kl = distillation(logits, teacher_logits, targets)
        dlogits += distillation_backward(float(distill), saved_kl)
    dlog_i = sparsity_backward(float(gamma), saved_r)  # a NumPy float64 would widen float32 gradients
    loss = Loss(float(ce + gamma * r + distill * kl), float(ce), float(r), float(kl))
    return loss, _gpt2_backward(dlogits, dlog_i, saved, config, kernels)


def _gpt2(params, ids, config, alpha, policy, threshold, kernels, kept=None):
    # [B, T], [L, B, T, T] -> [B, T, V], [L, B, T, T]
    x, saved_embedding = embedding(ids, params["wte.weight"], params["wpe.weight"])
    own, saved_blocks = [], []
    log_i = 0.0  # the mask handed down from earlier layers
    for layer in range(config.n_layer):
        p = block_params(params, layer)
        own_kept = False if kept is None else kept[layer]
        x, log_own, log_i, saved = block(x, log_i, p, config, layer, alpha, policy, threshold, kernels, own_kept)
        own.append(log_own)
        saved_blocks.append(saved)
    x, saved_ln = layer_norm(x, params["ln_f.weight"], params["ln_f.bias"], config.layer_norm_epsilon)
    head = params["wte.weight"] if config.tie_word_embeddings else params["lm_head.weight"]
    return x @ head.T, np.stack(own), (saved_embedding, saved_blocks, saved_ln, x, head)


def _gpt2_backward(dlogits, dlog_own, saved, config, kernels):  # [B, T, V], [L, B, T, T] -> grads
    saved_embedding, saved_blocks, saved_ln, x, head = saved
    grads = {}
    dhead = project_backward(x, dlogits)  # logits = x @ head.T
    dx, grads["ln_f.weight"], grads["ln_f.bias"] = layer_norm_backward(dlogits @ head, saved_ln)  # layer_norm(x)
    dlog_i = 0.0  # what later layers want of the mask that was handed to them
    for layer in reversed(range(config.n_layer)):
        dx, dlog_i, block_grads = block_backward(dx, dlog_own[layer], dlog_i, saved_blocks[layer], config, kernels)
        grads |= {f"h.{layer}.{name}": grad for name, grad in block_grads.items()}
    if not config.tie_word_embeddings:
        grads["lm_head.weight"], dhead = dhead, None
    grads["wte.weight"], grads["wpe.weight"] = embedding_backward(dx, saved_embedding, dhead)  # embedding(ids)
    return grads


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


def _checked_bools(what, x, shape):  # -> bool of this shape
    x = np.asarray(x)
    try:
        if x.dtype != bool:
            raise ValueError
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{what} must be booleans that broadcast to {list(shape)}, not {x.dtype} {list(x.shape)}"
                         ) from None
