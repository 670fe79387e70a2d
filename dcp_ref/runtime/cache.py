"""The key-value cache as a plain list of live tokens: what every other cache must equal.

Decoding token i in a layer:
    (0) drop the tokens that the layer before dropped, where layers do not act alone (`propagate_in_depth`)
    (1) score every live token:  s_j = q_int_i . k_int_j / sqrt(r) + beta
    (2) drop all but those with s_j > 0, for good
    (3) insert token i, which never drops itself
    (4) attend over the live tokens
"""

import math
from collections.abc import Iterable

import numpy as np

from dcp_ref.attention import merge_heads, split_heads
from dcp_ref.config import Config
from dcp_ref.layers import softmax
from dcp_ref.runtime.block import Handles, Stats, check_block, check_counts, check_layer, check_pages


class Tokens:
    """The live tokens of one sequence in one layer: parallel arrays, by position. `seen` counts all that ever came."""

    def __init__(self, config: Config) -> None:
        self.seen = 0
        self.position = np.zeros(0, np.int64)
        self.k = np.zeros((0, config.n_embd), np.float32)
        self.v = np.zeros((0, config.n_embd), np.float32)
        self.k_int = np.zeros((0, config.int_n_embd or 0), np.float32)

    def drop(self, gone: np.ndarray) -> None:  # [N] bool
        """Lose the marked tokens."""
        self.position, self.k, self.v, self.k_int = (x[~gone] for x in (self.position, self.k, self.v, self.k_int))

    def insert(self, k: np.ndarray, v: np.ndarray, k_int: np.ndarray) -> None:  # [C], [C], [r]
        """Add the next token."""
        self.position = np.append(self.position, self.seen)
        self.k, self.v, self.k_int = np.vstack([self.k, k]), np.vstack([self.v, v]), np.vstack([self.k_int, k_int])
        self.seen += 1


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_head: int, scale: float) -> np.ndarray:
    """softmax(q k^T scale) v over the live tokens, head by head: [C], [N, C], [N, C] -> [C]."""
    q, k, v = (split_heads(x, n_head) for x in (q[None], k, v))
    p, _ = softmax(q @ k.swapaxes(-1, -2) * scale)
    return merge_heads(p @ v)[0]


class KVCache:
    """Keys, values and interaction keys of the live tokens of several sequences, float32.

    Arrays need no pages, but are counted in them (`stats`, `max_bytes`) as NativeCache's are: a (layer, sequence) owns
    as many pages of `page_slots` slots as its live tokens need, and pages that it gives back are kept for others.
    """

    def __init__(self, config: Config, page_slots: int = 32, max_bytes: int | None = None) -> None:
        check_pages(page_slots, max_bytes)
        self.config, self.page_slots, self.max_bytes = config, page_slots, max_bytes
        self._sequences = Handles()  # each a list of one Tokens a layer
        self._pages = 0  # owned and free

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        return self._sequences.add([Tokens(self.config) for _ in range(self.config.n_layer)])

    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown."""
        self._sequences.pop(sequence)

    def reserve(self, sequences: Iterable[int], counts: Iterable[int]) -> None:
        """Make room in every layer for counts[b] more tokens of sequences[b]: then the steps of these cannot fail.

        Raises ValueError (unknown or repeated sequence, too many tokens) or MemoryError; nothing has changed then.
        """
        layers = self._sequences.distinct(sequences)
        counts = check_counts(self.config, [max(tokens.seen for tokens in layer) for layer in layers], counts)
        pages = self._owned() + sum(
            self._more_pages(tokens, count) for layer, count in zip(layers, counts, strict=True) for tokens in layer)
        if self.max_bytes is not None and pages * self._page_bytes() > self.max_bytes:
            raise MemoryError(f"the cache needs {pages * self._page_bytes()} bytes, its bound is {self.max_bytes}")
        self._pages = max(self._pages, pages)

    def step(self, layer: int, sequences: Iterable[int], starts: Iterable[int], counts: Iterable[int],
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a ragged block: N = sum(counts) rows, those of sequences[0] first.

        sequences[b] has counts[b] rows, at positions starts[b], starts[b] + 1, ...; starts[b] tokens came before.
        q, k, v [N, C]; q_int, k_int [N, r], None when the model has no interaction weights: nothing is dropped then.
        Returns out [N, C] and dropped, int32 [n, 2]: (row, position) of each token that left this layer, in ascending
        order. The next layer takes it as `inherited` under `propagate_in_depth`.
        Raises TypeError or ValueError naming the argument, RuntimeError without `reserve`; nothing has changed then.
        """
        layer = check_layer(self.config, layer)
        tokens = [layers[layer] for layers in self._sequences.distinct(sequences)]
        block = check_block(
            self.config, [t.seen for t in tokens], starts, counts, q, k, v, q_int, k_int, beta, inherited)
        if self._owned() + sum(map(self._more_pages, tokens, block.counts)) > self._pages:
            raise RuntimeError("step without the reserve that it needs")
        out, dropped = np.empty_like(block.q), []
        row_tokens = [t for t, count in zip(tokens, block.counts, strict=True) for _ in range(count)]
        for row, t in enumerate(row_tokens):
            gone = np.isin(t.position, block.inherited[block.inherited[:, 0] == row, 1])
            if self.config.int_n_embd is not None:
                s = t.k_int @ block.q_int[row] / math.sqrt(self.config.int_n_embd) + block.beta
                gone |= ~(s > 0)  # a tie or a NaN drops
            dropped += [(row, position) for position in t.position[gone]]
            t.drop(gone)
            t.insert(block.k[row], block.v[row], block.k_int[row])
            out[row] = attend(block.q[row], t.k, t.v, self.config.n_head, self.config.attention_scale(layer))
        return out, np.array(dropped, np.int32).reshape(-1, 2)

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        return self._sequences[sequence][check_layer(self.config, layer)].position.copy()

    def stats(self) -> Stats:
        """Totals over layers and sequences."""
        live = sum(len(tokens.position) for layers in self._sequences for tokens in layers)
        owned = self._owned()
        return Stats(live, owned * self.page_slots, owned * self._page_bytes(), self._pages * self._page_bytes())

    def _owned(self) -> int:
        return sum(-(-len(tokens.position) // self.page_slots) for layers in self._sequences for tokens in layers)

    def _more_pages(self, tokens: Tokens, count: int) -> int:
        """Pages that `count` more tokens could need."""
        live = len(tokens.position)
        return -(-(live + count) // self.page_slots) - -(-live // self.page_slots)

    def _page_bytes(self) -> int:
        """Slots of k [C], v [C], k_int [r] and position, each of the four rounded up to 64 bytes."""
        widths = (self.config.n_embd, self.config.n_embd, self.config.int_n_embd or 0, 1)
        return sum(-(-self.page_slots * width * 4 // 64) * 64 for width in widths)
