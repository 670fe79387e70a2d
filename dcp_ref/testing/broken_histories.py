"""Broken caches, continued: the faults that only a history of several calls shows. broken.py has the list."""

import numpy as np

from dcp_ref.runtime.precision import stored
from dcp_ref.testing.slot_cache import SlotCache
from dcp_ref.testing.slot_pages import Layer, Page


class PageNotCleared(SlotCache):
    """A page that a drop gives back to the pool keeps its live bits, unless it is the first."""

    meant = "pages"

    def drop(self, tokens: Layer, q_int, beta: float, inherited) -> list[int]:
        left: list[int] = []
        for n, page in enumerate(tokens.pages):
            gone = page.live & ~self.stays(tokens, page, self.scores(page, q_int, beta), inherited)
            left += page.position[gone].tolist()
            if n > 0 and (gone == page.live).all():
                continue  # the whole page leaves below
            tokens.pages[n] = self.writable(page)
            self.clear(tokens.pages[n], gone)
        for empty in [page for page in tokens.pages if set(page.position[page.live].tolist()) <= set(left)]:
            tokens.pages.remove(empty)
            self.pool.append(empty)
        return left


class TakesTheFirstBeta(SlotCache):
    """All layers use the beta of layer 0."""

    meant = "layers"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        self.first_beta: float = beta if layer == 0 else self.first_beta
        return super().rows(layer, batch, q, k, v, q_int, k_int, self.first_beta, inherited)


class JudgesPromptsByTheLastRow(SlotCache):
    """Of several rows in a step, only the last one drops."""

    meant = "prompts"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        ends = np.cumsum([count for _, count in batch]) - 1
        early = np.setdiff1d(np.arange(len(q)), ends)
        q_int = q_int.copy()
        q_int[early] = 0
        return super().rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)


class MixesRows(SlotCache):
    """The queries of a batch of several sequences go to the wrong sequence."""

    meant = "ragged"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        if len(batch) > 1:
            q = np.roll(q, 1, axis=0)
        return super().rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)


class LengthNotReset(SlotCache):
    """A handle that is used again goes on counting where the released sequence stopped."""

    meant = "release"

    def release(self, handle: int) -> None:
        old = [layer.seen for layer in self.sequences[handle]]
        super().release(handle)
        self.lengths = {**getattr(self, "lengths", {}), handle: old}

    def new(self) -> int:
        handle = super().new()
        for layer, seen in zip(self.sequences[handle], getattr(self, "lengths", {}).get(handle, []), strict=False):
            layer.seen = seen
        return handle


class ForkWritesSharedPages(SlotCache):
    """A fork and its parent write into the page that they share."""

    meant = "fork"

    def writable(self, page: Page) -> Page:
        return page


class TruncatesToHalf(SlotCache):
    """float16 by cutting bits off, not to nearest."""

    meant = "float16"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        if self.kv == "float16":
            k, v = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (k, v))
        return super().rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)


class OneScaleForAllHeads(SlotCache):
    """int8 with one scale a token, not one for each head."""

    meant = "int8"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        if self.kv == "int8":
            k, v = (stored(x, "int8", 1) for x in (k, v))
        return super().rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)


class HalvesInteractionKeys(SlotCache):
    """k_int in float16 where keys and values are."""

    meant = "float16"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        k_int = stored(k_int, "float16", 1) if self.kv == "float16" else k_int
        return super().rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)


class DividesByZero(SlotCache):
    """int8 whose scale is 0 for a head of zeros: 0 / 0."""

    meant = "int8"

    def rows(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited):
        if self.kv == "int8":
            heads = v.reshape(len(v), self.config.n_head, -1)
            v = np.where(np.abs(heads).max(-1, keepdims=True) == 0, np.nan, heads).reshape(v.shape).astype(np.float32)
        return super().rows(layer, batch, q, k, v, q_int, k_int, beta, inherited)


class RestoresAReference(SlotCache):
    """What is saved is no copy: the sequence goes on writing into it."""

    meant = "save"

    def save(self, handle: int) -> list[Layer]:
        return self.sequences[handle]


class PinsCountInTheBudget(SlotCache):
    """A budget is used up by pinned tokens too."""

    meant = "pins"

    def room(self, tokens: Layer) -> int:
        return max(0, super().room(tokens) - sum(int((page.pinned & page.live).sum()) for page in tokens.pages))


class BudgetKeepsTheEarlier(SlotCache):
    """Of equal scores the later token leaves."""

    meant = "budget"

    def judged(self, tokens: Layer, scores: list[np.ndarray], stay: list[np.ndarray]) -> list[tuple]:
        return sorted(super().judged(tokens, scores, stay), key=lambda found: (found[0], -found[1]))


class PositionsInAByte(SlotCache):
    """Positions in 8 bits: token 256 is token 0."""

    meant = "long"

    def write(self, page: Page, slot: int, position: int, k, v, k_int) -> None:
        super().write(page, slot, position % 256, k, v, k_int)


class HalvesLongSums(SlotCache):
    """From 64 live tokens on, values are summed in float16."""

    meant = "long"

    def attend(self, tokens: Layer, layer: int, q: np.ndarray) -> np.ndarray:
        out = super().attend(tokens, layer, q)
        many = sum(int(page.live.sum()) for page in tokens.pages) >= 64
        return out.astype(np.float16).astype(np.float32) if many else out


class LeaksPages(SlotCache):
    """A page that a fork copied is never given back."""

    meant = "memory"

    def release(self, handle: int) -> None:
        self.made += any(page.owners > 1 for layer in self.sequences[handle] for page in layer.pages)
        super().release(handle)
