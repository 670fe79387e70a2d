"""Cases at random: Hypothesis, or a seed, gives the integers that all of a case follows from."""

import math
from collections.abc import Callable

import numpy as np

from dcp_ref import policies
from dcp_ref.config import Config
from dcp_ref.testing.cases import FEED, FORK, NEW, RELEASE, RESTORE, STEP, Case, Focus

CLOSE = 1e-4  # to the threshold: ten times what float32 rounds, a tenth of what float16 does
Integer = Callable[[int, int], int]  # an integer from the first to the second


def draw(integer: Integer, check: str, focus: Focus, supports: frozenset[str], page: int) -> Case:
    """A case of this kind that a cache with such `supports` can run. All of it follows from the integers drawn."""
    draws: list[int] = []

    def recorded(low: int, high: int) -> int:
        draws.append(integer(low, high))
        return draws[-1]

    delay = recorded(1, 3) if focus.delay and "int_delay" in supports else 0
    layers, r = recorded(1, focus.layers), 4 ** recorded(0, 2)
    tokens = max(focus.pages * max(page, 4), focus.many + 8 * (focus.many > 0))
    config = Config(vocab_size=1, n_positions=tokens, n_embd=8, n_head=2, n_layer=layers, int_n_embd=r, int_delay=delay,
                    propagate_in_depth=focus.depth and "propagate_in_depth" in supports, eos_token_id=None)
    policy = policies.learned
    if check == "histories" and "policies" in supports:
        w = recorded(1, 5)
        policy = (policies.learned, policies.window(w), policies.sinks(2, w), policies.strided(w, 3))[recorded(0, 3)]
    if policy.learned and focus.budget and "budget" in supports and (check == "budget" or recorded(0, 1)):
        policy = policies.budget(recorded(1, 5))
    plain = "threshold" not in supports or not policy.learned or focus.scores in ("own", "low")
    threshold = 0.0 if plain else float(recorded(-2, 3))
    history = _history(recorded, focus, supports, tokens, page)
    rng = np.random.default_rng(recorded(0, 2**16))
    kv = focus.kv
    if check == "histories":
        stored = [name for name in ("float32", "float16", "int8") if name == "float32" or name in supports]
        kv = stored[recorded(0, len(stored) - 1)]
    starts, quiet = (np.array(x, bool) for x in (history.starts, history.quiet))
    q, k, v, q_int, k_int, beta = _numbers(rng, focus.scores, layers, r, threshold, starts, quiet)
    if focus.large:
        _enlarge(rng, focus.scores, threshold, q, k, v, q_int, k_int, beta)
    pinned = (rng.random(len(starts)) < 0.3) & (focus.pins and "pins" in supports)
    return Case(check, config, policy, threshold, kv, focus.scores != "real", tuple(history.ops), q, k, v, q_int, k_int,
                beta, pinned, tuple(draws))


class _History:
    """Operations as they are drawn; for each row whether it is its sequence's first, and whether it drops nothing."""

    def __init__(self, integer: Integer, focus: Focus, supports: frozenset[str], tokens: int) -> None:
        self.integer, self.focus, self.supports, self.tokens = integer, focus, supports, tokens
        self.ops, self.alive, self.begun = [(NEW, 0, 0)], {0: 0}, 1  # alive: the tokens of each sequence
        self.starts, self.quiet = list[bool](), list[bool]()

    def feed(self, parts: list[tuple[int, int]], quiet: bool = False) -> None:
        self.ops.append((STEP, len(parts), 0))
        for sequence, count in parts:
            self.ops.append((FEED, sequence, count))
            self.starts += [self.alive[sequence] + n == 0 for n in range(count)]
            self.quiet += [quiet] * count
            self.alive[sequence] += count

    def one_of(self, sequences: list[int]) -> int:
        return sequences[self.integer(0, len(sequences) - 1)]

    def begin(self, kind: int, parent: int | None) -> None:
        self.ops.append((NEW, self.begun, 0) if parent is None else (kind, parent, self.begun))
        self.alive[self.begun] = 0 if parent is None else self.alive[parent]
        self.begun += 1

    def step(self, most: int) -> None:
        free = [s for s in sorted(self.alive) if self.alive[s] < self.tokens]
        parts = []
        for _ in range(min(self.integer(1, 3) if "ragged" in self.supports else 1, len(free))):
            free.remove(sequence := self.one_of(free))
            parts.append((sequence, self.integer(1, min(most, self.tokens - self.alive[sequence]))))
        if parts:
            self.feed(parts)


def _history(integer: Integer, focus: Focus, supports: frozenset[str], tokens: int, page: int) -> _History:
    h = _History(integer, focus, supports, tokens)
    most = focus.rows if "prompts" in supports else 1
    kinds = [STEP, STEP, STEP, *[NEW] * (focus.sequences > 1), *[FORK] * (focus.fork and "fork" in supports),
             *[RELEASE] * (focus.release and "release" in supports), *[RESTORE] * (focus.saved and "save" in supports)]
    if focus.long or focus.many:
        n = focus.many or min(page + integer(-1, 2), tokens)
        for count in [n] if most > 1 else [1] * n:
            h.feed([(0, count)], quiet=True)
    for _ in range(focus.calls):
        if integer(0, 15) == 0 and integer(0, 3) == 0:  # the simplest choice ends the history
            break
        kind = kinds[integer(0, len(kinds) - 1)]
        if kind in (NEW, FORK, RESTORE) and len(h.alive) < focus.sequences and (kind == NEW or h.alive):
            h.begin(kind, None if kind == NEW else h.one_of(sorted(h.alive)))
        elif kind == RELEASE and h.alive:
            released = h.one_of(sorted(h.alive))
            h.ops.append((RELEASE, released, 0))
            del h.alive[released]
        elif kind == STEP:
            h.step(most)
    return h


def _numbers(rng: np.random.Generator, scores: str, L: int, r: int, threshold: float, starts, quiet):  # bool [N] x 2
    """q, k, v [L, N, 8], q_int, k_int [L, N, r], beta [L]: float32. Two decimals, so that they are short to print."""
    N = len(starts)
    beta: np.ndarray
    q, k, v = rng.normal(size=(3, L, N, 8)).round(2)
    quiet = quiet | ((np.arange(N) % 2 == 0) & (scores == "alternate"))
    if scores == "real":
        q_int, k_int = rng.normal(size=(2, L, N, r)).round(2)
        beta = rng.uniform(0, 1.5, L).round(2) + threshold
        for layer in range(L if N > 1 else 0):  # one score is so close to the threshold that its type's rounding shows
            i = rng.integers(1, N)
            s = q_int[layer, i] @ k_int[layer, rng.integers(0, i)] / math.sqrt(r)
            beta[layer] = threshold - s + rng.choice([-CLOSE, CLOSE])
    else:  # q_int . k_int / sqrt(r) is an integer; so a score is one too, or lies in the middle between two
        q_int, k_int = rng.integers(-1, 2, size=(2, L, N, r)).astype(float)
        beta = rng.integers(-2, 3, L) + (threshold + 0.5 * (scores != "ties"))
    quiet = quiet | (scores == "high")
    if scores in ("own", "low", "alternate"):  # a single product decides
        q_int[:], k_int[:], beta[:] = 0, 0, threshold + 0.5
        k_int[..., 0], q_int[..., 0] = -1, 1
        if scores == "alternate":  # two of three tokens leave at once
            k_int[..., 0] = rng.choice([-1, -1, 1], size=(L, N))
        if scores == "own":  # later tokens score -1 times -1
            q_int[:, ~starts, 0] = -1
    if scores != "real":
        q_int *= math.sqrt(r)
    q_int[:, quiet] = 0  # s = beta
    beta = np.maximum(beta, threshold + 0.5 + 0.5 * (scores == "ties")) if quiet.any() else beta
    if scores == "special":
        where = rng.random((L, N)) < 0.4
        k_int[where, 0] = rng.choice([np.nan, np.inf, -np.inf], where.sum())
    arrays = (q, k, v, q_int, k_int, beta)
    return tuple(x.astype(np.float32) for x in arrays)


def _enlarge(rng: np.random.Generator, scores: str, threshold: float, q, k, v, q_int, k_int, beta) -> None:
    """Change the numbers so that 16 bits do not hold them; what is exact in float32 stays so.

    Where nothing drops, attention's logits go beyond 88, where exp of a float32 is infinite; they are exact. Elsewhere
    interaction keys are near 2048, in steps of 1, where float16 has steps of 2: 2049 stays and 2048 leaves. Some heads
    hold zeros alone.
    """
    if scores == "high":
        q[:], k[:] = np.round(4 * q) / 4, np.round(4 * k) / 4
        q[..., ::4], k[..., ::4] = 16, k[..., ::4] + 16
        return
    q_int[:], k_int[:], beta[:] = 0, 0, threshold - 2048.5
    q_int[..., 0] = math.sqrt(q_int.shape[-1])
    k_int[..., 0] = 2048 + rng.integers(-3, 4, k_int.shape[:-1])
    zeros = rng.random(k.shape[:-1]) < 0.3
    k[zeros, :4], v[zeros, 4:] = 0, 0
