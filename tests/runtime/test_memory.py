"""Memory as the operating system counts it, bounds of the cache, and forks, through Engine."""

import dataclasses
import os

import numpy as np
import pytest
from cache_tools import page_bytes
from checkpoint_tools import WIDE, write_zeros
from models import SMALL, moderate_model, random_model
from theorem_tools import BACKENDS
from thread_tools import SANITIZED, run_python
from tolerances import THEOREM_LOGITS

from dcp_ref import Config, Engine, native
from dcp_ref.bench.decoding import calibrated, random_prompt
from dcp_ref.bench.decoding import random_model as bench_model
from dcp_ref.policies import dense, heavy_hitters, learned
from dcp_ref.runtime.checks import CacheFull

MODEL = moderate_model()
TEXT = np.random.default_rng(1).integers(0, 300, 120)
status = pytest.mark.skipif(SANITIZED or not os.path.exists("/proc/self/status"),
                            reason="needs /proc/self/status, and no sanitizer")
MEGABYTES = """
import re, sys
from pathlib import Path

def megabytes(field="VmRSS"):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000
"""


@status
@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_trim_gives_memory_back_to_the_system():
    """29 pages of 262 kB in each of 4 layers: what is released stays for others, until it is trimmed."""
    code = MEGABYTES + """
import numpy as np
from models import random_model
from dcp_ref import Config, Engine
from dcp_ref.policies import dense

config = Config(vocab_size=5, n_positions=1024, n_embd=1024, n_head=16, n_layer=4, n_inner=8)
engine = Engine(random_model(config, 0, 0.0), "native", policy=dense)
kept, released = engine.new_sequence(), engine.new_sequence()
engine.feed([kept, released], [[1, 2, 3], [4] * 32])  # what one step needs besides is there now
engine.trim()
before = megabytes()
first = engine.feed([kept], [[1]])[0]
for _ in range(14):
    engine.feed([released], [[1] * 64])
print(megabytes() - before, engine.stats().bytes_owned / 1e6)
engine.release(released)
print(megabytes() - before)
engine.trim()
print(megabytes() - before, (engine.stats().bytes_reserved - engine.stats().bytes_owned) / 1e6)
other = engine.new_sequence()
engine.feed([other], [[1, 2, 3]])
again = engine.feed([other], [[1]])[0]
np.testing.assert_array_equal(again, first)
"""
    full, owned, released, trimmed, free = map(float, run_python(code, OMP_NUM_THREADS="1").split())
    assert owned > 30 and full > 0.8 * owned and released > 0.8 * owned
    assert trimmed < 0.2 * owned and free == 0


def unit(backend, policy):
    """The bytes of a page; KVCache counts tokens, and 32 of them are as many."""
    if backend == "native":
        return page_bytes(MODEL.config, 32, "float32", policy)
    return 32 * (8 + 4 * (2 * MODEL.config.n_embd + policy.rank(MODEL.config) + 1))


def same(backend, got, expected):
    """C does not mind what is fed besides; NumPy's matrix products round in another order."""
    np.testing.assert_allclose(got, expected, **({"rtol": 0} if backend == "native" else THEOREM_LOGITS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", [None, dense, heavy_hitters(5, 20)], ids=str)
def test_a_bound_that_is_hit(backend, policy):
    """Every sequence is intact, and goes on after one is released, as in an engine without a bound."""
    options = {"backend": backend, "policy": policy}
    unbounded = Engine(MODEL, **options)
    page = unit(backend, unbounded.policy)
    bound = 2 * 4 * page  # four pages in each of two layers
    if backend == "numpy" and policy and policy.heavy:
        bound = 2 * 2 * page  # in pieces, a prompt needs little more than the 25 tokens that stay
    engine = Engine(MODEL, **options, max_cache_bytes=bound)
    handles = [[e.new_sequence() for _ in range(3)] for e in (engine, unbounded)]
    a, b, c = handles[0]
    pieces = {a: TEXT[:40], b: TEXT[20:50]}
    for e, (first, second, _) in zip((engine, unbounded), handles, strict=True):
        e.feed([first], [pieces[a]])
        e.feed([second], [pieces[b]])
    before = engine.stats()
    live = [engine.live_positions(h, layer).tolist() for h in (a, b) for layer in range(2)]
    assert before.bytes_reserved <= bound
    for too_much in (lambda: engine.feed([c], [TEXT[:100]]), lambda: engine.feed([a, b], [TEXT[:80], TEXT[:90]])):
        with pytest.raises(CacheFull, match=f"its bound is {bound}: release a sequence"):
            too_much()
    assert engine.stats()[:3] == before[:3] and engine.stats().bytes_reserved <= bound
    assert [engine.live_positions(h, layer).tolist() for h in (a, b) for layer in range(2)] == live
    assert engine.live_positions(c, 0).tolist() == []

    engine.release(a)
    unbounded.release(handles[1][0])
    for start in range(50, 62, 3):  # the others go on
        rows = [e.feed([second, third], [TEXT[start : start + 3], TEXT[start - 50 : start - 47]], logits="all")
                for e, (_, second, third) in zip((engine, unbounded), handles, strict=True)]
        for got, expected in zip(*rows, strict=True):
            same(backend, got, expected)
    assert engine.stats().live_tokens == unbounded.stats().live_tokens
    assert engine.stats().bytes_reserved <= bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", [dense, learned, heavy_hitters(5, 20)], ids=str)
def test_forks_that_go_on_past_the_bound(backend, policy):
    """Forks cost nothing until they are fed; then the bound counts what each has of its own."""
    engine = Engine(MODEL, backend, policy=policy)
    bound = (2 * 3 + 2 * 3 + 3) * unit(backend, engine.policy)
    engine = Engine(MODEL, backend, policy=policy, max_cache_bytes=bound)
    parent = engine.new_sequence()
    engine.feed([parent], [TEXT[:70]])
    before = engine.stats()
    forks = [engine.fork(parent) for _ in range(40)]
    full = engine.stats()
    assert full.bytes_owned == before.bytes_owned and full.bytes_logical == 41 * before.bytes_owned
    fed = []
    with pytest.raises(CacheFull):
        for fork in forks:
            now = engine.stats()
            engine.feed([fork], [[1]])
            fed.append(fork)
    assert fed and engine.stats()[:3] == now[:3] and engine.stats().bytes_owned <= bound
    for fork in forks:
        engine.release(fork)
    assert engine.stats()[:3] == before[:3]
    engine.feed([engine.fork(parent)], [[1]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("policy", "dropped"), [(dense, 0.0), (learned, 0.8)], ids=str)
def test_64_forks_of_a_long_prompt_cost_one(backend, policy, dropped):
    """At most 1.2 times one prompt, and what they added: in C a step copies one page in each layer."""
    config = Config(vocab_size=50, n_positions=1024, n_embd=32, n_head=2, n_layer=2, int_n_embd=8, eos_token_id=None)
    prompt, model = random_prompt(config, 800).tolist(), calibrated(bench_model(config), dropped, 800)
    engine = Engine(model, backend, policy=policy)
    parent = engine.new_sequence()
    engine.feed([parent], [prompt])
    one = engine.stats()
    forks = [engine.fork(parent) for _ in range(64)]
    assert engine.stats().bytes_owned == one.bytes_owned and engine.stats().bytes_logical == 65 * one.bytes_owned
    if backend == "native" and policy is dense:
        rows = engine.feed(forks, [[b % 50] for b in range(64)])
        added = 64 * config.n_layer * unit(backend, policy)
        assert engine.stats().bytes_owned <= 1.2 * one.bytes_owned + added
        alone = engine.new_sequence()
        engine.feed([alone], [prompt])
        np.testing.assert_array_equal(rows[7], engine.feed([alone], [[7]])[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", [None, heavy_hitters(5, 20)], ids=str)
@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_a_parent_never_changes(backend, policy, kv):
    """Three continuations of one prompt are those of three separate feeds; the parent goes on as if it had none."""
    options = {"backend": backend, "policy": policy, "kv": kv}
    engine, alone = Engine(MODEL, **options), Engine(MODEL, **options)
    parent = engine.new_sequence()
    engine.feed([parent], [TEXT[:60]])
    live = [engine.live_positions(parent, layer).tolist() for layer in range(2)]
    children = [engine.fork(parent) for _ in range(3)]
    texts = np.random.default_rng(3).integers(0, 300, (4, 12))
    grandchild = None
    rows: list = [[] for _ in range(4)]
    for i in range(12):
        for place, row in enumerate(engine.feed(children, [[text[i]] for text in texts[:3]])):
            rows[place].append(row)
        if i == 5:
            grandchild = engine.fork(children[1])
    assert [engine.live_positions(parent, layer).tolist() for layer in range(2)] == live
    engine.release(children[0])
    rows[3] = [engine.feed([parent], [[token]])[0] for token in texts[3]]
    for text, got in zip(texts, rows, strict=True):
        sequence = alone.new_sequence()
        alone.feed([sequence], [TEXT[:60]])
        for token, row in zip(text, got, strict=True):
            same(backend, row, alone.feed([sequence], [[token]])[0])
    for token, row in zip(texts[1][6:], rows[1][6:], strict=True):
        same(backend, engine.feed([grandchild], [[token]])[0], row)


def test_forks_that_cannot_be():
    engine = Engine(random_model(SMALL, 0, 0.0), "numpy")
    sequence = engine.new_sequence()
    for handle in (7, None, "0"):
        with pytest.raises(ValueError, match="unknown or was released"):
            engine.fork(handle)
    child = engine.fork(sequence)  # of nothing yet
    engine.feed([child], [[1]])
    assert engine.live_positions(sequence, 0).tolist() == []


@status
@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_in_memory_once(tied, tmp_path):
    """The peak of a whole process that loads 219 MB or more, packs them and decodes."""
    size = write_zeros(tmp_path, dataclasses.replace(WIDE, tie_word_embeddings=tied)) / 1e6
    code = MEGABYTES + """
import dcp_ref
engine = dcp_ref.Engine(dcp_ref.load(sys.argv[1]), "native")
engine.feed([engine.new_sequence()], [[1] * 60])
print(megabytes("VmHWM"))
"""
    peak = float(run_python(code, tmp_path))
    assert size > 210 and peak < 1.15 * size + 150, f"{peak} MB for {size} MB of weights"
