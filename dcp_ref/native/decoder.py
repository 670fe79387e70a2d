"""Tokens in, logits out, by csrc/decode.c: the twin of runtime/decoder.py. A feed is one call of C."""

from typing import Any

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.native import kernels
from dcp_ref.native.cache import NativeCache
from dcp_ref.native.extension import ffi, lib
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
        cache, starts = self._cache, None
        c_ids, c_out = ffi.from_buffer("int64_t[]", ids), ffi.from_buffer("float[]", out[0])
        all_rows = len(wanted) == len(ids)
        while True:
            batch = cache.batch(handles, counts, pinned)
            feed = ffi.new("dcp_feed *", (len(handles), batch.c_sequences, batch.c_counts, c_ids, all_rows))
            feed.pinned = batch.pinned
            record = None if drops is None else _Drops(feed, len(self._layers), sum(batch.starts) + len(ids))
            workspace = cache.room(batch, lib.dcp_decode_bytes(cache.c, self._model, feed))
            error = lib.dcp_decode(c_out, cache.c, self._model, feed, ffi.from_buffer(workspace), len(workspace))
            if not error:
                break
            # A signal's handler has released or fed a sequence meanwhile, or taken the room: look again.
            if error == lib.DCP_EINVAL and batch.starts == starts:
                raise RuntimeError("a sequence is in the middle of a step: finish it layer by layer")
            starts = batch.starts
        if drops is not None and record is not None:
            drops += record.layers()


class _Drops:
    """Arrays for what a feed drops, layer by layer."""

    def __init__(self, feed: Any, n_layer: int, room: int) -> None:
        self._pairs, self._dropped = np.zeros(n_layer, np.uintp), np.empty((n_layer, room, 2), np.int32)
        feed.dropped, feed.room = ffi.from_buffer("int32_t[]", self._dropped), room
        feed.pairs = ffi.from_buffer("size_t[]", self._pairs)

    def layers(self) -> list[np.ndarray]:
        return [self._dropped[layer, :n] for layer, n in enumerate(self._pairs.tolist())]  # slices by ints are fastest
