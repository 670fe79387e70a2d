"""The layers of `model.py` on packed weights, one row a token, and a cache in place of the mask."""

from typing import Any

import numpy as np

from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.lock import locked

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class Packed:
    """A model's weights as its kernels read them: `wte`, `head`, `wpe`, `ln_f`, and a dict for each layer.

    Tensors are packed one by one, and the file's pages of each are let go: so weights are in memory once.
    Raises ValueError naming a tensor that the storage type cannot hold.
    """

    def __init__(self, model: Model, kernels: Any, storage: str, learned: bool) -> None:
        params, config, memory = model.params, model.config, kernels.shared_memory()

        def pack(name: str, w: np.ndarray, bias: np.ndarray | None = None, storage: str = storage) -> Any:
            try:
                return kernels.pack(w, bias, storage, memory)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            finally:
                files.forget(w)

        self.wte = pack("wte.weight", params["wte.weight"].T)
        self.head = self.wte if config.tie_word_embeddings else pack("lm_head.weight", params["lm_head.weight"].T)
        small = {name: np.array(x, np.float32) for name, x in params.items()
                 if x.ndim == 1 or name == "wpe.weight"}  # float32 whatever the storage type
        self.wpe, self.ln_f = small["wpe.weight"], (small["ln_f.weight"], small["ln_f.bias"])
        self.layers: list[dict[str, Any]] = []
        for layer in range(config.n_layer):
            h = f"h.{layer}."
            own: dict[str, Any] = {name[len(h) :]: x for name, x in small.items() if name.startswith(h)}
            for name in MATRICES:
                own[name] = pack(f"{h}{name}.weight", params[f"{h}{name}.weight"], own[f"{name}.bias"])
            if learned:  # always float32: rounding alone must not decide a drop
                w = np.concatenate([params[f"{h}attn.q_int.weight"], params[f"{h}attn.k_int.weight"]], axis=1)
                own["attn.interaction"] = pack(f"{h}attn.q_int.weight", w, storage="float32")
            self.layers.append(own)


class Decoder:
    """Walks the layers in Python, with NumPy's kernels and cache; or with C's, as an oracle of csrc/decode.c."""

    def __init__(self, model: Model, kernels: Any, cache: Any, weights: str, threads: int = 0) -> None:
        self.config, self.threads, self.kernels = model.config, threads, kernels
        self._cache, self.lock = cache, cache.lock
        self.weights = Packed(model, kernels, weights, cache.policy.learned)

    @locked
    def feed(self, handles: list[int], counts: list[int], ids: np.ndarray, wanted: np.ndarray, out: np.ndarray,
             drops: list | None = None) -> None:
        """Appends counts[b] of the N ids to each sequence; out [wanted, V] gets the logits of the rows `wanted`.

        The sequences change all at once, at the end. If a signal's handler fed one meanwhile, the feed begins again.
        `drops` gets each layer's pairs (row, position) of tokens that left it, int32 [n, 2].
        Raises ValueError, CacheFull or MemoryError; no sequence has changed then.
        """
        committed = False
        while not committed:
            batch = self._cache.reserve(handles, counts)
            draft = self._cache.draft(batch)
            out[...], dropped = self.walk(draft, ids, wanted)
            committed = self._cache.commit(batch, draft)
        if drops is not None:
            drops += dropped

    def walk(self, batch: Any, ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        # int64 [N], [wanted] -> [wanted, V]
        """A batch's tokens through all layers: the logits of the rows `wanted`, and what each layer dropped."""
        kernels, w, threads, config, C = self.kernels, self.weights, self.threads, self.config, self.config.n_embd
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int64)
                                    for start, n in zip(batch.starts, batch.counts, strict=True)])
        x = kernels.embedding(ids, positions, w.wte, w.wpe, threads)
        drops: list[np.ndarray] = []
        interaction: dict[str, Any] = {}
        for layer, p in enumerate(w.layers):
            n = kernels.layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon, threads)
            qkv = kernels.linear(n, p["attn.c_attn"], threads=threads)
            if self._cache.policy.learned:
                both, r = kernels.linear(n, p["attn.interaction"], threads=threads), config.int_n_embd
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
