"""From logits to the next token: greedy, temperature, top-k, top-p."""

import math
import operator
from dataclasses import dataclass
from numbers import Real

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises ValueError, naming the setting, when one is impossible.

    temperature 0 is greedy. top_k leaves only the k largest logits, then top_p the fewest of those, the largest first,
    that together have p of their probability. Among equal logits the lowest id comes first.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature!r}")
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1)
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")

    def draw(self, logits: np.ndarray, rng: np.random.Generator) -> int:  # [V]
        """The id of the next token, from one random number, or none when greedy.

        -inf rules a token out. Raises ValueError when the largest logit is not finite: such a model says nothing.
        """
        largest = float(logits.max())  # NaN if any is
        if not math.isfinite(largest):
            raise ValueError(f"logits: the largest is {largest}, so no token can be drawn")
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        with np.errstate(over="ignore"):  # a tiny temperature leaves the largest alone: exp(-inf) = 0 for the rest
            p = np.exp((logits[order].astype(np.float64) - largest) / self.temperature)
        cumulative = p.cumsum()
        kept = np.searchsorted(cumulative, self.top_p * cumulative[-1]) + 1  # up to the first that reaches p
        cumulative = cumulative[:kept]
        return int(order[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")])


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def row_stream(seed: int, row: int) -> np.random.Generator:
    """Row b's own random numbers: what it draws does not depend on the rows beside it.

    A seed of more than 32 bits is several of SeedSequence's words, and [2**32 + 5, 0] would be [5, 1]: such a seed has
    the row in a place of its own instead. So no two pairs have the same numbers.
    """
    words = np.random.SeedSequence([seed, row]) if seed < 2**32 else np.random.SeedSequence(seed, spawn_key=(row,))
    return np.random.default_rng(words)


def check_integer(name: str, value: object, least: int) -> int:
    """`value` as an int. Raises ValueError, naming the setting, when it is no integer, or a bool, or below `least`."""
    try:
        if isinstance(value, bool):  # it would pass for 0 or 1, and is a mistake
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    return number
