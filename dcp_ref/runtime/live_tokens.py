"""The live tokens of one sequence in one layer, and attention over them: what KVCache is made of."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from dcp_ref.attention import merge_heads, split_heads
from dcp_ref.layers import softmax


class Tokens(NamedTuple):
    """The live tokens of one sequence in one layer, by position. A change makes a new object.

    `seen` counts all tokens that ever came. `attention` is what each token got from all rows so far, its own included:
    softmax weights, heads summed.
    """

    seen: int
    position: np.ndarray  # int64 [N]
    k: np.ndarray  # [N, C]
    v: np.ndarray  # [N, C]
    k_int: np.ndarray  # [N, r]
    attention: np.ndarray  # [N]
    pinned: np.ndarray  # bool [N]: those that no rule drops

    @classmethod
    def empty(cls, channels: int, rank: int) -> "Tokens":
        """The tokens of a new sequence: none."""
        none = np.zeros((0, channels), np.float32)
        return cls(0, np.zeros(0, np.int64), none, none, np.zeros((0, rank), np.float32), np.zeros(0, np.float32),
                   np.zeros(0, bool))

    def without(self, gone: np.ndarray) -> "Tokens":  # bool [N]
        """The tokens that are not marked."""
        return Tokens(self.seen, *(x[~gone] for x in self[1:]))

    def insert(self, k: np.ndarray, v: np.ndarray, k_int: np.ndarray, pinned: bool = False) -> "Tokens":
        # [C], [C], [r]
        """The tokens, and the next one."""
        return Tokens(self.seen + 1, np.append(self.position, self.seen), np.vstack([self.k, k]),
                      np.vstack([self.v, v]), np.vstack([self.k_int, k_int]), np.append(self.attention, np.float32(0)),
                      np.append(self.pinned, pinned))


def attend(q, k, v, n_head, scale):  # [C], [N, C], [N, C] -> [C], [N]
    """softmax(q k^T scale) v over the live tokens, head by head; and the weights, heads summed."""
    q, k, v = (split_heads(x, n_head) for x in (q[None], k, v))
    p, _ = softmax(q @ k.swapaxes(-1, -2) * scale)
    return merge_heads(p @ v)[0], p.sum(0)[0]


def in_memory(sequences: list[list[Tokens]]) -> int:
    """How many tokens are in memory: those that sequences share count once."""
    found = {id(tokens): len(tokens.position) for layers in sequences for tokens in layers}
    return sum(found.values())


def could_need(sequences: list[list[Tokens]], fed: list[list[Tokens]], counts: list[int]) -> int:
    """How many tokens can be in memory when counts[b] more come to each of `fed`, which are among the sequences.

    Tokens that sequences share are copied when one of these changes.
    """
    owners = Counter(id(tokens) for layers in sequences for tokens in layers)
    return in_memory(sequences) + sum(
        count + (owners[id(tokens)] > 1) * len(tokens.position)
        for layers, count in zip(fed, counts, strict=True) if count for tokens in layers)
