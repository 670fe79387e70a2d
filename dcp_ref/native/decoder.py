"""Tokens in, logits out, by csrc/decode.c: the twin of runtime/decoder.py.

A feed is one call of C; near the bound of the cache it is several, each with a piece of the rows (runtime/feeding.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.native import kernels
from dcp_ref.native.cache import NativeCache
from dcp_ref.native.extension import ffi, lib
from dcp_ref.native.memory import Batch, Drafts, c_batch
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.feeding import SPARE_BYTES, Piece, in_pieces, spared
from dcp_ref.runtime.lock import locked
from dcp_ref.runtime.precision import Packed

LAYER_NORMS = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")
MATRICES = {"c_attn": "attn.c_attn", "attn_c_proj": "attn.c_proj", "c_fc": "mlp.c_fc", "mlp_c_proj": "mlp.c_proj",
            "interaction": "attn.interaction"}  # the field of a dcp_layer: GPT-2's name


class NativeDecoder:
    """Walks the layers in C. It keeps all arrays that the structs of C point into."""

    def __init__(self, model: Model, cache: NativeCache, weights: str) -> None:
        self._cache, self.lock, config = cache, cache.lock, model.config
        self.weights = w = Packed(model, kernels, weights, cache.policy.learned)
        self._layers = ffi.new("dcp_layer[]", config.n_layer)
        for layer, (c, p) in enumerate(zip(self._layers, w.layers, strict=True)):
            c.scale = config.attention_scale(layer)
            for name in LAYER_NORMS:
                setattr(c, name.replace(".", "_"), ffi.from_buffer("float[]", p[name]))
            for name, ours in MATRICES.items():
                if ours in p:
                    setattr(c, name, p[ours].c[0])
            if cache.policy.learned:
                c.beta = p["attn.int_bias"][0]
        self._model = ffi.new("dcp_model *", {
            "wte": w.wte.c[0], "head": w.head.c[0], "wpe": ffi.from_buffer("float[]", w.wpe),
            "ln_f_weight": ffi.from_buffer("float[]", w.ln_f[0]), "ln_f_bias": ffi.from_buffer("float[]", w.ln_f[1]),
            "layer": self._layers, "epsilon": config.layer_norm_epsilon,
            "activation": kernels.KINDS[config.activation_function], "propagate_in_depth": config.propagate_in_depth})

    @locked
    def feed(self, handles: list[int], counts: list[int], ids: np.ndarray, wanted: np.ndarray, out: np.ndarray,
             drops: list | None = None, pinned: np.ndarray | None = None) -> None:
        """Appends counts[b] of the N ids to each sequence; out [wanted, V] gets the logits of the rows `wanted`.

        `wanted` is all rows, or each sequence's last. Whatever can fail comes before the call of C, which does all or
        nothing. `drops` gets each layer's pairs (row, position) of tokens that left it, int32 [n, 2]. `pinned`, bool
        [N], marks the tokens that no layer drops.
        Raises ValueError, CacheFull or MemoryError; no sequence has changed then.
        """
        try:
            self._decode(lambda: self._cache.batch(handles, counts, pinned), ids, wanted, out, drops)
        except CacheFull as full:
            self._in_pieces(full, handles, counts, ids, wanted, out, drops, pinned)

    def _decode(self, look: Callable[[], Batch], ids: np.ndarray, wanted: np.ndarray, out: np.ndarray,
                drops: list[np.ndarray] | None) -> None:
        """One call of C for the batch that `look` returns. `drops` gets what leaves each layer."""
        cache, starts, spare = self._cache, None, bytearray(SPARE_BYTES)
        c_ids, c_out = ffi.from_buffer("int64_t[]", ids), ffi.from_buffer("float[]", out[0])
        while True:
            batch = look()
            feed = ffi.new("dcp_feed *", (
                len(batch.counts), batch.c_sequences, batch.c_counts, c_ids, len(wanted) == len(ids)))
            feed.pinned = batch.pinned
            keep: Callable[[], object] = bool
            if drops is not None:
                keep = partial(_Drops(feed, len(self._layers), sum(batch.starts) + len(ids)).add_to, drops)
            workspace = cache.room(batch, lib.dcp_decode_bytes(cache.c, self._model, feed))
            error = lib.dcp_decode(c_out, cache.c, self._model, feed, ffi.from_buffer(workspace), len(workspace))
            if not error:
                if drops is not None:
                    spared(keep, spare)
                return
            # A signal's handler has released or fed a sequence meanwhile, or taken the room: look again.
            if error == lib.DCP_EINVAL and batch.starts == starts:
                raise RuntimeError("a sequence is in the middle of a step: finish it layer by layer")
            starts = batch.starts

    def _in_pieces(self, full: CacheFull, handles: list[int], counts: list[int], ids: np.ndarray, wanted: np.ndarray,
                   out: np.ndarray, drops: list[np.ndarray] | None, pinned: np.ndarray | None) -> None:
        """The same as `_decode`, in several calls of C that feed drafts, which the sequences then become all at once.

        Raises `full` when no pieces fit.
        """
        cache, every = self._cache, len(wanted) == len(ids)
        if not cache.may_drop:
            raise full
        while True:
            batch, drafts = cache.batch(handles, counts, pinned), Drafts(cache.c)
            parts, dropped, spare = list[list[np.ndarray]](), list[np.ndarray](), bytearray(SPARE_BYTES)
            keep = bool if drops is None else partial(drops.extend, dropped)

            def feed(piece: Piece, drafts=drafts, parts=parts) -> None:
                sequences, (rows, place) = drafts.sequences[piece.first : piece.end], piece.wanted(every)
                pins = None if pinned is None else pinned[piece.start : piece.stop]
                found = None if drops is None else list[np.ndarray]()
                self._decode(lambda: c_batch([], sequences, piece.counts, pins), ids[piece.start : piece.stop],
                             rows, out[place], found)
                parts.append([pairs + np.array([piece.start, 0], np.int32) for pairs in found or ()])

            try:
                drafts.fork(batch)
                in_pieces(counts, feed)
                dropped += map(np.concatenate, zip(*parts, strict=True))
                if drafts.adopt(batch):
                    spared(keep, spare)
                    return
                drafts.release()
            except CacheFull:
                drafts.release()
                raise full from None
            except BaseException:  # an interrupt too: nobody else would release them
                drafts.release()
                raise


class _Drops:
    """Arrays for what a feed drops, layer by layer."""

    def __init__(self, feed: Any, n_layer: int, room: int) -> None:
        self._pairs, self._dropped = np.zeros(n_layer, np.uintp), np.empty((n_layer, room, 2), np.int32)
        feed.dropped, feed.room = ffi.from_buffer("int32_t[]", self._dropped), room
        feed.pairs = ffi.from_buffer("size_t[]", self._pairs)

    def add_to(self, layers: list[np.ndarray]) -> None:
        """Append the array of each layer to the list: all of them, or none."""
        layers += [self._dropped[layer, :n] for layer, n in enumerate(self._pairs.tolist())]  # fastest with ints
