"""The C extension: built where it can be, safe when called without the binding's checks, gives its memory back."""

import gc
import mmap
import resource
import shutil
import sys
import types

import numpy as np
import pytest
from cache_tools import areas, poison

from dcp_ref import native
from dcp_ref.config import Config
from dcp_ref.native import extension, memory
from dcp_ref.native.cache import NativeCache
from dcp_ref.native.extension import ffi, lib
from dcp_ref.native.memory import Sequence
from dcp_ref.policies import window
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.precision import STORAGES, stored

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=2, n_head=2, int_n_embd=4)
built = pytest.mark.skipif(not native.available(), reason="the C extension is not built")


@built
@pytest.mark.parametrize("wrong", [{"layer": 2}, {"start": [1]}, {"count": [10]}, {"released": True}, {"bytes": 0}])
def test_the_c_functions_check_for_themselves(wrong):
    cache = NativeCache(CONFIG)
    handle = cache.new_sequence()
    cache.reserve([handle], [1])
    found = cache._sequences[handle]
    given = {"layer": 0, "start": [0], "count": [1], "bytes": 2**20, **wrong}
    if given.get("released"):
        cache.release(handle)
    starts, counts = (ffi.new("size_t[]", given[name]) for name in ("start", "count"))
    arrays = [ffi.new("dcp_sequence *[]", [found.c]), starts, counts]
    step = ffi.new("dcp_input *", {"layer": given["layer"], "batch": 1, "sequence": arrays[0], "start": arrays[1],
                                   "count": arrays[2]})
    before = cache.stats()
    error = lib.DCP_ENOROOM if "bytes" in wrong else lib.DCP_EINVAL
    assert lib.dcp_step(ffi.NULL, ffi.NULL, cache.c, step, ffi.NULL, given["bytes"]) == error
    assert cache.stats() == before


@built
def test_models_beyond_memory():
    with pytest.raises(MemoryError):
        NativeCache(Config(n_positions=2**25))
    cache = NativeCache(Config(n_positions=2**24, n_layer=2**24))
    with pytest.raises(MemoryError):
        cache.new_sequence()


@built
def test_memory_is_given_back():
    config = Config(n_positions=64, n_layer=1, n_head=1, n_embd=1024)
    rows = np.zeros((64, 1024), np.float32)
    for repeat in range(200):  # 200 x 0.5 MB
        cache = NativeCache(config)
        sequence = cache.new_sequence()
        batch = cache.reserve([sequence], [64])
        cache.step(0, batch, rows, rows, rows)
        if repeat == 20:
            gc.collect()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000, f"{grown} kB more after 180 caches of 512 kB each"


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(extension, "lib", None)
    assert not native.available() and native.simd_level() == ""
    with pytest.raises(RuntimeError, match="not built"):
        NativeCache(CONFIG)


@pytest.mark.skipif(shutil.which("cc") is None or sys.maxsize < 2**32, reason="no C compiler, or not 64-bit")
def test_the_extension_is_built_where_it_can_be():
    assert native.available()
    assert native.simd_level() in ("avx512f", "avx2", "baseline")


@built
def test_an_argument_that_releases_the_sequence():
    """Its memory must not be used any more."""
    cache = NativeCache(CONFIG, 2)
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [1])

    class Releases:
        def __float__(self):
            cache.release(sequence)
            return 0.0

    row = np.ones((1, 4), np.float32)
    with pytest.raises(RuntimeError, match="the batch is no longer valid"):
        cache.step(0, batch, row, row, row, row, row, Releases())


@built
@pytest.mark.parametrize("method", ["reserve", "live_counts", "live_positions", "slot_table"])
def test_an_argument_that_releases_the_sequence_while_it_is_read(method):
    cache = NativeCache(CONFIG, 2)
    sequence = cache.new_sequence()

    class Layer:
        def __index__(self):
            cache.release(sequence)
            return 0

    arguments = {"reserve": ([sequence], (cache.release(sequence) or 1 for _ in range(1))),
                 "live_counts": ((sequence if i == 0 else cache.release(sequence) or sequence for i in range(2)),),
                 "live_positions": (sequence, Layer()), "slot_table": (sequence, Layer())}[method]
    with pytest.raises(ValueError, match="sequence 0 is unknown or was released"):
        getattr(cache, method)(*arguments)


@built
def test_arrays_that_are_not_aligned_are_copied():
    cache = NativeCache(CONFIG, 2)
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [1])
    row = np.frombuffer(b"x" + np.arange(4, dtype=np.float32).tobytes(), np.float32, offset=1).reshape(1, 4)
    assert not row.flags.aligned
    out, _ = cache.step(0, batch, row, row, row, row, row)
    np.testing.assert_array_equal(out, row)


@pytest.mark.parametrize("handle", [None, "0", [0], 0.0])
def test_a_handle_that_is_no_integer(handle):
    cache = NativeCache(CONFIG) if native.available() else KVCache(CONFIG)
    cache.new_sequence()
    with pytest.raises(ValueError, match="is unknown or was released"):
        cache.live_positions(handle, 0)


@built
@pytest.mark.parametrize(("head_dim", "rank"), [(1, 1), (15, 17), (16, 16), (24, 20), (33, 47)])
def test_widths_that_do_not_fill_the_vectors(head_dim, rank):
    """Wider than the 16 sums of a dot product, and not a multiple; attention logits in the hundreds, as well."""
    config = Config(vocab_size=1, n_positions=12, n_embd=2 * head_dim, n_layer=1, n_head=2, int_n_embd=rank)
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 12, 2 * head_dim)).astype(np.float32)
    q_int, k_int = rng.integers(-2, 3, size=(2, 12, rank)).astype(np.float32)
    results = []
    for cache in (KVCache(config), NativeCache(config, 4)):
        sequence = cache.new_sequence()
        batch = cache.reserve([sequence], [12])
        results.append(cache.step(0, batch, 200 * q, k, v, q_int, k_int, 2.5))
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)  # exp of logits near 500, float32
    assert 0 < len(results[0][1]) < 66


ONE_LAYER = Config(n_embd=64, n_head=1, n_layer=1)


@built
@pytest.mark.parametrize("refused", ["mapping", "list"])
def test_memory_that_is_refused(monkeypatch, refused):
    """Nothing has changed then, and what was reserved before still is."""
    cache = NativeCache(CONFIG, 2)
    sequence, row = cache.new_sequence(), np.ones((3, 4), np.float32)
    batch = cache.reserve([sequence], [1])
    before = cache.stats()

    def refuse(*_):
        raise MemoryError(memory.OUT_OF_MEMORY)

    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="release a sequence"):
        if refused == "mapping":
            patch.setattr(memory, "_map", refuse)
        else:
            patch.setattr(memory, "ffi", types.SimpleNamespace(new=refuse))
        cache.reserve([sequence], [9])
    assert cache.stats()[:4] == before[:4]
    cache.step(0, batch, *[row[:1]] * 5)
    cache.reserve([sequence], [2])


@built
def test_the_need_alone_is_asked_for_where_the_system_refuses_more(monkeypatch):
    cache = NativeCache(ONE_LAYER)
    plain, asked, sequences = memory._map, [], [cache.new_sequence() for _ in range(9)]
    cache.reserve(sequences[:8], [1] * 8)

    def scarce(size):
        asked.append(size // cache._pages.page_bytes)
        if asked[-1] > 1:
            raise MemoryError(memory.OUT_OF_MEMORY)
        return plain(size)

    monkeypatch.setattr(memory, "_map", scarce)
    cache.reserve(sequences, [1] * 9)
    assert asked == [8, 1] and cache.stats().bytes_reserved == 9 * cache._pages.page_bytes


def chunks(cache):
    """The pages of each chunk that was asked for."""
    kept = [len(ffi.buffer(x)) // cache._pages.page_bytes for x in cache._pages._kept
            if ffi.typeof(x) is ffi.typeof("unsigned char[]")]
    return kept


@built
def test_a_system_without_huge_pages(monkeypatch):
    class Small(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Small)
    cache = NativeCache(CONFIG, 2)
    cache.reserve([cache.new_sequence()], [1])
    assert chunks(cache) == [2]


@built
def test_memory_is_asked_for_in_few_chunks_and_little_of_it_in_vain(monkeypatch):
    cache = NativeCache(ONE_LAYER)
    size, sequences = cache._pages.page_bytes, []
    monkeypatch.setattr(memory, "CHUNK_BYTES", 16 * size)
    for n in range(1, 100):
        sequences.append(cache.new_sequence())
        cache.reserve(sequences, [1] * n)
        assert cache.stats().bytes_reserved == n * size and n <= sum(chunks(cache)) < 2 * n
    assert chunks(cache) == [1, 1, 2, 4, 8, 16, 16, 16, 16, 16, 16]
    cache.reserve([*sequences, cache.new_sequence()], [*[1] * 99, 1000])  # 99 + 32 pages, and 112 are there
    assert chunks(cache)[-1] == 19


@built
def test_a_fork_without_free_pages():
    cache = NativeCache(ONE_LAYER)
    sequence, row = cache.new_sequence(), np.ones((1, 64), np.float32)
    cache.step(0, cache.reserve([sequence], [1]), row, row, row)
    child = Sequence(cache.c)
    held, other = cache._sequences[sequence], Sequence(cache.c)
    parent = held.c  # which does not keep its memory
    assert lib.dcp_sequence_fork(cache.c, child.c, parent) == lib.DCP_OK
    assert child.c.layer[0].pages == 1 and cache.stats().bytes_reserved == cache._pages.page_bytes
    assert lib.dcp_sequence_fork(cache.c, child.c, parent) == lib.DCP_EINVAL  # it has tokens
    cache.release(sequence)
    assert lib.dcp_sequence_fork(cache.c, other.c, parent) == lib.DCP_EINVAL and cache.c.pool.n_free == 0
    lib.dcp_sequence_release(cache.c, child.c)
    assert cache.c.pool.n_free == 1


@built
def test_poison_reaches_every_dead_slot_and_no_live_one():
    cache = NativeCache(CONFIG, 2)
    kept, gone = cache.new_sequence(), cache.new_sequence()
    row = np.ones((3, 4), np.float32)
    batch = cache.reserve([kept, gone], [3, 3])
    rows = np.concatenate([row, row])
    cache.step(0, batch, *[rows] * 5)
    cache.release(gone)
    poison(cache)
    slots, pool = cache._sequences[kept].c.layer[0], cache.c.pool
    for page, dead in ((slots.page[0], [False, False]), (slots.page[1], [False, True]),
                       (pool.idle[pool.n_spare], [True, True])):
        keys, rest, values = (area.view(np.float32) for area in areas(cache, page))
        values = values[: 2 * 2 * 32].reshape(2, 2, 32).swapaxes(1, 2).reshape(-1, 2)[[0, 1, 32, 33]]  # two heads
        for lanes in (keys.reshape(-1, 32)[:, :2], rest.reshape(-1, 32)[1:, :2], values):  # two slots
            assert np.isnan(lanes).all(axis=0).tolist() == np.isnan(lanes).any(axis=0).tolist() == dead


@built
@pytest.mark.parametrize("kv", STORAGES)
def test_a_token_alone_reads_its_value_back_as_stored(kv):
    """To the bit: ties of half floats, subnormals and numbers beyond them too."""
    config = Config(vocab_size=1, n_positions=1, n_embd=64, n_layer=1, n_head=2)
    special = [1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11, 2**-25, 3 * 2**-25, -(2**-24), 65519, 65520, -1e6, 1e-30, 0]
    v = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    v[0, : len(special)] = special
    cache = NativeCache(config, kv=kv)
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [1])
    out, _ = cache.step(0, batch, v, v * 0, v)
    np.testing.assert_array_equal(out, stored(v, kv, 2))


@built
def test_what_a_row_dropped_has_no_weight_at_all():
    """Not even e^-87 of a huge value, which the row before it, of the same tile, still attends to."""
    config = Config(vocab_size=1, n_positions=4, n_embd=4, n_layer=1, n_head=1)
    cache = NativeCache(config, policy=window(1))
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [4])
    v = np.arange(16, dtype=np.float32).reshape(4, 4)
    v[0] = 3e38
    out, _ = cache.step(0, batch, v * 0, v * 0, v)
    np.testing.assert_array_equal(out, v)
