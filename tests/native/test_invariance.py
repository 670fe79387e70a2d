"""Bitwise the same: whatever rows, sequences and threads there are besides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import moderate_model, random_model
from thread_tools import omp_threads

from dcp_ref import Config, Engine, native
from dcp_ref.policies import dense, heavy_hitters, learned, sinks
from dcp_ref.runtime.precision import STORAGES

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import kernels as native_kernels

MODEL = moderate_model()
POLICIES = {policy.name: policy for policy in (learned, dense, heavy_hitters(9, 12), sinks(3, 20))}
BITS = np.testing.assert_array_equal


def several_threads(rows, n_in, n_out):
    """Whether dcp_threads_for in linear.c takes more than one."""
    return rows * n_in * n_out >= 1 << 16


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("n_in", "n_out"), [(77, 301), (300, 500)])
def test_a_row_of_linear(storage, n_in, n_out):
    """Alone, and in blocks of up to 40 rows at every place; by 1 thread and by 2, 3 and 4."""
    rng = np.random.default_rng(0)
    x, add = rng.normal(size=(40, n_in)).astype(np.float32), rng.normal(size=(40, n_out)).astype(np.float32)
    w = native_kernels.pack(rng.normal(size=(n_in, n_out)), rng.normal(size=n_out), storage)
    plain = np.concatenate([native_kernels.linear(x[i : i + 1], w, threads=1) for i in range(40)])
    added = np.concatenate([native_kernels.linear(x[i : i + 1], w, add[i : i + 1], 1) for i in range(40)])
    assert several_threads(40, n_in, n_out)
    with omp_threads(4):
        for threads in (1, 2, 3, 4):
            for rows in range(1, 41):
                for first in {0, (40 - rows) // 2, 40 - rows}:
                    block = slice(first, first + rows)
                    BITS(native_kernels.linear(x[block], w, threads=threads), plain[block])
                    BITS(native_kernels.linear(x[block], w, add[block], threads), added[block])


@pytest.mark.parametrize("kind", ["gelu_new", "gelu", "relu"])
def test_a_row_of_the_other_kernels(kind):
    x = np.random.default_rng(0).normal(size=(40, 301)).astype(np.float32) * 3
    g, b = x[:2]
    alone = [np.concatenate([one(x[i : i + 1], 1) for i in range(40)]) for one in (
        lambda x, n: native_kernels.layer_norm(x, g, b, 1e-5, n), lambda x, n: native_kernels.activation(x, kind, n))]
    with omp_threads(4):
        for threads in (1, 2, 3, 4):
            for rows in range(1, 41):
                BITS(native_kernels.layer_norm(x[:rows], g, b, 1e-5, threads), alone[0][:rows])
                BITS(native_kernels.activation(x[:rows], kind, threads), alone[1][:rows])


TEXT = np.random.default_rng(1).integers(0, 300, 120)
CHUNKS = [50, 1, 1, 49, *[1] * 9]


def fed(company=None, chunks=CHUNKS, **options):
    """Logits of every token of TEXT, live positions in every layer, and the share of them; `company` is fed besides."""
    engine = Engine(MODEL, "native", **options)
    sequence, start, rows = engine.new_sequence(), 0, []
    for turn, count in enumerate(chunks):
        handles, tokens = company(engine, turn) if company else ([], [])
        place = len(handles) // 2
        handles.insert(place, sequence)
        tokens.insert(place, TEXT[start : start + count])
        rows.append(engine.feed(handles, tokens, logits="all")[place])
        start += count
    return np.concatenate(rows), [engine.live_positions(sequence, layer).tolist() for layer in range(2)]


class Company:
    """Other sequences: fed in chunks of any size, forked, released, and their pages given back."""

    def __init__(self, seed):
        self.rng, self.length = np.random.default_rng(seed), {}

    def __call__(self, engine, turn):
        rng, length = self.rng, self.length
        for _ in range(rng.integers(0, 4)):
            length[engine.new_sequence()] = 0
        if length and rng.random() < 0.3:
            parent = int(rng.choice(list(length)))
            length[engine.fork(parent)] = length[parent]
        for handle in [handle for handle in length if rng.random() < 0.1]:
            engine.release(handle)
            del length[handle]
        if rng.random() < 0.2:
            engine.trim()
        chosen = [handle for handle in length if length[handle] < 128 and rng.random() < 0.7]
        counts = [int(rng.integers(1, min(129 - length[handle], rng.choice([2, 60, 129])))) for handle in chosen]
        for handle, count in zip(chosen, counts, strict=True):
            length[handle] += count
        return chosen, [rng.integers(0, 300, count) for count in counts]


@pytest.mark.parametrize(("weights", "kv", "policy"), [
    *[(weights, kv, "learned") for weights in STORAGES for kv in STORAGES],
    *[("float32", kv, policy) for kv in STORAGES for policy in POLICIES if policy != "learned"]])
def test_a_sequence(weights, kv, policy):
    """Its logits and live positions, alone with one thread: and in any company, with any number of threads."""
    options = {"weights": weights, "kv": kv, "policy": POLICIES[policy]}
    logits, live = fed(**options, threads=1)
    assert np.isfinite(logits).all() and (policy == "dense" or len(live[0]) < 70)
    with omp_threads(4):
        for threads, company in ((4, None), (1, Company(2)), (2, Company(3)), (3, Company(4))):
            got, now = fed(company, threads=threads, **options)
            BITS(got, logits)
            assert now == live


@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("policy", POLICIES)
def test_forks_that_share_pages(policy, kv):
    """Fed side by side by several threads, each is as if alone: forks, forks of these, and a parent or none."""
    texts = np.random.default_rng(2).integers(0, 300, (7, 50))

    def alone(text):
        engine = Engine(MODEL, "native", policy=POLICIES[policy], kv=kv, threads=1)
        sequence = engine.new_sequence()
        engine.feed([sequence], [TEXT[:70]])
        return [engine.feed([sequence], [text[i : i + 2]])[0] for i in range(0, 50, 2)]

    expected = [alone(text) for text in texts]
    with omp_threads(4):
        engine = Engine(MODEL, "native", policy=POLICIES[policy], kv=kv, threads=4)
        handles = [engine.new_sequence()]
        engine.feed(handles, [TEXT[:70]])
        handles += [engine.fork(handles[0]) for _ in range(4)]
        for i in range(25):
            if i == 3:
                engine.release(handles.pop(0))  # the parent: the others own what it had
                texts, expected = texts[1:], expected[1:]
            rows = engine.feed(handles, [text[2 * i : 2 * i + 2] for text in texts[: len(handles)]])
            BITS(rows, [row[i] for row in expected[: len(handles)]])
            if i == 9:  # the last two go on as the first one does
                texts[4:], expected[4:] = texts[:1], 2 * expected[:1]
                handles += [engine.fork(handles[0]) for _ in range(2)]


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 60), min_size=2, max_size=5).filter(lambda c: sum(c) <= 120),
       st.sampled_from(STORAGES))
def test_a_sequence_in_chunks_of_its_own(seed, chunks, kv):
    alone, together = fed(None, chunks, kv=kv), fed(Company(seed), chunks, kv=kv)
    BITS(together[0], alone[0])
    assert together[1] == alone[1]


@pytest.mark.parametrize("n_embd", [64, 1024])
def test_the_last_tokens_logits_without_the_others(n_embd):
    """Of a prompt's last layer only the last rows are then computed; the cache must not miss the others."""
    config = Config(vocab_size=300, n_positions=128, n_embd=n_embd, n_layer=2, n_head=2, n_inner=64, int_n_embd=4)
    model, ids = random_model(config, 0, 1.0), [TEXT[:30], TEXT[:1], TEXT[:70]]
    engine = Engine(model, "native")
    last, every = ([engine.new_sequence() for _ in ids] for _ in range(2))
    for tokens in (ids, [[7], [8, 9], [3]]):
        all_rows, rows = engine.feed(every, tokens, logits="all"), engine.feed(last, tokens)
        BITS(rows, [row[-1] for row in all_rows])
    assert np.array_equal(engine.live_counts(last), engine.live_counts(every))


def test_a_sequence_under_depth_propagation():
    model = moderate_model(propagate_in_depth=True)
    with omp_threads(4):
        engines = [Engine(model, "native", threads=n) for n in (1, 4)]
        rows = [engine.feed([engine.new_sequence() for _ in range(3)], [TEXT[:100], TEXT, TEXT[5:90]], logits="all")
                for engine in engines]
        alone = engines[0].feed([engines[0].new_sequence()], [TEXT], logits="all")
    BITS(rows[0][1], alone[0])
    for one, four in zip(*rows, strict=True):
        BITS(one, four)
