"""From logits to the next token: greedy, temperature, top-k, top-p."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises ValueError, naming the setting, when one is impossible.

    temperature 0 is greedy: the largest logit, the first of equals. top_k leaves only the k largest logits, then top_p
    the fewest of them that together have probability p.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p!r}")

    def draw(self, logits: np.ndarray, rng: np.random.Generator) -> int:  # [V]
        """The id of the next token; greedy uses no random number, otherwise one."""
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / self.temperature
        cumulative = np.exp(scaled).cumsum()
        kept = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1
        cumulative = cumulative[:kept]
        return int(order[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")])


def row_stream(seed: int, row: int) -> np.random.Generator:
    """Row b's own random numbers: what it draws does not depend on the rows beside it."""
    return np.random.default_rng(np.random.SeedSequence([seed, row]))
