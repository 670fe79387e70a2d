"""Pages of slots, and a sequence's list of them: what slot_cache.py works on."""

import numpy as np


class Page:
    """Slots for some tokens. A slot is live where `live` says so; what the others hold means nothing."""

    def __init__(self, slots: int, channels: int, rank: int) -> None:
        self.k, self.v = np.zeros((2, slots, channels), np.float32)
        self.k_int = np.zeros((slots, rank), np.float32)
        self.position, self.live, self.pinned = np.zeros(slots, int), np.zeros(slots, bool), np.zeros(slots, bool)
        self.owners = 1


class Layer:
    """A sequence in one layer: its pages, and how many tokens it has seen."""

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.seen = 0
