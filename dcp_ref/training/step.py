"""One step of training, and the measurement on validation text."""

import math

import numpy as np

from dcp_ref.block import NUMPY, Kernels
from dcp_ref.checkpoints.weights import Model
from dcp_ref.config import Config
from dcp_ref.model import Forward, forward, loss_and_grads
from dcp_ref.native import training as native
from dcp_ref.training import data, schedules
from dcp_ref.training.optimizer import Params, adamw, clip, global_norm
from dcp_ref.training.parallel import Pool, side_by_side
from dcp_ref.training.run_files import State, TrainingError
from dcp_ref.training.settings import TrainSettings
from dcp_ref.training.steering import steer

# A loss that is not finite stops the run with a message, so NumPy's warnings are off; each thread sets that for itself.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def train_step(
    settings: TrainSettings, state: State, tokens: np.ndarray, context: int, pool: Pool, teacher: Model | None = None
) -> dict:
    """One AdamW step on one batch, changing `state` in place. Returns the step's row of metrics."""
    step, pruned = state.step, state.config.int_n_embd is not None
    ids, targets = data.batch(tokens, settings.batch, context, settings.seed, step)
    alpha = schedules.alpha(step, settings.steps, settings.alpha_share) if pruned else math.inf
    gamma = gamma_of(settings, state, ids) if pruned else 0.0
    rate = schedules.learning_rate(step, settings.steps, settings.warmup, settings.learning_rate)
    gammas, thresholds = _by_sequence(settings, gamma, step)
    loss, grads = batch_gradients(state, ids, targets, alpha, gammas, size=settings.micro_batch, pool=pool,
                                  teacher=teacher, distill=settings.distill, thresholds=thresholds)
    norm = global_norm(grads)
    if not (math.isfinite(loss[0]) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: the loss is {loss[0]}, the gradient's norm {norm}; {settings.out} keeps the last "
            "checkpoint. A lower learning_rate may help, in another out directory"
        )
    clip(grads, norm, settings.clip)
    adamw(state.params, grads, state.m, state.v, step=step, rate=rate, decay=settings.weight_decay)
    state.step += 1
    row = {"step": state.step, "tokens": state.step * ids.size, "loss": loss[0], "cross_entropy": loss[1]}
    if pruned:
        row |= {"sparsity": loss[2], "alpha": alpha, "gamma": gamma}
    if teacher is not None:
        row["distillation"] = loss[3]
    return row | {"learning_rate": rate, "grad_norm": norm}


def gamma_of(settings: TrainSettings, state: State, ids: np.ndarray) -> float:
    """The weight of the sparsity loss in this step; with target_kept it is steered by the batch's first sequence."""
    if settings.target_kept is None:
        return settings.gamma
    kept = share_kept(forward(state.params, ids[:1], state.config, kernels=native.kernels(threads=1)), state.config)
    state.steering, factor = steer(state.steering, kept, settings.target_kept, state.step, settings.steps)
    return settings.gamma * factor


def _by_sequence(settings: TrainSettings, gamma: float, step: int) -> tuple[list[float], list[float]]:  # -> [B], [B]
    """gamma and the threshold of each sequence: with threshold_range, gamma is 0 at its lower end."""
    if settings.threshold_range is None:
        return [gamma] * settings.batch, [0.0] * settings.batch
    low, high = settings.threshold_range
    thresholds = schedules.thresholds(low, high, settings.seed, step, settings.batch)
    return list(gamma * (thresholds - low) / (high - low)), list(thresholds)


def batch_gradients(
    state: State, ids: np.ndarray, targets: np.ndarray, alpha: float, gammas: list[float], *, size: int, pool: Pool,
    teacher: Model | None = None, distill: float = 0.0, thresholds: list[float] | None = None,
) -> tuple[np.ndarray, Params]:  # [B, T], [B, T], [B], [B]
    """The mean Loss of a batch, and the gradients of the trained parameters, from parts of `size` sequences.

    `gammas` and `thresholds` (None: all 0) are the sequences'; those of a part are the same. The parts are added up in
    their order, so the result does not depend on which thread was faster.
    """
    kernels = native.kernels(threads=1)  # parts run in parallel; alone, BLAS's spinning threads would be in the way

    @quiet
    def part(start: int) -> tuple[tuple, Params]:
        rows = slice(start, start + size)
        wanted = None if teacher is None else forward(teacher.params, ids[rows], teacher.config, kernels=kernels).logits
        loss, grads = loss_and_grads(
            state.params, ids[rows], targets[rows], state.config, alpha, gammas[start], kernels, wanted, distill,
            0.0 if thresholds is None else thresholds[start])
        return loss, {name: grads[name] for name in state.m}

    results = side_by_side(part, range(0, len(ids), size), pool)
    first, total = next(results)
    loss = np.array(first, np.float64)
    for part_loss, grads in results:
        loss += part_loss
        for name, g in grads.items():
            total[name] += g
    share = size / len(ids)
    for g in total.values() if share < 1 else ():
        np.multiply(g, share, out=g)
    return loss * share, total


@quiet
def perplexity(
    params: Params, config: Config, tokens: np.ndarray, context: int, windows: int, *, pool: Pool | None = None,
    kernels: Kernels = NUMPY,
) -> tuple[float, float]:
    """Perplexity and the share of context kept at alpha = inf, over evenly spaced windows of `context` tokens.

    Raises ValueError when `context` has no pair j < i, or there are too few tokens for a window and its last target.
    """
    if context < 2 or len(tokens) <= context:
        raise ValueError(f"context is {context}: it must be at least 2, and less than the {len(tokens)} tokens")

    @quiet
    def measure(start: int) -> tuple[float, float]:
        ids, targets = data.windows(tokens, np.array([start]), context)
        result = forward(params, ids, config, kernels=kernels)
        loss, _ = kernels.cross_entropy(result.logits, targets)
        return float(loss), share_kept(result, config)

    starts = np.unique(np.linspace(0, len(tokens) - context - 1, windows).astype(int))
    losses, shares = zip(*(side_by_side(measure, starts, pool) if pool else map(measure, starts)), strict=True)
    return float(np.exp(np.mean(losses))), float(np.mean(shares))


def share_kept(result: Forward, config: Config) -> float:
    """The share kept in a `forward`: the mean over layers, sequences and pairs j < i of the mask in force."""
    mask = np.cumprod(result.interaction, axis=0) if config.propagate_in_depth else result.interaction
    return float(np.mean(mask[..., *np.tril_indices(mask.shape[-1], -1)], dtype=np.float64))
