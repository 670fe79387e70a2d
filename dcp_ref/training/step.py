"""The mathematics of training: one step, and the measurement on validation text."""

import math

import numpy as np

from dcp_ref.config import Config
from dcp_ref.model import forward, loss_and_grads
from dcp_ref.training import data, native, schedules
from dcp_ref.training.blas import Pool, side_by_side
from dcp_ref.training.checkpoint import State, TrainingError
from dcp_ref.training.optimizer import Params, adamw, clip, global_norm
from dcp_ref.training.settings import TrainSettings


def train_step(settings: TrainSettings, state: State, tokens: np.ndarray, context: int, pool: Pool) -> dict:
    """One AdamW step on one batch, changing `state` in place. Returns the step's row of metrics."""
    step, pruned = state.step, state.config.int_n_embd is not None
    ids, targets = data.batch(tokens, settings.batch, context, settings.seed, step)
    alpha = schedules.alpha(step, settings.steps) if pruned else math.inf
    gamma = settings.gamma if pruned else 0.0
    rate = schedules.learning_rate(step, settings.steps, settings.warmup, settings.learning_rate)
    loss, grads = batch_gradients(state, ids, targets, alpha, gamma, size=settings.micro_batch, pool=pool)
    norm = global_norm(grads)
    if not (math.isfinite(loss[0]) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: the loss is {loss[0]}, the gradient's length {norm}; {settings.out} keeps the last "
            "checkpoint. A lower learning_rate may help, in another out directory"
        )
    clip(grads, norm, settings.clip)
    adamw(state.params, grads, state.m, state.v, step=step, rate=rate, decay=settings.weight_decay)
    state.step += 1
    row = {"step": state.step, "tokens": state.step * ids.size, "loss": loss[0], "cross_entropy": loss[1]}
    if pruned:
        row |= {"sparsity": loss[2], "alpha": alpha}
    return row | {"learning_rate": rate, "grad_norm": norm}


def batch_gradients(
    state: State, ids: np.ndarray, targets: np.ndarray, alpha: float, gamma: float, *, size: int, pool: Pool
) -> tuple[np.ndarray, Params]:
    """Mean (total, cross_entropy, sparsity) and gradients over a batch, `size` sequences at a time.

    Added up in the order of the sequences, so the result does not depend on which thread was faster.
    """

    kernels = native.kernels(threads=0 if len(ids) == size else 1)  # one part alone may use all threads

    def part(start: int) -> tuple[tuple, Params]:
        rows = slice(start, start + size)
        return loss_and_grads(state.params, ids[rows], targets[rows], state.config, alpha, gamma, kernels)

    results = side_by_side(part, range(0, len(ids), size), pool)
    first, total = next(results)
    loss = np.array(first, np.float64)
    for part_loss, grads in results:
        loss += part_loss
        for name, g in grads.items():
            total[name] += g
    share = size / len(ids)
    for g in total.values():
        np.multiply(g, share, out=g)
    return loss * share, total


def perplexity(
    params: Params, config: Config, tokens: np.ndarray, context: int, windows: int, *, pool: Pool | None = None
) -> tuple[float, float]:
    """Perplexity at alpha = inf, and the share of context kept, over evenly spaced windows of `context` tokens.

    The share is the mean over layers and pairs j < i of the mask in force (1 for a model without interaction weights).
    Raises ValueError when `context` has no pair, and when there are too few tokens for a window and its last target.
    """
    if context < 2 or len(tokens) <= context:
        raise ValueError(f"context is {context}: it must be at least 2, and less than the {len(tokens)} tokens")
    earlier = np.tril_indices(context, -1)

    def measure(start: int) -> tuple[float, float]:
        ids, targets = data.windows(tokens, np.array([start]), context)
        logits, interaction = forward(params, ids, config)
        top = logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
        loss = np.mean(log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0], dtype=np.float64)
        mask = np.cumprod(interaction, axis=0) if config.propagate_in_depth else interaction
        return float(loss), float(np.mean(mask[:, 0, *earlier], dtype=np.float64))

    starts = np.unique(np.linspace(0, len(tokens) - context - 1, windows).astype(int))
    losses, shares = zip(*(side_by_side(measure, starts, pool) if pool else map(measure, starts)), strict=True)
    return float(np.exp(np.mean(losses))), float(np.mean(shares))
