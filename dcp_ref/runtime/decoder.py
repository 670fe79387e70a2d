"""The layers of `model.py` on packed weights, one row a token, and a cache in place of the mask."""

from typing import Any

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.feeding import SPARE_BYTES, Piece, in_pieces, spared
from dcp_ref.runtime.lock import locked
from dcp_ref.runtime.precision import Packed


class Decoder:
    """Walks the layers in Python, with NumPy's kernels and cache; or with C's, as an oracle of csrc/decode.c."""

    def __init__(self, model: Model, kernels: Any, cache: Any, weights: str, threads: int = 0) -> None:
        self.config, self.threads, self.kernels = model.config, threads, kernels
        self._cache, self.lock = cache, cache.lock
        self.weights = Packed(model, kernels, weights, cache.policy.rank(model.config) > 0)

    @locked
    def feed(self, handles: list[int], counts: list[int], ids: np.ndarray, wanted: np.ndarray, out: np.ndarray,
             drops: list | None = None, pinned: np.ndarray | None = None) -> None:
        """Appends counts[b] of the N ids to each sequence; out [wanted, V] gets the logits of the rows `wanted`.

        The sequences change all at once, at the end. If a signal's handler fed one meanwhile, the feed begins again.
        `drops` gets each layer's pairs (row, position) of tokens that left it, int32 [n, 2]. `pinned`, bool [N], marks
        the tokens that no layer drops.
        Raises ValueError, CacheFull or MemoryError; no sequence has changed then.
        """
        committed, dropped, spare = False, list[np.ndarray](), bytearray(SPARE_BYTES)
        keep = (lambda: drops.extend(dropped)) if drops is not None else bool
        while not committed:
            batch = self._cache.batch(handles, counts, pinned)
            draft = self._cache.draft(batch)
            dropped = self._fill(batch, draft, ids, wanted, out)
            committed = self._cache.commit(batch, draft)
        if drops is not None:
            spared(keep, spare)

    def _fill(self, batch: Any, draft: Any, ids: np.ndarray, wanted: np.ndarray, out: np.ndarray) -> list[np.ndarray]:
        """Feeds the draft: at once if there is room, else in pieces. Returns what each layer dropped."""
        cache, every = self._cache, len(wanted) == len(ids)
        try:
            cache.check_room(batch)
            out[...], dropped = self.walk(draft, ids, wanted)
            return dropped
        except CacheFull as full:
            if not cache.may_drop:
                raise
            found: list[list[np.ndarray]] = [[] for _ in self.weights.layers]

            def feed(piece: Piece) -> None:
                part = piece.of(draft)
                cache.check_room(part, draft)
                rows, place = piece.wanted(every)
                out[place], dropped = self.walk(part, ids[piece.start : piece.stop], rows)
                for layer, pairs in zip(found, dropped, strict=True):
                    layer.append(pairs + np.array([piece.start, 0], np.int32))

            try:
                in_pieces(batch.counts, feed)
            except CacheFull:
                raise full from None
            return [np.concatenate(layer) for layer in found]

    def walk(self, batch: Any, ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        # int64 [N], [wanted] -> [wanted, V]
        """A batch's tokens through all layers: the logits of the rows `wanted`, and what each layer dropped."""
        kernels, w, threads, config, C = self.kernels, self.weights, self.threads, self.config, self.config.n_embd
        r = self._cache.policy.rank(config)
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int64)
                                    for start, n in zip(batch.starts, batch.counts, strict=True)])
        x = kernels.embedding(ids, positions, w.wte, w.wpe, threads)
        drops: list[np.ndarray] = []
        interaction: dict[str, Any] = {}
        for layer, p in enumerate(w.layers):
            n = kernels.layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon, threads)
            qkv = kernels.linear(n, p["attn.c_attn"], threads=threads)
            if r > 0:
                both = kernels.linear(n, p["attn.interaction"], threads=threads)
                interaction = {"q_int": both[:, :r], "k_int": both[:, r:], "beta": float(p["attn.int_bias"][0])}
            inherited = drops[-1] if drops and config.propagate_in_depth else None
            y, dropped = self._cache.step(
                layer, batch, qkv[:, :C], qkv[:, C : 2 * C], qkv[:, 2 * C :], **interaction, inherited=inherited)
            drops.append(dropped)
            if layer == config.n_layer - 1:  # only wanted rows go on; the others were needed to fill the cache
                x, y = x[wanted], y[wanted]
            x = kernels.linear(y, p["attn.c_proj"], x, threads)
            n = kernels.layer_norm(x, p["ln_2.weight"], p["ln_2.bias"], config.layer_norm_epsilon, threads)
            hidden = kernels.linear(n, p["mlp.c_fc"], threads=threads)
            hidden = kernels.activation(hidden, config.activation_function, threads)
            x = kernels.linear(hidden, p["mlp.c_proj"], x, threads)
        x = kernels.layer_norm(x, *w.ln_f, config.layer_norm_epsilon, threads)
        return kernels.linear(x, w.head, threads=threads), drops
