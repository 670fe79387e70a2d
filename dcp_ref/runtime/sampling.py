"""From logits to the next token: greedy, temperature, top-k, top-p."""

import math
import operator
from dataclasses import dataclass
from numbers import Real

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises ValueError, naming the setting, when one is impossible.

    temperature 0 is greedy. top_k leaves only the k largest logits. Of the tokens left, top_p leaves the likeliest:
    the fewest that together have p of the probability. Among equal logits the lowest id comes first.
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
        """The id of the next token. Takes one random number, or none when greedy.

        A logit of -inf rules a token out. Raises ValueError when the largest logit is not finite.
        """
        largest = float(logits.max())  # NaN if any is
        if not math.isfinite(largest):
            raise ValueError(f"logits: the largest is {largest}, so no token can be drawn")
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        with np.errstate(over="ignore"):  # if the temperature is tiny: exp(-inf) = 0 for all but the largest
            p = np.exp((logits[order].astype(np.float64) - largest) / self.temperature)
        cumulative = p.cumsum()
        kept = np.searchsorted(cumulative, self.top_p * cumulative[-1]) + 1  # up to the first that reaches p
        cumulative = cumulative[:kept]
        return int(order[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")])


def is_number(value: object) -> bool:
    """Whether `value` is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def row_stream(seed: int, row: int) -> np.random.Generator:
    """A row's own random numbers: what it draws does not depend on the rows beside it.

    SeedSequence cuts a seed of more than 32 bits into words, so [2**32 + 5, 0] would be the same as [5, 1]. For such a
    seed the row is the spawn key instead. So no two pairs of seed and row share their numbers.
    """
    words = np.random.SeedSequence([seed, row]) if seed < 2**32 else np.random.SeedSequence(seed, spawn_key=(row,))
    return np.random.default_rng(words)


def check_integer(name: str, value: object, least: int) -> int:
    """`value` as an int. Raises ValueError, naming the setting, if it is no integer, a bool, or below `least`."""
    try:
        if isinstance(value, bool):  # it would pass for 0 or 1
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    return number
