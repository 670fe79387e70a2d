"""The key-value cache as a plain list of live tokens: what every other cache must equal.

Decoding token i in a layer:
    (0) drop the tokens that the layer before dropped, under `propagate_in_depth`
    (1) score every live token:  s_j = q_int_i . k_int_j / sqrt(r) + beta
    (2) drop all but those with s_j > threshold or i - j <= int_delay, for good; and those that another rule drops
        (policies.py); but no pinned token
    (3) insert token i, which never drops itself
    (4) attend over the live tokens
`KVCache._decode` is this definition, line by line; the rest of the class keeps sequences and checks arguments.
"""

import itertools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from dcp_ref.config import Config, float32_threshold
from dcp_ref.policies import Policy, for_model
from dcp_ref.runtime import checks
from dcp_ref.runtime.checks import Handles, StepInput
from dcp_ref.runtime.feeding import Batch
from dcp_ref.runtime.live_tokens import Tokens, attend, could_need, in_memory
from dcp_ref.runtime.lock import ForkAwareLock
from dcp_ref.runtime.precision import check_storage, stored
from dcp_ref.runtime.stats import REASONS, Stats, besides

LEARNED, INHERITED, STAYS = REASONS.index("learned"), REASONS.index("inherited"), -1


class KVCache:
    """Keys, values and interaction keys of the live tokens of several sequences.

    `policy` decides what is dropped: None is the learned scores where the model has them, else nothing. A score must
    exceed `threshold`, both in float32. `kv` is the storage type of keys and values, one of precision.STORAGES; this
    cache keeps the rounded values in float32. `max_bytes` bounds the bytes of all tokens.
    Raises TypeError or ValueError naming the argument.
    """

    def __init__(self, config: Config, max_bytes: int | None = None, kv: str = "float32",
                 policy: Policy | None = None, threshold: float = 0.0) -> None:
        self.config, self.max_bytes = config, checks.check_max_bytes(max_bytes)
        self.kv, self.policy = check_storage("kv", kv), for_model(config, policy)
        self.threshold = float32_threshold(threshold, self.policy.learned)
        self.lock = ForkAwareLock("cache")
        self._sequences = Handles()  # each a list of one Tokens a layer
        self.may_drop = checks.may_drop(config, self.policy)
        rank = self.policy.rank(config)
        self._empty = Tokens.empty(config.n_embd, rank)
        self._dropped = np.zeros((config.n_layer, len(REASONS)), int)
        self._peak = 0  # the most bytes owned so far, seen after each layer of a step
        self._token_bytes = 8 + 4 * (2 * config.n_embd + rank + 1)  # of one token in one layer

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        return self._sequences.add([self._empty] * self.config.n_layer)

    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens; what is fed to one does not reach the other.

        The two share arrays until one of them changes. Raises ValueError when the sequence is unknown; nothing has
        changed then.
        """
        layers = self._sequences[sequence]
        child = self.new_sequence()
        try:
            self._sequences.replace([child], [self._sequences[child]], [list(layers)])
            return child
        except BaseException:  # an interrupt too: nobody would know the child's handle
            self._sequences.forget(child)
            raise

    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown."""
        self._sequences[sequence]
        self._sequences.forget(sequence)

    def length(self, sequence: int) -> int:
        """How many tokens the sequence has been fed, dropped ones included."""
        return self._sequences[sequence][0].seen

    def reserve(self, sequences: Iterable[int], counts: Iterable[int], pinned: np.ndarray | None = None) -> Batch:
        """Check that counts[b] more tokens of sequences[b] have room in every layer; returns what `step` takes.

        `pinned`, bool [sum(counts)] or None, marks those of the tokens that no layer ever drops.
        Raises ValueError (unknown or repeated sequence, too many tokens) or CacheFull; nothing has changed then.
        """
        handles = list(sequences)
        batch = self.batch(handles, checks.check_counts(counts, len(handles)), pinned)
        self.check_room(batch)
        return batch

    def batch(self, handles: list[int], counts: list[int], pinned: np.ndarray | None = None) -> Batch:
        """The sequences of a step, checked, but for room. Raises ValueError."""
        layers = self._sequences.distinct(handles)
        starts = [tokens[0].seen for tokens in layers]
        checks.check_positions(self.config, handles, starts, counts)
        return Batch(handles, layers, starts, counts, checks.check_pinned(pinned, sum(counts)))

    def draft(self, batch: Batch) -> Batch:
        """The same batch with copies of its sequences: steps of it change nothing until `commit`."""
        return batch._replace(layers=[list(layer) for layer in batch.layers], draft=True)

    def commit(self, batch: Batch, draft: Batch) -> bool:
        """Give the sequences the draft's tokens; False, and no change, if one was fed or released meanwhile."""
        return self._sequences.replace(batch.handles, batch.layers, draft.layers)

    def trim(self) -> None:
        """Give free memory back to the operating system: here there is none, as nothing is kept."""

    def step(self, layer: int, batch: Batch,
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a batch that `reserve` returned: N = sum(counts) rows, those of the first sequence first.

        q, k, v [N, C]; q_int, k_int [N, r], None unless the policy is learned.
        Returns out [N, C] and dropped, int32 [n, 2]: (row, position) of each token that left this layer, in ascending
        order. The next layer takes it as `inherited` under `propagate_in_depth`.
        Raises TypeError or ValueError naming the argument, RuntimeError when the batch is no longer valid; nothing has
        changed then.
        """
        layer, rows = checks.check_layer(self.config, layer), sum(batch.counts)
        x = checks.check_input(self.config, self.policy, rows, q, k, v, q_int, k_int, beta, inherited)
        if not (batch.draft or self._current(batch)) or batch.starts != [layers[layer].seen for layers in batch.layers]:
            raise RuntimeError("the batch is no longer valid: a sequence has been fed or released since `reserve`")
        n_head, scale = self.config.n_head, self.config.attention_scale(layer)
        x = x._replace(k=stored(x.k, self.kv, n_head), v=stored(x.v, self.kv, n_head))
        out, dropped, first, after, by = np.empty(x.q.shape, np.float32), [], 0, [], self._dropped[layer].copy()
        for layers, count in zip(batch.layers, batch.counts, strict=True):
            tokens = layers[layer]
            for row in range(first, first + count):
                pinned = batch.pinned is not None and bool(batch.pinned[row])
                tokens, gone, why, out[row] = self._decode(tokens, x, row, scale, pinned)
                dropped += [(row, position) for position in gone]
                by += np.bincount(why, minlength=len(REASONS))
            after.append(tokens)
            first += count
        result = out, np.array(dropped, np.int32).reshape(-1, 2)
        held = [[*layers[:layer], tokens, *layers[layer + 1 :]]
                for layers, tokens in zip(batch.layers, after, strict=True)]
        others = self._sequences.all_but(batch.handles)
        self._peak = max(self._peak, in_memory([*others, *held]) * self._token_bytes)
        any(map(operator.setitem, batch.layers, itertools.repeat(layer), after))  # in C: no interrupt comes in between
        self._dropped[layer] = by
        return result

    def _decode(self, tokens: Tokens, x: StepInput, row: int, scale: float, pinned: bool
                ) -> tuple[Tokens, np.ndarray, np.ndarray, np.ndarray]:
        """The next token i of a sequence in a layer: the tokens then, the positions that left and why, the output."""
        i, position = tokens.seen, tokens.position
        why = np.where(np.isin(position, x.inherited[x.inherited[:, 0] == row, 1]), INHERITED, STAYS)  # (0)
        s: Any = None
        if tokens.k_int.shape[1]:
            s = tokens.k_int @ x.q_int[row] / math.sqrt(tokens.k_int.shape[1]) + x.beta  # (1)
        if self.policy.learned:
            recent = i - position <= self.config.int_delay
            why[~(s > self.threshold) & ~recent & (why == STAYS)] = LEARNED  # (2); a tie or a NaN drops
        why[tokens.pinned] = STAYS
        left = np.flatnonzero(why == STAYS)  # what the other rules choose among
        chosen = self.policy.drops(i, position[left], tokens.attention[left], tokens.pinned[left],
                                   None if s is None else s[left], self.config.int_delay)
        why[left[chosen]] = REASONS.index(besides(self.policy))
        gone = why != STAYS
        tokens = tokens.without(gone).insert(x.k[row], x.v[row], x.k_int[row], pinned)  # (3)
        out, weights = attend(x.q[row], tokens.k, tokens.v, self.config.n_head, scale)  # (4)
        return tokens._replace(attention=tokens.attention + weights), position[gone], why[gone], out

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        layer = checks.check_layer(self.config, layer)
        return self._sequences[sequence][layer].position.copy()

    def live_counts(self, sequences: Iterable[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence."""
        found = [self._sequences[s] for s in list(sequences)]
        counts = [[len(tokens.position) for tokens in layers] for layers in found]
        return np.array(counts, np.int64).reshape(len(found), self.config.n_layer).T

    def stats(self) -> Stats:
        """Totals over layers and sequences; a token is its own slot."""
        sequences, size = self._sequences.all(), self._token_bytes
        live, owned = sum(len(tokens.position) for layers in sequences for tokens in layers), in_memory(sequences)
        return Stats(live, live, owned * size, owned * size, 0, live * size, max(self._peak, owned * size),
                     tuple(map(tuple, self._dropped.tolist())))

    def _current(self, batch: Batch) -> bool:
        """Whether every sequence is the one that was reserved."""
        try:
            return all(self._sequences[h] is layers for h, layers in zip(batch.handles, batch.layers, strict=True))
        except ValueError:
            return False

    def check_room(self, batch: Batch, draft: Batch | None = None) -> None:
        """Raises CacheFull when the tokens of the batch may not fit beside all others and a draft."""
        sequences = [*self._sequences.all(), *(draft.layers if draft else [])]
        checks.check_bytes(could_need(sequences, batch.layers, batch.counts) * self._token_bytes, self.max_bytes)
