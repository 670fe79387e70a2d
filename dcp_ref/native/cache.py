"""The cache in C: the twin of runtime/cache.py, with the same methods and results. csrc/dcp.h is its manual."""

import contextlib
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from dcp_ref.config import Config, float32_threshold
from dcp_ref.native.extension import STORAGE, available, ffi, lib, missing, pointer, rows, strided
from dcp_ref.native.memory import Batch, Memory, Pages, Sequence, c_batch, check_page_slots
from dcp_ref.policies import BY_POSITION, Policy, for_model
from dcp_ref.runtime import checks
from dcp_ref.runtime.checks import Handles
from dcp_ref.runtime.feeding import SPARE_BYTES, spared
from dcp_ref.runtime.lock import ForkAwareLock, InterpreterEnds, locked
from dcp_ref.runtime.precision import check_storage
from dcp_ref.runtime.stats import Stats


class NativeCache:
    """KVCache in C: sequences, and their pages of `page_slots` slots, 1 to 32.

    In each method a single call of C changes anything. A signal's handler, a finalizer or an exception comes before
    that call or after it, and finds all in order. A step uses at most `threads` threads, and no more than OpenMP gives
    (OMP_NUM_THREADS, threadpoolctl); 0 is all.
    """

    def __init__(self, config: Config, page_slots: int = 32, max_bytes: int | None = None, kv: str = "float32",
                 policy: Policy | None = None, threshold: float = 0.0, threads: int = 0) -> None:
        if not available():
            raise RuntimeError(f"{missing()}, or use KVCache")
        self.config, self.page_slots = config, check_page_slots(page_slots)
        max_bytes = checks.check_max_bytes(max_bytes)
        self.kv, self.policy = check_storage("kv", kv), for_model(config, policy)
        if self.policy.rule is not None:
            raise ValueError(f"policy {self.policy}: a rule of one's own decodes with KVCache; C cannot ask it")
        self.threshold = float32_threshold(threshold, self.policy.learned)
        self.may_drop = checks.may_drop(config, self.policy)
        shape = ffi.new("dcp_shape *", {
            "layers": config.n_layer, "positions": config.n_positions, "heads": config.n_head,
            "head_dim": config.head_dim, "rank": self.policy.rank(config), "page_slots": self.page_slots,
            "max_bytes": min(max_bytes or 0, 2**63), "threads": lib.dcp_threads(threads), "kv": STORAGE[self.kv]})
        self.c = ffi.new("dcp_cache *")
        if lib.dcp_cache_init(self.c, shape, self._c_policy()) != lib.DCP_OK:
            raise MemoryError(f"no cache for {config}")
        self._dropped = np.zeros((config.n_layer, lib.DCP_REASONS), np.uintp)
        self.c.dropped = ffi.from_buffer("size_t[]", self._dropped)
        self.lock = ForkAwareLock("cache")
        self._pages = Pages(ffi.addressof(self.c, "pool"), max_bytes)
        self._sequences = Handles(operator.attrgetter("c.released"))  # of Sequence
        self._workspace = np.empty(0, np.uint8)  # of the largest step so far

    def _c_policy(self) -> Any:
        policy, config = self.policy, self.config
        fields = {name: getattr(policy, name) or 0 for name in BY_POSITION}
        return ffi.new("dcp_policy *", fields | {
            "heavy": policy.heavy or 0, "budget": policy.budget or 0, "by_attention": policy.heavy is not None,
            "delay": min(config.int_delay, config.n_positions), "threshold": self.threshold})

    @locked
    def new_sequence(self) -> int:
        """A handle of a new, empty sequence. Raises MemoryError."""
        return self._sequences.add(Sequence(self.c))

    @locked
    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens; what is fed to one does not reach the other.

        The two share pages until one of them writes there. Raises ValueError when the sequence is unknown, MemoryError;
        nothing has changed then.
        """
        handle = self.new_sequence()
        try:
            while True:  # a signal's handler may release the parent meanwhile: look again
                parent = self._sequences[sequence].c
                if lib.dcp_sequence_fork(self.c, self._sequences[handle].c, parent) == lib.DCP_OK:
                    return handle
        except BaseException:  # an interrupt too: nobody else would release the child
            self.release(handle)
            raise

    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown or was released."""
        with contextlib.suppress(InterpreterEnds):  # its memory goes with the process
            self._release(sequence)

    @locked
    def _release(self, sequence: int) -> None:
        lib.dcp_sequence_release(self.c, self._sequences[sequence].c)
        self._sequences.forget(sequence)

    @locked
    def length(self, sequence: int) -> int:
        """How many tokens the sequence has been fed, dropped ones included."""
        return self._sequences[sequence].c.layer[0].seen

    @locked
    def reserve(self, sequences: Iterable[int], counts: Iterable[int], pinned: np.ndarray | None = None) -> Batch:
        """Make room in every layer for counts[b] more tokens of sequences[b]; returns what `step` takes.

        The room is enough even if nothing is dropped; the system backs with memory only what is then used. `pinned` is
        KVCache.reserve's.
        Raises ValueError (unknown or repeated sequence, too many tokens), CacheFull or MemoryError; nothing has changed
        then.
        """
        handles = list(sequences)
        batch = self.batch(handles, checks.check_counts(counts, len(handles)), pinned)
        return batch._replace(workspace=self.room(batch, lib.dcp_step_bytes(self.c, batch.c_counts, len(handles))))

    def batch(self, handles: list[int], counts: list[int], pinned: np.ndarray | None = None) -> Batch:
        """The sequences of a step, checked. Raises ValueError."""
        found = self._sequences.distinct(handles)
        checks.check_positions(self.config, handles, [sequence.c.layer[0].seen for sequence in found], counts)
        return c_batch(handles, found, counts, checks.check_pinned(pinned, sum(counts)))

    def make_free(self, pages: int) -> None:
        """Have at least this number of free pages. Raises CacheFull or MemoryError."""
        self._pages.make_free(pages)

    def room(self, batch: Batch, needed: int) -> np.ndarray:
        """Make pages free for the batch in all layers; returns at least `needed` bytes, for one call of C at a time.

        Raises CacheFull or MemoryError.
        """
        workspace = self._workspace
        if len(workspace) < needed:  # a little more: the next token needs a little more
            workspace = self._workspace = Memory(0).array((needed + needed // 8,), "uint8")
        self.make_free(lib.dcp_more_pages(self.c, batch.c_sequences, batch.c_counts, len(batch.counts), 0,
                                          self.config.n_layer, self.may_drop))
        return workspace

    @locked
    def trim(self) -> None:
        """Give free pages and working memory back to the operating system."""
        lib.dcp_pool_trim(self._pages.pool)
        self._workspace = np.empty(0, np.uint8)

    @locked
    def step(self, layer: int, batch: Batch,
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a batch that `reserve` returned: see KVCache.step. q, k, v may share an array."""
        layer, n = checks.check_layer(self.config, layer), sum(batch.counts)
        x = checks.check_input(self.config, self.policy, n, q, k, v, q_int, k_int, beta, inherited)
        q, k, v = strided(x.q, x.k, x.v)
        q_int, k_int = strided(x.q_int, x.k_int)
        step_input = ffi.new("dcp_input *", (
            layer, len(batch.handles), batch.c_sequences, batch.c_starts, batch.c_counts,
            *map(pointer, (q, k, v, q_int, k_int)), q.strides[0] // 4, q_int.strides[0] // 4,
            self.config.attention_scale(layer), x.beta, ffi.from_buffer("int32_t[]", x.inherited), len(x.inherited),
            batch.pinned))
        out, dropped = rows(n, self.config.n_embd), np.empty((sum(batch.starts) + n, 2), np.int32)
        pairs: int
        result, spare = (lambda: (out, dropped[:pairs].copy())), bytearray(SPARE_BYTES)
        pairs = lib.dcp_step(pointer(out), ffi.from_buffer("int32_t[]", dropped), self.c, step_input,
                             ffi.from_buffer(batch.workspace), len(batch.workspace))
        if pairs < 0:
            raise RuntimeError("the batch is no longer valid: a sequence has been fed or released since `reserve`, or "
                               "another batch has taken its room")
        return spared(result, spare)

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        table = self.slot_table(sequence, layer)
        return np.sort(table[table >= 0]).astype(np.int64)

    @locked
    def live_counts(self, sequences: Iterable[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence."""
        sequences, layers = list(sequences), range(self.config.n_layer)
        found = [self._sequences[sequence].c for sequence in sequences]
        return np.array([[s.layer[layer].live for s in found] for layer in layers], np.int64)

    @locked
    def slot_table(self, sequence: int, layer: int) -> np.ndarray:  # -> int32 [pages, page_slots]
        """The position of the token in every slot, -1 in a free one."""
        layer = checks.check_layer(self.config, layer)
        while True:
            found = self._sequences[sequence]
            table = np.empty((found.c.layer[layer].pages, self.page_slots), np.int32)
            owned = lib.dcp_slot_table(ffi.from_buffer("int32_t[]", table), len(table), self.c, found.c.layer + layer)
            if owned <= len(table):  # else a signal's handler has fed the sequence meanwhile: look again
                return table[:owned]

    @locked
    def stats(self) -> Stats:
        """Totals over layers and sequences, and the bytes of working memory."""
        pool, layers = self.c.pool, range(self.config.n_layer)
        slots = [sequence.c.layer[layer] for sequence in self._sequences.all() for layer in layers]
        page, pages = self._pages.page_bytes, sum(s.pages for s in slots)
        drops = tuple(map(tuple, self._dropped.tolist()))
        return Stats(sum(s.live for s in slots), pages * self.page_slots, (pool.pages - pool.n_free) * page,
                     pool.pages * page, len(self._workspace), pages * page, pool.peak * page, drops)
