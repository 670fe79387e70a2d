"""The key-value cache as a plain list of live tokens: what every other cache must equal.

Decoding token i in a layer:
    (0) drop the tokens that the layer before dropped, where layers do not act alone (`propagate_in_depth`)
    (1) score every live token:  s_j = q_int_i . k_int_j / sqrt(r) + beta
    (2) drop all but those with s_j > threshold or i - j <= int_delay, for good; or those that another policy drops
        (policies.py)
    (3) insert token i, which never drops itself
    (4) attend over the live tokens
"""

import copy
import math
from collections.abc import Iterable

import numpy as np

from dcp_ref.attention import merge_heads, split_heads
from dcp_ref.config import Config
from dcp_ref.layers import softmax
from dcp_ref.runtime.block import (
    Block,
    Handles,
    Stats,
    check_block,
    check_bytes,
    check_counts,
    check_layer,
    check_pages,
    page_bytes,
)
from dcp_ref.runtime.policies import Policy, float32_threshold, for_model
from dcp_ref.runtime.storage import check_storage, stored


class Tokens:
    """The live tokens of one sequence in one layer: parallel arrays, by position. `seen` counts all that ever came.

    `attention` is what each token got so far, its own row included: softmax weights, heads summed.
    """

    def __init__(self, channels: int, rank: int) -> None:
        self.seen = 0
        self.position = np.zeros(0, np.int64)
        self.k = np.zeros((0, channels), np.float32)
        self.v = np.zeros((0, channels), np.float32)
        self.k_int = np.zeros((0, rank), np.float32)
        self.attention = np.zeros(0, np.float32)

    def drop(self, gone: np.ndarray) -> None:  # [N] bool
        """Lose the marked tokens."""
        self.position, self.k, self.v, self.k_int, self.attention = (
            x[~gone] for x in (self.position, self.k, self.v, self.k_int, self.attention))

    def insert(self, k: np.ndarray, v: np.ndarray, k_int: np.ndarray) -> None:  # [C], [C], [r]
        """Add the next token."""
        self.position, self.attention = np.append(self.position, self.seen), np.append(self.attention, np.float32(0))
        self.k, self.v, self.k_int = np.vstack([self.k, k]), np.vstack([self.v, v]), np.vstack([self.k_int, k_int])
        self.seen += 1


def attend(q, k, v, n_head, scale):  # [C], [N, C], [N, C] -> [C], [N]
    """softmax(q k^T scale) v over the live tokens, head by head; and the weights, heads summed."""
    q, k, v = (split_heads(x, n_head) for x in (q[None], k, v))
    p, _ = softmax(q @ k.swapaxes(-1, -2) * scale)
    return merge_heads(p @ v)[0], p.sum(0)[0]


class KVCache:
    """Keys, values and interaction keys of the live tokens of several sequences.

    `policy` is what decides a drop: None is the learned scores where the model has them, else nothing. `kv` is how keys
    and values are stored, one of storage.STORAGES: here they are kept as they are read back. k_int is always float32.
    `threshold`, in float32 as scores are, is what they must exceed.
    Arrays need no pages, but are counted in them (`stats`, `max_bytes`) as NativeCache's are: a (layer, sequence) owns
    as many pages of `page_slots` slots as its live tokens need, and pages that it gives back are kept for others.
    Raises TypeError or ValueError naming the argument.
    """

    def __init__(self, config: Config, page_slots: int = 32, max_bytes: int | None = None, kv: str = "float32",
                 policy: Policy | None = None, threshold: float = 0.0) -> None:
        check_pages(page_slots, max_bytes)
        self.config, self.page_slots, self.max_bytes = config, page_slots, max_bytes
        self.kv, self.policy = check_storage("kv", kv), for_model(config, policy)
        self.threshold = float32_threshold(threshold, self.policy)
        self._sequences = Handles()  # each a list of one Tokens a layer
        self._pages = 0  # owned and free

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        rank = self.policy.rank(self.config)
        return self._sequences.add([Tokens(self.config.n_embd, rank) for _ in range(self.config.n_layer)])

    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens; what is fed to one does not reach the other.

        Raises ValueError when the sequence is unknown, CacheFull past max_bytes; nothing has changed then.
        """
        child = copy.deepcopy(self._sequences[sequence])
        self._grow(sum(map(self._pages_of, child)))
        return self._sequences.add(child)

    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown."""
        self._sequences.pop(sequence)

    def reserve(self, sequences: Iterable[int], counts: Iterable[int]) -> None:
        """Make room in every layer for counts[b] more tokens of sequences[b]: then the steps of these cannot fail.

        Raises ValueError (unknown or repeated sequence, too many tokens) or CacheFull; nothing has changed then.
        """
        layers = self._sequences.distinct(sequences)
        counts = check_counts(self.config, [max(tokens.seen for tokens in layer) for layer in layers], counts)
        self._grow(sum(
            self._more_pages(tokens, count) for layer, count in zip(layers, counts, strict=True) for tokens in layer))

    def trim(self) -> None:
        """Give the free pages back to the operating system."""
        self._pages = self._owned()

    def step(self, layer: int, sequences: Iterable[int], starts: Iterable[int], counts: Iterable[int],
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a ragged block: N = sum(counts) rows, those of sequences[0] first.

        sequences[b] has counts[b] rows, at positions starts[b], starts[b] + 1, ...; starts[b] tokens came before.
        q, k, v [N, C]; q_int, k_int [N, r], None unless the policy is learned.
        Returns out [N, C], fresh unless one that a step returned is given to be filled again, and dropped, int32
        [n, 2]: (row, position) of each token that left this layer, in ascending order. The next layer takes it as
        `inherited` under `propagate_in_depth`.
        Raises TypeError or ValueError naming the argument, RuntimeError without `reserve`; nothing has changed then.
        """
        layer = check_layer(self.config, layer)
        tokens = [layers[layer] for layers in self._sequences.distinct(sequences)]
        block = check_block(
            self.config, [t.seen for t in tokens], starts, counts, q, k, v, q_int, k_int, beta, inherited, self.policy)
        if out is not None and (out.shape != block.q.shape or out.dtype != np.float32):
            raise ValueError(f"out must be what a step returned, float32 {block.q.shape}")
        if self._owned() + sum(map(self._more_pages, tokens, block.counts)) > self._pages:
            raise RuntimeError("step without the reserve that it needs")
        n_head, scale = self.config.n_head, self.config.attention_scale(layer)
        k, v = stored(block.k, self.kv, n_head), stored(block.v, self.kv, n_head)
        out, dropped = np.empty(block.q.shape, np.float32) if out is None else out, []
        row_tokens = [t for t, count in zip(tokens, block.counts, strict=True) for _ in range(count)]
        for row, t in enumerate(row_tokens):
            gone = self._gone(t, block, row)
            dropped += [(row, position) for position in t.position[gone]]
            t.drop(gone)
            t.insert(k[row], v[row], block.k_int[row])
            out[row], weights = attend(block.q[row], t.k, t.v, n_head, scale)
            t.attention = t.attention + weights
        return out, np.array(dropped, np.int32).reshape(-1, 2)

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        return self._sequences[sequence][check_layer(self.config, layer)].position.copy()

    def live_counts(self, sequences: Iterable[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence."""
        return np.array([[len(tokens.position) for tokens in self._sequences[s]] for s in sequences], np.int64).T

    def stats(self) -> Stats:
        """Totals over layers and sequences."""
        live = sum(len(tokens.position) for layers in self._sequences for tokens in layers)
        owned = self._owned()
        return Stats(live, owned * self.page_slots, owned * self._page_bytes(), self._pages * self._page_bytes())

    def _gone(self, t: Tokens, block: Block, row: int) -> np.ndarray:  # bool [N]
        """Which live tokens leave before this row's is inserted."""
        gone = np.isin(t.position, block.inherited[block.inherited[:, 0] == row, 1])
        if self.policy.learned:
            s = t.k_int @ block.q_int[row] / math.sqrt(t.k_int.shape[1]) + block.beta
            gone |= ~(s > self.threshold) & (t.seen - t.position > self.config.int_delay)  # a tie or a NaN drops
        left = np.flatnonzero(~gone)  # heavy hitters are chosen among these
        gone[left] = self.policy.drops(t.seen, t.position[left], t.attention[left])
        return gone

    def _grow(self, more: int) -> None:
        """See to it that so many pages are free. Raises CacheFull."""
        pages = self._owned() + more
        check_bytes(pages * self._page_bytes(), self.max_bytes)
        self._pages = max(self._pages, pages)

    def _owned(self) -> int:
        return sum(self._pages_of(tokens) for layers in self._sequences for tokens in layers)

    def _pages_of(self, tokens: Tokens, more: int = 0) -> int:
        return -(-(len(tokens.position) + more) // self.page_slots)

    def _more_pages(self, tokens: Tokens, count: int) -> int:
        """Pages that `count` more tokens could need."""
        return self._pages_of(tokens, count) - self._pages_of(tokens)

    def _page_bytes(self) -> int:
        return page_bytes(self.config, self.page_slots, self.kv, self.policy)
