"""A cache with pages and slots, as a kernel has them, in NumPy: what broken.py breaks, one method at a time.

Pages come from a pool that all sequences share. A token takes the first free slot; a drop frees its slot; a page
without live tokens goes back to the pool. A fork shares pages with its parent until one of them writes.
"""

import copy
from typing import Any

import numpy as np

from dcp_ref.config import Config
from dcp_ref.policies import Policy
from dcp_ref.runtime.precision import stored
from dcp_ref.testing.definition import attention
from dcp_ref.testing.slot_pages import Layer, Page


class SlotCache:
    """A conforming cache. Its methods are small, so that each fault is the change of one."""

    supports = frozenset({"decode", "prompts", "ragged", "fork", "release", "save", "threshold", "int_delay", "float16",
                          "int8", "propagate_in_depth", "pins", "budget"})
    page_slots = 5

    def __init__(self, config: Config, threshold: float, kv: str, budget: int | None) -> None:
        self.config, self.threshold, self.kv, self.budget = config, threshold, kv, budget
        self.pool: list[Page] = []
        self.sequences: dict[int, list[Layer]] = {}
        self.made = 0  # pages

    @classmethod
    def make(cls, config: Config, policy: Policy, threshold: float = 0.0, kv: str = "float32") -> "SlotCache":
        """A new cache for models of this shape."""
        return cls(config, threshold, kv, policy.budget)

    def new(self) -> int:
        """The lowest free handle, for a new sequence."""
        handle = next(n for n in range(len(self.sequences) + 1) if n not in self.sequences)
        self.sequences[handle] = [Layer() for _ in range(self.config.n_layer)]
        return handle

    def release(self, handle: int) -> None:
        """Give the pages of a sequence back."""
        for layer in self.sequences.pop(handle):
            for page in layer.pages:
                self.give_back(page)

    def fork(self, handle: int) -> int:
        """A sequence of its own with the same tokens."""
        child = self.new()
        for old, new in zip(self.sequences[handle], self.sequences[child], strict=True):
            new.pages, new.seen = list(old.pages), old.seen
            for page in new.pages:
                page.owners += 1
        return child

    def save(self, handle: int) -> list[Layer]:
        """All that the sequence holds."""
        state = copy.deepcopy(self.sequences[handle])
        for page in (page for layer in state for page in layer.pages):
            page.owners = 1
        return state

    def restore(self, state: list[Layer]) -> int:
        """A sequence of its own from what was saved."""
        handle, self.made = self.new(), self.made + sum(len(layer.pages) for layer in state)
        self.sequences[handle] = state
        return handle

    def live(self, handle: int, layer: int) -> np.ndarray:
        """Positions of the live tokens, ascending."""
        return np.sort(np.concatenate([np.zeros(0, int), *(page.position[page.live] for page in
                                                           self.sequences[handle][layer].pages)]))

    def bytes_owned(self) -> int:
        """Pages that sequences own, each of as many bytes as it has slots: all that is compared."""
        return (self.made - len(self.pool)) * self.page_slots

    def poison(self) -> None:
        """NaN wherever nothing is live."""
        pages = [page for sequence in self.sequences.values() for layer in sequence for page in layer.pages]
        for page in pages + self.pool:
            for x in (page.k, page.v, page.k_int):
                x[~page.live] = np.nan

    def step(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited,
             pinned=None):
        """One layer of a step: attention's output, and what left."""
        self.pinned = np.zeros(len(q), bool) if pinned is None else pinned
        return self.rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        """The rows of each sequence, one token after another."""
        k, v = (stored(x, self.kv, self.config.n_head) for x in (k, v))
        out, dropped, row = np.zeros_like(q), [], 0
        for handle, count in batch:
            for _ in range(count):
                tokens = self.sequences[handle][layer]
                gone, self.pin = inherited[inherited[:, 0] == row, 1], self.pinned[row]
                out[row], left = self.token(tokens, layer, q[row], k[row], v[row], q_int[row], k_int[row], beta, gone)
                dropped += [(row, position) for position in left]
                row += 1
        return out, np.array(dropped, int).reshape(-1, 2)

    def token(self, tokens: Layer, layer: int, q, k, v, q_int, k_int, beta: float, inherited) -> tuple[Any, list[int]]:
        """Points 3 to 9 of the specification, in order: attention's output, and the positions that left."""
        left = self.drop(tokens, q_int, beta, inherited)
        self.insert(tokens, k, v, k_int)
        return self.attend(tokens, layer, q), left

    def drop(self, tokens: Layer, q_int, beta: float, inherited) -> list[int]:
        """Free the slots of the tokens that leave."""
        left: list[int] = []
        scores = [self.scores(page, q_int, beta) for page in tokens.pages]
        stay = [self.stays(tokens, page, s, inherited) for page, s in zip(tokens.pages, scores, strict=True)]
        if self.budget is not None:
            judged = self.judged(tokens, scores, stay)
            for _, _, n, slot in judged[: max(0, len(judged) - self.room(tokens))]:
                stay[n][slot] = False
        for n, page in enumerate(tokens.pages):
            gone = page.live & ~stay[n]
            if gone.any():
                left += page.position[gone].tolist()
                tokens.pages[n] = self.writable(page)
                self.clear(tokens.pages[n], gone)
        for empty in [page for page in tokens.pages if not page.live.any()]:
            tokens.pages.remove(empty)
            self.give_back(empty)
        return left

    def judged(self, tokens: Layer, scores: list[np.ndarray], stay: list[np.ndarray]) -> list[tuple]:
        """What a budget chooses from: (score, position, page, slot), the first to leave first."""
        return sorted((s[slot], page.position[slot], n, slot)
                      for n, (page, s, left) in enumerate(zip(tokens.pages, scores, stay, strict=True))
                      for slot in np.flatnonzero(page.live & left & ~page.pinned & ~self.safe(tokens, page)))

    def room(self, tokens: Layer) -> int:
        return self.budget or 0

    def safe(self, tokens: Layer, page: Page) -> np.ndarray:  # -> bool [slots]
        return tokens.seen - page.position <= self.config.int_delay

    def scores(self, page: Page, q_int, beta: float) -> np.ndarray:  # -> [slots]
        return page.k_int @ q_int / np.sqrt(np.float32(len(q_int))) + np.float32(beta)

    def stays(self, tokens: Layer, page: Page, s: np.ndarray, inherited) -> np.ndarray:  # [slots] -> bool [slots]
        return ((s > self.threshold) | self.safe(tokens, page) | page.pinned) & ~np.isin(page.position, inherited)

    def clear(self, page: Page, gone: np.ndarray) -> None:
        page.live[gone] = False

    def insert(self, tokens: Layer, k, v, k_int) -> None:
        """Put the next token into the first free slot, of a new page where there is none."""
        n = next((n for n, page in enumerate(tokens.pages) if not page.live.all()), len(tokens.pages))
        if n == len(tokens.pages):
            tokens.pages.append(self.new_page(len(k), len(k_int)))
        tokens.pages[n] = page = self.writable(tokens.pages[n])
        self.write(page, int(np.argmin(page.live)), self.next_position(tokens), k, v, k_int)
        tokens.seen += 1

    def next_position(self, tokens: Layer) -> int:
        return tokens.seen

    def write(self, page: Page, slot: int, position: int, k, v, k_int) -> None:
        page.k[slot], page.v[slot], page.k_int[slot] = k, v, k_int
        page.position[slot], page.live[slot], page.pinned[slot] = position, True, self.pin

    def attend(self, tokens: Layer, layer: int, q: np.ndarray) -> np.ndarray:
        """softmax(q k^T / sqrt(D)) v over the live slots."""
        k, v = (np.concatenate([getattr(page, x)[page.live] for page in tokens.pages]) for x in ("k", "v"))
        return attention(q, k, v, self.config.n_head, self.config.attention_scale(layer))

    def new_page(self, channels: int, rank: int) -> Page:
        """A page of the pool's, else a new one."""
        if self.pool:
            return self.pool.pop()
        self.made += 1
        return Page(self.page_slots, channels, rank)

    def writable(self, page: Page) -> Page:
        """The page itself, or a copy where another sequence has it too."""
        if page.owners == 1:
            return page
        page.owners -= 1
        new = self.new_page(page.k.shape[1], page.k_int.shape[1])
        for name in ("k", "v", "k_int", "position", "live", "pinned"):
            getattr(new, name)[:] = getattr(page, name)
        return new

    def give_back(self, page: Page) -> None:
        """One owner fewer; without one, the page goes to the pool, empty."""
        page.owners -= 1
        if not page.owners:
            self.empty(page)
            page.owners = 1
            self.pool.append(page)

    def empty(self, page: Page) -> None:
        page.live[:] = False
