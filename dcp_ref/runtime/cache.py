"""The key-value cache as a plain list of live tokens: what every other cache must equal.

Decoding token i in a layer:
    (0) drop the tokens that the layer before dropped, where layers do not act alone (`propagate_in_depth`)
    (1) score every live token:  s_j = q_int_i . k_int_j / sqrt(r) + beta
    (2) drop all but those with s_j > threshold or i - j <= int_delay, for good; or those that another policy drops
        (policies.py)
    (3) insert token i, which never drops itself
    (4) attend over the live tokens
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.attention import merge_heads, split_heads
from dcp_ref.config import Config
from dcp_ref.layers import softmax
from dcp_ref.policies import Policy, float32_threshold, for_model
from dcp_ref.runtime.checks import (
    StepInput,
    check_bytes,
    check_counts,
    check_input,
    check_layer,
    check_pages,
    check_positions,
)
from dcp_ref.runtime.lock import ForkAwareLock
from dcp_ref.runtime.precision import check_storage, stored


class Stats(NamedTuple):
    """Totals over layers and sequences.

    bytes_reserved includes free pages; bytes_scratch is working memory, sized for the largest feed so far.
    """

    live_tokens: int
    slots: int
    bytes_owned: int
    bytes_reserved: int
    bytes_scratch: int = 0


class Handles:
    """The sequences of a cache, each under an integer that is never used twice; `released` says which are gone."""

    def __init__(self, released: Callable[[Any], Any] = lambda sequence: False) -> None:
        self._sequences: dict[int, Any] = {}
        self._next, self._released = itertools.count(), released

    def add(self, sequence: Any) -> int:
        """Keep a sequence; returns its handle."""
        handle = next(self._next)
        self._sequences[handle] = sequence
        return handle

    def forget(self, handle: int) -> None:
        """No longer keep a sequence, if it is there."""
        self._sequences.pop(int(handle), None)

    def replace(self, handles: list[int], sequences: list[Any]) -> None:
        """Other sequences under handles that are in use; all at once."""
        self._sequences.update(zip(map(int, handles), sequences, strict=True))

    def __getitem__(self, handle: int) -> Any:
        if isinstance(handle, (int, np.integer)) and not isinstance(handle, bool):
            found = self._sequences.get(int(handle))
            if found is not None and not self._released(found):
                return found
        raise ValueError(f"sequence {handle!r} is unknown or was released")

    def all(self) -> list[Any]:
        """All sequences."""
        return list(self._sequences.values())

    def distinct(self, handles: list[int]) -> list[Any]:
        """The sequences of all these handles. Raises ValueError, naming an unknown, released or repeated one."""
        found = [self[handle] for handle in handles]
        if len(set(handles)) < len(handles):
            repeated = next(handle for handle in handles if handles.count(handle) > 1)
            raise ValueError(f"sequence {repeated!r} appears twice")
        return found


class Tokens(NamedTuple):
    """The live tokens of one sequence in one layer, by position; never changed, only replaced.

    `seen` counts all that ever came. `attention` is what each token got so far, its own row included: softmax weights,
    heads summed.
    """

    seen: int
    position: np.ndarray  # int64 [N]
    k: np.ndarray  # [N, C]
    v: np.ndarray  # [N, C]
    k_int: np.ndarray  # [N, r]
    attention: np.ndarray  # [N]

    def without(self, gone: np.ndarray) -> "Tokens":  # bool [N]
        """The tokens that are not marked."""
        return Tokens(self.seen, *(x[~gone] for x in self[1:]))

    def insert(self, k: np.ndarray, v: np.ndarray, k_int: np.ndarray) -> "Tokens":  # [C], [C], [r]
        """And the next token."""
        return Tokens(self.seen + 1, np.append(self.position, self.seen), np.vstack([self.k, k]),
                      np.vstack([self.v, v]), np.vstack([self.k_int, k_int]), np.append(self.attention, np.float32(0)))


class Batch(NamedTuple):
    """Sequences, and how many tokens each gets next: what `step` takes."""

    handles: list[int]
    layers: list[list[Tokens]]  # the sequences: one Tokens a layer
    starts: list[int]
    counts: list[int]
    draft: bool = False  # whether the layers are copies


def attend(q, k, v, n_head, scale):  # [C], [N, C], [N, C] -> [C], [N]
    """softmax(q k^T scale) v over the live tokens, head by head; and the weights, heads summed."""
    q, k, v = (split_heads(x, n_head) for x in (q[None], k, v))
    p, _ = softmax(q @ k.swapaxes(-1, -2) * scale)
    return merge_heads(p @ v)[0], p.sum(0)[0]


class KVCache:
    """Keys, values and interaction keys of the live tokens of several sequences.

    `policy` is what decides a drop: None is the learned scores where the model has them, else nothing. `kv` is the
    storage type of keys and values, one of precision.STORAGES; this cache keeps the rounded values in float32.
    `threshold`, in float32 as scores are, is what they must exceed. `max_bytes` bounds the bytes of all tokens.
    `page_slots` is for NativeCache: here a token is its own page. Raises TypeError or ValueError naming the argument.
    """

    def __init__(self, config: Config, page_slots: int = 32, max_bytes: int | None = None, kv: str = "float32",
                 policy: Policy | None = None, threshold: float = 0.0) -> None:
        check_pages(page_slots, max_bytes)
        self.config, self.max_bytes = config, max_bytes
        self.kv, self.policy = check_storage("kv", kv), for_model(config, policy)
        self.threshold = float32_threshold(threshold, self.policy)
        self.lock = ForkAwareLock("cache")
        self._sequences = Handles()  # each a list of one Tokens a layer
        none, rank = np.zeros((0, config.n_embd), np.float32), self.policy.rank(config)
        self._empty = Tokens(0, np.zeros(0, np.int64), none, none, np.zeros((0, rank), np.float32),
                             np.zeros(0, np.float32))

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        return self._sequences.add([self._empty] * self.config.n_layer)

    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens; what is fed to one does not reach the other.

        Raises ValueError when the sequence is unknown, CacheFull past max_bytes; nothing has changed then.
        """
        layers = self._sequences[sequence]
        self._check_room(sum(len(tokens.position) for tokens in layers))
        child = self.new_sequence()
        try:
            self._sequences.replace([child], [list(layers)])
            return child
        except BaseException:  # an interrupt too: nobody would know the child
            self._sequences.forget(child)
            raise

    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown."""
        self._sequences[sequence]
        self._sequences.forget(sequence)

    def length(self, sequence: int) -> int:
        """How many tokens the sequence has been fed, dropped ones included."""
        return self._sequences[sequence][0].seen

    def reserve(self, sequences: Iterable[int], counts: Iterable[int]) -> Batch:
        """Check that counts[b] more tokens of sequences[b] have room in every layer; returns what `step` takes.

        Raises ValueError (unknown or repeated sequence, too many tokens) or CacheFull; nothing has changed then.
        """
        handles = list(sequences)
        counts = check_counts(counts, len(handles))
        layers = self._sequences.distinct(handles)
        starts = [tokens[0].seen for tokens in layers]
        check_positions(self.config, handles, starts, counts)
        self._check_room(sum(counts) * self.config.n_layer)
        return Batch(handles, layers, starts, counts)

    def draft(self, batch: Batch) -> Batch:
        """The same batch with copies of its sequences: steps of it change nothing until `commit`."""
        return batch._replace(layers=[list(layer) for layer in batch.layers], draft=True)

    def commit(self, batch: Batch, draft: Batch) -> bool:
        """Make the draft's tokens the sequences' own; False, without a change, if one was released or fed meanwhile."""
        if not self._current(batch):
            return False
        self._sequences.replace(batch.handles, draft.layers)
        return True

    def trim(self) -> None:
        """Give free memory back to the operating system: here there is none."""

    def step(self, layer: int, batch: Batch,
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a batch that `reserve` returned: N = sum(counts) rows, those of the first sequence first.

        q, k, v [N, C]; q_int, k_int [N, r], None unless the policy is learned.
        Returns out [N, C], fresh unless one that a step returned is given to be filled again, and dropped, int32
        [n, 2]: (row, position) of each token that left this layer, in ascending order. The next layer takes it as
        `inherited` under `propagate_in_depth`.
        Raises TypeError or ValueError naming the argument, RuntimeError when the batch is no longer valid; nothing has
        changed then.
        """
        layer, rows = check_layer(self.config, layer), sum(batch.counts)
        x = check_input(self.config, self.policy, rows, q, k, v, q_int, k_int, beta, inherited)
        if out is not None and (out.shape != x.q.shape or out.dtype != np.float32):
            raise ValueError(f"out must be what a step returned, float32 {x.q.shape}")
        if not (batch.draft or self._current(batch)) or batch.starts != [layers[layer].seen for layers in batch.layers]:
            raise RuntimeError("the batch is no longer valid: a sequence has been fed or released since `reserve`")
        n_head, scale = self.config.n_head, self.config.attention_scale(layer)
        k, v = stored(x.k, self.kv, n_head), stored(x.v, self.kv, n_head)
        out, dropped, first = np.empty(x.q.shape, np.float32) if out is None else out, [], 0
        for layers, count in zip(batch.layers, batch.counts, strict=True):
            tokens = layers[layer]
            for row in range(first, first + count):
                gone = self._gone(tokens, x, row)
                dropped += [(row, position) for position in tokens.position[gone]]
                tokens = tokens.without(gone).insert(k[row], v[row], x.k_int[row])
                out[row], weights = attend(x.q[row], tokens.k, tokens.v, n_head, scale)
                tokens = tokens._replace(attention=tokens.attention + weights)
            layers[layer], first = tokens, first + count
        return out, np.array(dropped, np.int32).reshape(-1, 2)

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        layer = check_layer(self.config, layer)
        return self._sequences[sequence][layer].position.copy()

    def live_counts(self, sequences: Iterable[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence."""
        found = [self._sequences[s] for s in list(sequences)]
        counts = [[len(tokens.position) for tokens in layers] for layers in found]
        return np.array(counts, np.int64).reshape(len(found), self.config.n_layer).T

    def stats(self) -> Stats:
        """Totals over layers and sequences."""
        live = self._live()
        return Stats(live, live, live * self._token_bytes(), live * self._token_bytes())

    def _gone(self, tokens: Tokens, x: StepInput, row: int) -> np.ndarray:  # bool [N]
        """Which live tokens leave before this row's is inserted."""
        gone = np.isin(tokens.position, x.inherited[x.inherited[:, 0] == row, 1])
        if self.policy.learned:
            s = tokens.k_int @ x.q_int[row] / math.sqrt(tokens.k_int.shape[1]) + x.beta
            recent = tokens.seen - tokens.position <= self.config.int_delay
            gone |= ~(s > self.threshold) & ~recent  # a tie or a NaN drops
        left = np.flatnonzero(~gone)  # heavy hitters are chosen among these
        gone[left] = self.policy.drops(tokens.seen, tokens.position[left], tokens.attention[left])
        return gone

    def _current(self, batch: Batch) -> bool:
        """Whether every sequence is the one that was reserved."""
        try:
            return all(self._sequences[h] is layers for h, layers in zip(batch.handles, batch.layers, strict=True))
        except ValueError:
            return False

    def _live(self) -> int:
        return sum(len(tokens.position) for layers in self._sequences.all() for tokens in layers)

    def _token_bytes(self) -> int:
        """The bytes of one token in one layer, as this cache keeps it."""
        return sum(x.itemsize * math.prod(x.shape[1:]) for x in self._empty[1:])

    def _check_room(self, more: int) -> None:
        """Raises CacheFull when so many more tokens of a layer could pass the bound."""
        check_bytes((self._live() + more) * self._token_bytes(), self.max_bytes)
