"""What the pages of a sequence hold, as arrays with a row a token, and back: csrc/dcp.h says what stands where."""

from itertools import chain
from typing import Any

import numpy as np

from dcp_ref.native.extension import ffi, lib
from dcp_ref.native.memory import Drafts
from dcp_ref.runtime.lock import locked
from dcp_ref.runtime.saving import Layer, Saved

LANES = 32  # DCP_LANES


def fields(cache: Any, n: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each field of n tokens of a NativeCache's layer."""
    H, C = cache.config.n_head, cache.config.n_embd
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "position": ("int32", (n,)), "slot": ("int32", (n,)), "pinned": ("bool", (n,)),
        "k": (cache.kv, (n, C)), "v": (cache.kv, (n, C)),
        "k_int": ("float32", (n, cache.policy.rank(cache.config)))}
    if cache.kv == "int8":
        found |= {"k_scale": ("float32", (n, H)), "v_scale": ("float32", (n, H))}
    if cache.policy.heavy is not None:
        found["attention"] = ("float32", (n, H))
    return found


@locked
def export(cache: Any, sequence: int) -> Saved:
    """The live tokens of a sequence. Raises ValueError when it is unknown."""
    draft = Drafts(cache.c)  # which does not change if a signal's handler feeds the sequence meanwhile
    try:
        draft.fork(cache.batch([sequence], [0]))
        found = draft.sequences[0].c
        layers = [found.layer[layer] for layer in range(cache.config.n_layer)]
        return Saved(layers[0].seen, [read_layer(cache, slots, found.pinned) for slots in layers])
    finally:
        draft.release()


@locked
def restore(cache: Any, saved: Saved) -> int:
    """A handle of a new sequence with these tokens, in the same slots; `saving.read` has checked them.

    Raises CacheFull past the cache's bound, MemoryError; nothing has changed then.
    """
    bits = [bitmaps(cache, layer) for layer in saved.layers]
    pages, bitmap = ffi.new("size_t[]", list(map(len, bits))), ffi.new("uint32_t[]", list(chain(*bits)))
    handle = cache.new_sequence()
    try:
        found = cache.batch([handle], [0]).sequences[0].c
        while lib.dcp_sequence_fill(cache.c, found, saved.seen, pages, bitmap) != lib.DCP_OK:
            cache.make_free(len(bitmap))
        for layer, tokens in enumerate(saved.layers):
            write_layer(cache, found.layer[layer], tokens)
        for j in saved.layers[0]["position"][saved.layers[0]["pinned"]].tolist():
            found.pinned[j // 32] |= 1 << j % 32
            found.pins = 1
        return handle
    except BaseException:  # an interrupt too: nobody else would release it
        cache.release(handle)
        raise


def read_layer(cache: Any, slots: Any, pinned: Any) -> Layer:
    """The live tokens of a dcp_slots, by position; `pinned` is the sequence's bitmap of positions."""
    parts = [_read(cache, slots.page[p], p, _live(slots.bitmap[p])) for p in range(slots.pages)]
    for part in parts:
        part["pinned"] = np.array([pinned[j // 32] >> j % 32 & 1 for j in part["position"].tolist()], bool)
    empty = {name: np.zeros(shape, dtype) for name, (dtype, shape) in fields(cache, 0).items()}
    whole = {name: np.concatenate([part[name] for part in [empty, *parts]]) for name in empty}
    order = np.argsort(whole["position"])
    return {name: x[order] for name, x in whole.items()}


def bitmaps(cache: Any, layer: Layer) -> list[int]:
    """The bitmap of each page that the layer's tokens need."""
    found = [0] * (-(-len(layer["slot"]) // cache.page_slots))
    for slot in layer["slot"].tolist():
        found[slot // cache.page_slots] |= 1 << slot % cache.page_slots
    return found


def write_layer(cache: Any, slots: Any, layer: Layer) -> None:
    """Fill the pages of a dcp_slots, whose live slots are the layer's."""
    page_of, slot_of = np.divmod(layer["slot"], cache.page_slots)
    for p in range(slots.pages):
        here = page_of == p
        _write(cache, slots.page[p], slot_of[here], {name: x[here] for name, x in layer.items()})


def _live(bitmap: int) -> np.ndarray:
    return np.flatnonzero([bitmap >> slot & 1 for slot in range(LANES)])


class _Page:
    """Views of a page's areas: keys [words, slot], values [groups, in a group, ...], rest [rows, slot]."""

    def __init__(self, cache: Any, page: Any) -> None:
        c, dtype = cache.c, np.dtype(cache.kv)
        self.shared = 4 // dtype.itemsize  # numbers in a 32-bit word
        self.H, self.D, panels = c.shape.heads, c.shape.head_dim, c.v_panels
        keys, rest, values = (np.frombuffer(ffi.buffer(area, size), np.uint8)
                              for area, size in zip(page.area, c.pool.area_bytes, strict=True))
        words, groups = -(-self.D // self.shared), -(-cache.page_slots // self.shared)
        numbers = self.H * words * LANES * self.shared
        self.keys = keys.view(dtype)[:numbers].reshape(self.H, words, LANES, self.shared).transpose(2, 0, 1, 3)
        numbers = self.H * panels * groups * LANES * self.shared
        self.values = values.view(dtype)[:numbers].reshape(
            self.H, panels, groups, LANES, self.shared).transpose(2, 4, 0, 1, 3)
        self.rest = rest.view(np.float32).reshape(-1, LANES).T
        field = [offset // (4 * LANES) for offset in c.field]
        self.position = self.rest.view(np.int32)[:, field[lib.DCP_POSITION]]
        self.columns = {"k_int": (field[lib.DCP_K_INT], c.shape.rank), "k_scale": (field[lib.DCP_K_SCALE], self.H),
                        "v_scale": (field[lib.DCP_V_SCALE], self.H), "attention": (field[lib.DCP_SUMS], self.H)}


def _read(cache: Any, page: Any, p: int, slot: np.ndarray) -> Layer:
    view, n = _Page(cache, page), len(slot)
    keys, values = view.keys[slot], view.values[slot // view.shared, slot % view.shared]
    layer = {"position": view.position[slot], "slot": (p * cache.page_slots + slot).astype(np.int32)}
    for name, x in (("k", keys), ("v", values)):
        layer[name] = x.reshape(n, view.H, -1)[:, :, : view.D].reshape(n, -1)
    for name in fields(cache, n):
        if name in view.columns:
            first, width = view.columns[name]
            layer[name] = view.rest[slot, first : first + width]
    return layer


def _write(cache: Any, page: Any, slot: np.ndarray, layer: Layer) -> None:
    view, n = _Page(cache, page), len(slot)
    view.position[slot] = layer["position"]
    for name, target, at in (("k", view.keys, slot), ("v", view.values, (slot // view.shared, slot % view.shared))):
        shape = target[at].shape
        padded = np.zeros((n, view.H, int(np.prod(shape[2:]))), target.dtype)
        padded[:, :, : view.D] = layer[name].reshape(n, view.H, view.D)
        target[at] = padded.reshape(shape)
    for name, x in layer.items():
        if name in view.columns:
            first, width = view.columns[name]
            view.rest[slot, first : first + width] = x
