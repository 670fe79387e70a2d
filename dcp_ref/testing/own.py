"""This package's two caches in the form that an author's cache has: what passes, and how an adapter looks."""

from typing import Any

import numpy as np

from dcp_ref.config import Config
from dcp_ref.policies import Policy
from dcp_ref.runtime import saving
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.saving import Saved
from dcp_ref.testing.running import FEATURES


class OwnNumpy:
    """KVCache. It reserves room for all layers of a step at once, so layer 0 is where a step begins."""

    supports = frozenset(FEATURES)
    page_slots: int | None = None
    saving: Any = saving

    def __init__(self, cache: Any) -> None:
        self.cache, self.batch = cache, None

    @classmethod
    def make(cls, config: Config, policy: Policy, threshold: float = 0.0, kv: str = "float32") -> "OwnNumpy":
        """A new cache for models of this shape."""
        return cls(KVCache(config, policy=policy, threshold=threshold, kv=kv))

    def new(self) -> int:
        """A new, empty sequence."""
        return self.cache.new_sequence()

    def fork(self, handle: int) -> int:
        """A sequence of its own with the same tokens."""
        return self.cache.fork(handle)

    def save(self, handle: int) -> Saved:
        """What a file would hold of the sequence."""
        return self.saving.export(self.cache, handle)

    def restore(self, state: Saved) -> int:
        """A sequence made from what was saved."""
        return self.saving.restore(self.cache, state)

    def release(self, handle: int) -> None:
        """The sequence is no longer used."""
        self.cache.release(handle)

    def step(self, layer: int, batch: list[tuple[int, int]], q, k, v, q_int, k_int, beta: float, inherited,
             pinned=None):
        """Decode one layer: out [N, C], and the pairs (row, position) that left it."""
        if layer == 0:
            self.batch = self.cache.reserve([handle for handle, _ in batch], [count for _, count in batch], pinned)
        return self.cache.step(layer, self.batch, q, k, v, q_int, k_int, beta, inherited)

    def live(self, handle: int, layer: int) -> np.ndarray:
        """Positions of the live tokens."""
        return self.cache.live_positions(handle, layer)

    def bytes_owned(self) -> int:
        """Bytes of memory that sequences hold."""
        return self.cache.stats().bytes_owned


class OwnNative(OwnNumpy):
    """NativeCache, with pages so small that short histories cross them."""

    page_slots = 5

    @classmethod
    def make(cls, config: Config, policy: Policy, threshold: float = 0.0, kv: str = "float32") -> "OwnNative":
        """A new cache. Raises RuntimeError where the extension is not built."""
        from dcp_ref.native import saving
        from dcp_ref.native.cache import NativeCache

        cls.saving = saving
        return cls(NativeCache(config, cls.page_slots, policy=policy, threshold=threshold, kv=kv))
