"""Memory that is refused: what cannot be done has not begun, and can be done when there is memory again.

    NumPy's arrays        the n-th that a feed of either backend makes
    every allocation      the n-th of Python, NumPy, C and the system (mmap), in each operation of C's cache
    the address space     at many limits
    threads               none can be started

test_any_line.py raises MemoryError at every line instead, in more operations. Loading is tested there alone, because
safetensors ends the process where it gets no memory.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from models import moderate_model
from theorem_tools import BACKENDS, alone, close
from thread_tools import SANITIZED, run_python

from dcp_ref import Engine

MODEL = moderate_model()
TEXT = np.random.default_rng(1).integers(0, 300, 120).tolist()
each_backend = pytest.mark.parametrize("backend", BACKENDS)
START = """
import sys
import numpy as np
from models import moderate_model
from dcp_ref import Engine
model = moderate_model()
"""


@each_backend
def test_out_of_memory_in_a_feed_changes_nothing(backend, monkeypatch):
    """Whichever array is refused: a feed that could not be done has not begun."""
    engine, plain = Engine(MODEL, backend), np.empty
    a, b = engine.new_sequence(), engine.new_sequence()
    engine.feed([a, b], [TEXT[:3], TEXT[3:5]])
    before = engine.stats()[:3]
    for n in range(1, 1000):
        left = [n]

        def refuse(*args, left=left, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise MemoryError("refused")
            return plain(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(np, "empty", refuse)
            try:
                [row, _] = engine.feed([a, b], [TEXT[:4], [5]])
                break
            except MemoryError:
                assert engine.stats()[:3] == before and engine._cache.length(a) == 3
    close(backend, row, alone(MODEL, backend, TEXT[:3], TEXT[:4]))
    assert n > 1


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <errno.h>
#include <sys/mman.h>
static volatile long left = -1, refused;
void arm(long n) { left = n; refused = 0; }
long disarm(void) { left = -1; return refused; }
static int refuse(void)
{
    if (left > 0 && --left == 0) {
        refused = 1;
        errno = ENOMEM;
        return 1;
    }
    return 0;
}
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *malloc(size_t n) { return refuse() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return refuse() ? NULL : __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return refuse() ? NULL : __libc_realloc(p, n); }
void *mmap(void *a, size_t n, int p, int f, int d, off_t o)
{
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "mmap");
    return refuse() ? MAP_FAILED : real(a, n, p, f, d, o);
}
"""


REFUSING = START + """
import ctypes, itertools
from dcp_ref.native.cache import NativeCache
from dcp_ref.policies import dense
shim, text = ctypes.CDLL(sys.argv[1]), list(range(100))
x = np.random.default_rng(0).random((40, model.config.n_embd), np.float32)
engine, cache = Engine(model, "native"), NativeCache(model.config, policy=dense)
parent = engine.new_sequence()
engine.feed([parent], [text[:70]])

def two():
    children = [engine.fork(parent), engine.new_sequence()]
    engine.feed(children[1:], [text[:2]])
    return children

def room():
    s = cache.new_sequence()
    return s, cache.reserve([s], [40])

def dropping(sequences):
    drops = []
    return engine.feed(sequences, [text[:9], [5]], drops=drops), drops

nothing = lambda *_: None
OPERATIONS = {  # what it needs, the call, what must be equal, and how to end
    "feed": (two, lambda s: engine.feed(s, [text[:9], [5]]), lambda rows: rows[0], lambda s, _: map(engine.release, s)),
    "drops": (two, dropping, lambda result: np.concatenate([result[0][0], *(x.ravel() for x in result[1])]),
              lambda s, _: map(engine.release, s)),
    "fork": (nothing, lambda _: engine.fork(parent), lambda s: engine.feed([s], [[1]])[0],
             lambda _, s: [engine.release(s)]),
    "new_sequence": (nothing, lambda _: engine.new_sequence(), lambda s: engine.feed([s], [[1]])[0],
                     lambda _, s: [engine.release(s)]),
    "reserve": (cache.new_sequence, lambda s: cache.reserve([s], [40]),
                lambda batch: cache.step(0, batch, x, x, x)[0], lambda s, _: [cache.release(s)]),
    "step": (room, lambda pair: cache.step(0, pair[1], x, x, x), lambda result: result[0],
             lambda pair, _: [cache.release(pair[0])])}
needs, call, value, end = OPERATIONS[sys.argv[2]]
subject = needs()
result = call(subject)
expected, failures = value(result).copy(), 0
list(end(subject, result))
for n in itertools.count(1):
    engine.trim(), cache.trim()
    subject = needs()
    if sys.argv[2] not in ("step", "feed", "drops"):
        engine.trim(), cache.trim()
    before = engine.stats()[:3], cache.stats()[:3]
    shim.arm(n)
    try:
        result = call(subject)
    except (MemoryError, SystemError):  # NumPy forgets to say why, at some places of its own
        result = None
    hit = shim.disarm()
    if result is None:
        failures += 1
        assert (engine.stats()[:3], cache.stats()[:3]) == before
        result = call(subject)
    assert np.array_equal(value(result), expected)
    list(end(subject, result))
    if not hit:
        break
print(failures)
"""


@pytest.mark.skipif(SANITIZED or shutil.which("cc") is None or not sys.platform.startswith("linux"),
                    reason="needs a C compiler, Linux, and no sanitizer")
@pytest.mark.skipif("native" not in BACKENDS, reason="NumPy's own arithmetic does not survive it")
@pytest.mark.parametrize(("operation", "least"), [("feed", 20), ("drops", 30), ("fork", 10), ("new_sequence", 3),
                                                  ("reserve", 10), ("step", 10)])
def test_the_nth_allocation_is_refused(operation, least, tmp_path):
    """For every n; afterwards the same call succeeds, with the same result."""
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    shim = str(tmp_path / "shim.so")
    failures = run_python(REFUSING, shim, operation, LD_PRELOAD=shim, PYTHONMALLOC="malloc", OMP_NUM_THREADS="1",
                          OPENBLAS_NUM_THREADS="1")
    assert int(failures) >= least


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="needs Linux, and no sanitizer")
@each_backend
def test_a_feed_under_a_limit_of_memory(backend):
    """All or nothing, at many limits; and what fits afterwards is right."""
    code = START + f"""
import resource
from models import random_model
from dcp_ref import Config
config = Config(vocab_size=50, n_positions=1024, n_embd=512, n_head=8, n_layer=4, n_inner=2048)
engine = Engine(random_model(config, 0, 0.0), {backend!r})
a, text = engine.new_sequence(), [i % 50 for i in range(150)]
engine.feed([a], [text[:3]])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
failed, rows = 0, []
for extra in range(0, 40, 2):
    child = engine.fork(a)
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), resource.RLIM_INFINITY))
    try:
        rows += engine.feed([child], [text])
    except MemoryError:
        failed += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if len(rows) + failed == extra // 2 + 1 and engine._cache.length(child) == 3:
        continue
    assert engine._cache.length(child) == 153
    engine.release(child)
expected = engine.feed([a], [text])[0]
assert all(np.allclose(row, expected, atol=1e-3) for row in rows)
print(failed > 0 or engine.backend == "numpy")
"""
    assert run_python(code) == "True\n"


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="needs Linux, and no sanitizer")
def test_where_no_thread_can_be_started_one_does_the_work():
    """OpenMP would end the process."""
    code = START + """
import resource
from dcp_ref import native
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
engine = Engine(model, "native")  # before this nothing has asked for threads, whose stacks take 8 MB each
sequence = engine.new_sequence()
[row] = engine.feed([sequence], [list(range(100))])
print(native.threads(), row.shape)
"""
    if "native" in BACKENDS:
        assert run_python(code, OMP_NUM_THREADS="4", OMP_STACKSIZE="8M") == "1 (300,)\n"
