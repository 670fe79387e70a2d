"""How keys, values and weights are stored in fewer bits: the same bytes in NumPy and in C.

float16: beyond +-65504 becomes +-65504, as does NaN with its sign; then rounded to the nearest, ties to even.

int8: n in -127 .. 127 with one float32 scale for each group: a token's D channels of one head, or a column of a weight
matrix. All arithmetic is in float32, number by number:

    m = max |x| over the group
    inverse = 127 / m         0 when m < 2**-120: 127 / m could overflow, and the group reads back as zeros
    n = rint(x * inverse)     ties to even, clipped to -127 .. 127
    scale = m / 127
    read back: n * scale      the error is at most scale / 2, and a rounding

In a group with a NaN or an infinity, m and the scale are NaN or inf; n = 0 where x * inverse is NaN, and reads back as
NaN.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.weights import Model

STORAGES = ("float32", "float16", "int8")
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
FLOAT16_MAX, TINY = np.float32(65504), np.float32(2.0**-120)
COLUMNS = 1024  # quantized at once: so no weight matrix is in memory twice


def check_storage(argument: str, storage: str) -> str:
    """The storage type, one of STORAGES. Raises ValueError, naming the argument."""
    if storage not in STORAGES:
        raise ValueError(f"{argument} must be one of {', '.join(STORAGES)}, not {storage!r}")
    return storage


def stored(x: np.ndarray, kv: str, n_head: int) -> np.ndarray:  # [N, C] float32 -> [N, C] float32
    """Keys or values as they are read back from a cache that stores them as `kv`, one of STORAGES."""
    if kv == "int8":
        n, scale = _to_int8(x.reshape(len(x), n_head, x.shape[1] // n_head), axis=-1)
        return dequantized(n, scale).reshape(x.shape)
    if kv == "float16":
        size = np.where(np.abs(x) < FLOAT16_MAX, np.abs(x), FLOAT16_MAX)
        return np.copysign(size, x).astype(np.float16).astype(np.float32)
    return x


def quantized(w: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray | None]:  # [in, out] -> [in, out], [out]
    """A weight matrix as stored, and the scale of each output column for int8, else None.

    Raises ValueError for float16 when a value is beyond its range, and for a storage type that does not exist.
    """
    check_storage("storage", storage)
    if storage == "int8":
        n, scale = _to_int8(w.astype(np.float32), axis=0)
        return n, scale[0]
    largest = np.abs(w).max(initial=0)
    if storage == "float16" and not largest <= FLOAT16_MAX:
        raise ValueError(f"float16 holds numbers up to 65504, and there is {largest:.6g}: store it as float32 or int8")
    return w.astype(storage), None


def quantized_columns(w: np.ndarray, storage: str) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:  # [in, out]
    """A weight matrix COLUMNS columns at a time: the number of the first one, the columns as stored, their scales."""
    for first in range(0, w.shape[1], COLUMNS):
        yield first, *quantized(w[:, first : first + COLUMNS], storage)


def dequantized(w: np.ndarray, scale: np.ndarray | None) -> np.ndarray:  # -> float32
    """The float32 numbers that `quantized` stands for."""
    with np.errstate(over="ignore", invalid="ignore"):  # 127 * scale may round past the largest float32
        return w.astype(np.float32) if scale is None else w.astype(np.float32) * scale


def _to_int8(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:  # float32 -> int8, float32 with axis of 1
    m = np.abs(x).max(axis, keepdims=True, initial=0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(m >= TINY, np.float32(127) / m, np.float32(0))
        n = np.clip(np.rint(x * inverse), -127, 127)
    return np.where(np.isnan(n), 0, n).astype(np.int8), m / np.float32(127)


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

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the packed weights, in hexadecimal digits."""
        digest = hashlib.sha256()
        named = {"wte": self.wte, "head": self.head, "wpe": self.wpe, "ln_f.0": self.ln_f[0], "ln_f.1": self.ln_f[1]}
        named |= {f"{n}.{name}": x for n, layer in enumerate(self.layers) for name, x in layer.items()}
        for name, x in named.items():
            parts = [getattr(x, part, None) for part in ("panels", "w", "scale", "bias")]  # of a matrix of either kind
            for array in [x, *parts]:
                if isinstance(array, np.ndarray):
                    digest.update(f"{name} {array.dtype} {array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
