"""Decoding at a given share dropped: random models whose learned rule is set to drop it, timed side by side."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dcp_ref import policies
from dcp_ref.bench.timing import interleaved
from dcp_ref.block import block, block_params
from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.weights import Model
from dcp_ref.config import Config
from dcp_ref.interaction import scores
from dcp_ref.layers import embedding, layer_norm
from dcp_ref.native import training
from dcp_ref.runtime.engine import Engine

SMALL = Config(int_n_embd=64, eos_token_id=None)  # GPT-2 small, and the paper's interaction width
KEEPS_ALL = 1e9  # a beta with which every score is positive


def random_model(config: Config = SMALL, seed: int = 0) -> Model:
    """A GPT-2 with the weights of a fresh training run, and no tokenizer."""
    return Model(config, weights.init_params(config, seed), None)


def random_prompt(config: Config, tokens: int, seed: int = 0) -> np.ndarray:  # -> [tokens]
    return np.random.default_rng(seed).integers(config.vocab_size, size=tokens)


def calibrated(model: Model, share_dropped: float, context: int, seed: int = 0) -> Model:
    """The model with the beta of each layer chosen so that the learned rule drops this share of a random prompt.

    It is exactly that share in every layer after the last token of `random_prompt(config, context, seed)`, and about
    that share for other prompts. Random scores are nearly independent, so tokens go one by one: the live count rises
    first, then stays near (1 - share) * context. Layers are set in order, as a layer's input depends on earlier drops.
    Raises ValueError when the share is not in [0, 1), or the model has no interaction weights.
    """
    config = model.config
    if not 0 <= share_dropped < 1 or config.int_n_embd is None or config.propagate_in_depth or config.int_delay:
        raise ValueError(f"share_dropped must be in [0, 1), not {share_dropped}, and the model one with interaction "
                         "weights and without propagate_in_depth and int_delay")
    params, ids = dict(model.params), random_prompt(config, context, seed)[None]
    x, _ = embedding(ids, params["wte.weight"], params["wpe.weight"])
    for layer in range(config.n_layer):
        beta = KEEPS_ALL if share_dropped == 0 else _beta(x, params, config, layer, 1 - share_dropped)
        params[f"h.{layer}.attn.int_bias"] = np.full(1, beta, np.float32)
        if share_dropped > 0:
            x, *_ = block(x, 0.0, block_params(params, layer), config, layer, math.inf, policies.learned,
                          kernels=training.kernels(threads=1))
    return Model(config, params, model.tokenizer)


def _beta(x: np.ndarray, params: weights.Params, config: Config, layer: int, share: float) -> float:  # [1, T, C]
    """The beta with which the layer keeps this share of the T tokens after the last one.

    With s the scores at beta = 0, token j is alive at the end iff s[m, j] + beta > 0 for all m > j. So what counts is
    each token's lowest score, and beta lies between two neighbours of the sorted -lowest.
    """
    p, T = block_params(params, layer), x.shape[1]
    n, _ = layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon)
    s, _ = scores(n[0], p["attn.q_int.weight"], p["attn.k_int.weight"], np.zeros(1, np.float32))
    lowest = np.where(np.tri(T, k=-1, dtype=bool), s, np.inf).min(0)[:-1]  # the last token is always alive
    needed = np.sort(-lowest)
    needed = np.concatenate([needed[:1] - 1, needed, needed[-1:] + 1])
    kept = max(round(share * T), 1) - 1
    return float(needed[kept] + needed[kept + 1]) / 2


def copies(engine: Engine, sequence: int, n: int) -> list[int]:
    """Handles of n new sequences with the same tokens, in memory of their own, as if each had been fed them."""
    tokens = engine._saving.export(engine._cache, sequence)
    return [engine._saving.restore(engine._cache, tokens) for _ in range(n)]


class Decoding:
    """Copies of one random prompt that decode side by side; `step` feeds one token to each.

    Forks would share the prompt's memory, which is then read faster than that of so many texts.

    The tokens are random: those that a random model predicts soon repeat, and repeated queries drop nothing new.
    """

    def __init__(self, model: Model, batch: int, context: int, seed: int = 0, **options: Any) -> None:
        self.engine, self.rng = Engine(model, **options), np.random.default_rng(seed)
        self.seen, first, began = context, self.engine.new_sequence(), time.perf_counter()
        self.engine.feed([first], [random_prompt(model.config, context, seed).tolist()])
        self.prompt_seconds = time.perf_counter() - began
        self.sequences = [first, *copies(self.engine, first, batch - 1)]

    def step(self) -> None:
        """Feed one token to each sequence, and find the likeliest next one of each."""
        tokens = self.rng.integers(self.engine.config.vocab_size, size=(len(self.sequences), 1))
        for logits in self.engine.feed(self.sequences, tokens.tolist()):
            logits.argmax()
        self.seen += 1

    def steps(self, n: int) -> Callable[[], None]:
        """A call that takes n steps, for `interleaved`."""

        def run() -> None:
            for _ in range(n):
                self.step()

        return run

    @property
    def share_dropped(self) -> float:
        """The share of the tokens seen that no longer lives, over all layers and sequences."""
        seen = self.seen * len(self.sequences) * self.engine.config.n_layer
        return 1 - self.engine.stats().live_tokens / seen

    @property
    def cache_bytes(self) -> int:
        return self.engine.stats().bytes_owned


class Point(NamedTuple):
    """One measurement of `sweep`; `rule` is "learned", or "dense", which computes no scores."""

    context: int
    rule: str
    share_wanted: float
    share_dropped: float
    step_seconds: float
    tokens_per_second: float
    cache_bytes: int
    prompt_seconds: float


def sweep(model: Model, context: int, shares: tuple[float, ...], batch: int, rounds: int, steps: int = 2,
          **options: Any) -> list[Point]:
    """Time the dense policy, and the learned rule at each share dropped, interleaved. `options` are Engine's.

    The last step ends at `context` tokens.
    """
    prompt = max(context - steps * (rounds + 1), 1)
    decodings = {("dense", 0.0): Decoding(model, batch, prompt, policy=policies.dense, **options)}
    for share in shares:
        decodings["learned", share] = Decoding(calibrated(model, share, context), batch, prompt, **options)
    contenders = {f"{rule} {share}": d.steps(steps) for (rule, share), d in decodings.items()}
    timings = interleaved(contenders, rounds, pause=0.01, title=f"context {context}")
    medians = [timing.median / steps for timing in timings.values()]
    return [Point(context, rule, share, d.share_dropped, median, batch / median, d.cache_bytes, d.prompt_seconds)
            for ((rule, share), d), median in zip(decodings.items(), medians, strict=True)]
