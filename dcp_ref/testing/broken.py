"""Broken caches: each is slot_cache.py with one fault that kernels have, and with the check that is meant for it.

The first three are the faults of the paper's own code, the way they would look here. broken_histories.py has the
second half.
"""

import copy

import numpy as np

from dcp_ref.testing import broken_histories
from dcp_ref.testing.slot_cache import SlotCache
from dcp_ref.testing.slot_pages import Layer, Page


class CompactionMovesKeysOnly(SlotCache):
    """Official 1: after a drop, the keys of the tokens behind it move up, and their values do not."""

    meant = "slots_reused"

    def clear(self, page: Page, gone: np.ndarray) -> None:
        left = page.live & ~gone
        n = left.sum()
        for x in (page.k, page.k_int, page.position):
            x[:n] = x[left]
        page.live[:] = np.arange(len(left)) < n


class DeadTailTakesAll(SlotCache):
    """Official 2: all tokens are lost where every slot after the first hole is dead."""

    meant = "scores"

    def clear(self, page: Page, gone: np.ndarray) -> None:
        page.live[gone] = False
        first = int(np.argmax(gone))
        if first and not page.live[first:].any():
            page.live[:] = False


class DepthNotHandedOn(SlotCache):
    """Official 3: what the layer before dropped stays."""

    meant = "depth"

    def stays(self, tokens: Layer, page: Page, s: np.ndarray, inherited) -> np.ndarray:
        return super().stays(tokens, page, s, inherited[:0])


class KeepsTies(SlotCache):
    """>= for >."""

    meant = "ties_drop"

    def stays(self, tokens: Layer, page: Page, s: np.ndarray, inherited) -> np.ndarray:
        return super().stays(tokens, page, np.where(s == self.threshold, np.inf, s), inherited)


class KeepsNaN(SlotCache):
    """not s <= threshold for s > threshold."""

    meant = "nan_drops"

    def stays(self, tokens: Layer, page: Page, s: np.ndarray, inherited) -> np.ndarray:
        return super().stays(tokens, page, np.where(np.isnan(s), np.inf, s), inherited)


class DelayOffByOne(SlotCache):
    """i - j < int_delay for <=."""

    meant = "delay"

    def stays(self, tokens: Layer, page: Page, s: np.ndarray, inherited) -> np.ndarray:
        late = (tokens.seen - page.position == self.config.int_delay) & (self.config.int_delay > 0)
        return super().stays(tokens, page, s, inherited) & ~(late & ~(s > self.threshold))


class DropsAfterAttending(SlotCache):
    """A token attends once more to those that it drops."""

    meant = "attention"

    def token(self, tokens: Layer, layer: int, q, k, v, q_int, k_int, beta: float, inherited):
        before, undropped = copy.deepcopy((self, tokens))
        _, left = super().token(tokens, layer, q, k, v, q_int, k_int, beta, inherited)
        before.insert(undropped, k, v, k_int)
        return before.attend(undropped, layer, q), left


class DropsItself(SlotCache):
    """A token is judged by its own score too."""

    meant = "self_stays"

    def token(self, tokens: Layer, layer: int, q, k, v, q_int, k_int, beta: float, inherited):
        out, left = super().token(tokens, layer, q, k, v, q_int, k_int, beta, inherited)
        if not q_int @ k_int / np.sqrt(len(q_int)) + beta > self.threshold:
            for page in tokens.pages:
                page.live[page.position == tokens.seen - 1] = False
        return out, left


class RenumbersPositions(SlotCache):
    """A token's position is the number of live tokens before it."""

    meant = "positions"

    def next_position(self, tokens: Layer) -> int:
        return sum(int(page.live.sum()) for page in tokens.pages)


class NoMaximum(SlotCache):
    """exp without the maximum taken off: infinite from 88 on."""

    meant = "softmax"

    def attend(self, tokens: Layer, layer: int, q: np.ndarray) -> np.ndarray:
        k, v = (np.concatenate([getattr(page, name)[page.live] for page in tokens.pages]) for name in ("k", "v"))
        heads = [x.reshape(len(x), self.config.n_head, -1).swapaxes(0, 1) for x in (q[None], k, v)]
        weights = np.exp(heads[0] @ heads[1].swapaxes(1, 2) * np.float32(self.config.attention_scale(layer)))
        return (weights / weights.sum(-1, keepdims=True) @ heads[2]).swapaxes(0, 1).ravel()


class ForgetsBeta(SlotCache):
    """The bias of the scores is left out."""

    meant = "scores"

    def scores(self, page: Page, q_int, beta: float) -> np.ndarray:
        return super().scores(page, q_int, 0.0)


class DoesNotScale(SlotCache):
    """q_int . k_int is not divided by sqrt(r)."""

    meant = "scores"

    def scores(self, page: Page, q_int, beta: float) -> np.ndarray:
        return super().scores(page, q_int * np.sqrt(np.float32(len(q_int))), beta)


class ScalesByChannels(SlotCache):
    """q . k is divided by sqrt(C), not by sqrt(D)."""

    meant = "softmax"

    def attend(self, tokens: Layer, layer: int, q: np.ndarray) -> np.ndarray:
        return super().attend(tokens, layer, q / np.float32(np.sqrt(self.config.n_head)))


class StaleSlot(SlotCache):
    """A slot that was used before keeps its old value."""

    meant = "slots_reused"

    def write(self, page: Page, slot: int, position: int, k, v, k_int) -> None:
        used = page.position[slot] or page.v[slot].any()
        super().write(page, slot, position, k, page.v[slot].copy() if used else v, k_int)

    def poison(self) -> None:
        """Left out: it would hide the old value."""


class AttendsToDeadSlots(SlotCache):
    """Slots without a live token get the weight 0, and 0 times a NaN is a NaN."""

    meant = "softmax"

    def attend(self, tokens: Layer, layer: int, q: np.ndarray) -> np.ndarray:
        return super().attend(tokens, layer, q) + sum(0 * page.v[~page.live].sum() for page in tokens.pages)


class ScoresInHalf(SlotCache):
    """Scores are computed in float16, though the declared type is float32."""

    meant = "real_scores"

    def scores(self, page: Page, q_int, beta: float) -> np.ndarray:
        return super().scores(page, q_int, beta).astype(np.float16).astype(np.float32)


BROKEN = [cls for cls in [*vars().values(), *vars(broken_histories).values()]
          if isinstance(cls, type) and hasattr(cls, "meant")]
