"""The machine's read bandwidth, which limits a decode step: it reads the weights and the cache once."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dcp_ref.bench.timing import interleaved

BYTES = 1 << 30
REDUCTIONS = {"np.sum": np.sum, "np.max": np.max, "np.bitwise_or": lambda x: np.bitwise_or.reduce(x.view(np.int64))}


def reader(reduction, parts, pool):
    """A call that reads every part once, each in a thread of its own; NumPy releases the GIL."""
    return lambda: list(pool.map(reduction, parts))


@contextlib.contextmanager
def readers(threads=None, **others):
    """Yields {name: (a call that reads memory once, the bytes that it reads)}, with `others` added.

    The calls run on `threads` threads; None: one a processor.
    """
    threads = threads or len(os.sched_getaffinity(0))
    array = np.empty(BYTES // 4, dtype=np.float32)  # np.empty asks for huge pages
    array.fill(1)  # a page never written reads as the one shared page of zeros
    with ThreadPoolExecutor(threads) as pool:
        parts = np.array_split(array, threads)
        yield {name: (reader(function, parts, pool), BYTES) for name, function in REDUCTIONS.items()} | others


def read_bandwidth(threads=None, rounds=7, **others):
    """Bytes a second of each reader in the fastest of its interleaved rounds; "best" is the largest of all.

    `others` are as for `readers`, and should read 1 GB, as NumPy's do. The fastest round counts, not the median:
    interference only slows a read down, and a limit must not be beaten.
    """
    with readers(threads, **others) as reading:
        timings = interleaved({name: call for name, (call, _) in reading.items()}, rounds, pause=0,
                              title="read bandwidth")
        rates = {name: size / min(timings[name].calls) for name, (_, size) in reading.items()}
    return rates | {"best": max(rates.values())}


if __name__ == "__main__":
    for name, rate in read_bandwidth().items():
        print(f"{name}: {rate / 1e9:.1f} GB/s")
