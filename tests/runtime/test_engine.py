"""Engine: what it refuses, that a refusal changes nothing, and what it returns. That it is right: test_theorem.py."""

import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from models import SMALL, random_params
from theorem_tools import BACKENDS

from dcp_ref import Engine, Model, forward, generate, native, policies, trace
from dcp_ref.native import extension

MODEL = Model(SMALL, random_params(SMALL, 1, np.float32), None)


def state(engine, sequences):
    layers = range(SMALL.n_layer)
    counts = [[len(engine.live_positions(s, layer)) for s in sequences] for layer in layers]
    assert engine.live_counts(sequences).tolist() == counts
    return engine.stats(), [engine.live_positions(s, layer).tolist() for s in sequences for layer in layers]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1], []], "sequence 1: .*at least one"),
        ([[1], [SMALL.vocab_size]], "sequence 1: token id 11 is not in"),
        ([[1], [-1]], "sequence 1: token id -1"),
        ([[1], [1.5]], "sequence 1: .*integer"),
        ([[1], ["a"]], "sequence 1: .*integer"),
        ([[1], [0] * 8], "sequence 1: position 9 is not below n_positions"),
        ([[1]], "2 sequences and 1 token lists"),
        ([[1], [1], [1]], "2 sequences and 3 token lists"),
        ([[1], [[1]]], "sequence 1"),
        ([[1], 1], "sequence 1"),
    ],
)
def test_a_refused_feed_changes_nothing(backend, tokens, message):
    engine = Engine(MODEL, backend)
    pair = [engine.new_sequence(), engine.new_sequence()]
    engine.feed(pair, [[1, 2], [3, 4]])
    before = state(engine, pair)
    with pytest.raises(ValueError, match=message):
        engine.feed(pair, tokens)
    assert state(engine, pair) == before
    [_, got] = engine.feed(pair, [[5], [5]])
    fresh = Engine(MODEL, backend)
    again = [fresh.new_sequence(), fresh.new_sequence()]
    fresh.feed(again, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(got, fresh.feed(again, [[5], [5]])[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_sequences_are_named(backend):
    engine = Engine(MODEL, backend)
    a, b = engine.new_sequence(), engine.new_sequence()
    engine.release(b)
    for sequences, message in (([a, a], "0 appears twice"), ([a, b], "1 is unknown or was released"), ([7], "7"),
                               ([None], "None"), ([[a]], "unknown"), ([], "0 sequences")):
        with pytest.raises(ValueError, match=message):
            engine.feed(sequences, [[1]] * len(sequences))
    with pytest.raises(ValueError, match="1 is unknown or was released"):
        engine.release(b)
    with pytest.raises(ValueError, match="1 is unknown or was released"):
        engine.live_positions(b, 0)
    with pytest.raises(ValueError, match="1 is unknown or was released"):
        engine.live_counts([a, b])
    with pytest.raises(ValueError, match="layer"):
        engine.live_positions(a, 3)
    with pytest.raises(ValueError, match="logits"):
        engine.feed([a], [[1]], logits="first")
    assert engine.new_sequence() not in (a, b)  # a handle is never used again


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_fresh_float32_in_call_order(backend):
    params = {name: value.astype(np.float64) for name, value in MODEL.params.items()}
    engine = Engine(MODEL._replace(params=params), backend)  # float64 weights too
    a, b = engine.new_sequence(), engine.new_sequence()
    rows = engine.feed([b, a], [[1, 2, 3], [4]], logits="all")
    assert [row.shape for row in rows] == [(3, SMALL.vocab_size), (1, SMALL.vocab_size)]
    assert {row.dtype for row in rows} == {np.dtype(np.float32)}
    kept = [row.copy() for row in rows]
    last = engine.feed([a, b], [[5], [6, 7]])
    assert [row.shape for row in last] == [(SMALL.vocab_size,)] * 2
    engine.feed([a, b], [np.array([1], np.uint64), [2]])  # which NumPy would join as float64
    for row, copy in zip(rows, kept, strict=True):
        np.testing.assert_array_equal(row, copy)
    expected = forward(params, [[1, 2, 3, 6, 7]], SMALL).logits[0]
    np.testing.assert_allclose(rows[0], expected[:3], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(last[1], expected[4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_at_the_end_is_refused_before_it_is_computed(backend):
    engine = Engine(MODEL, backend)
    sequence = engine.new_sequence()
    engine.feed([sequence], [[1] * SMALL.n_positions])
    with pytest.raises(ValueError, match="position 9 is not below n_positions"):
        engine.feed([sequence], [[1]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_release_returns_the_slots(backend):
    engine = Engine(MODEL, backend)
    a, b = engine.new_sequence(), engine.new_sequence()
    engine.feed([a, b], [[1, 2, 3], [4, 5]])
    both = engine.stats()
    engine.release(a)
    one = engine.stats()
    assert 0 < one.live_tokens < both.live_tokens and one.bytes_owned < both.bytes_owned
    if backend == "native":
        assert one.bytes_reserved == both.bytes_reserved  # kept for the next sequence, which takes it
    c = engine.new_sequence()
    engine.feed([c], [[1, 2, 3]])
    assert engine.stats()[:7] == both[:7]


@pytest.mark.parametrize("backend", BACKENDS)
def test_thresholds(backend):
    assert Engine(MODEL, backend).threshold == 0
    assert Engine(MODEL, backend, threshold=np.float32(1)).threshold == 1
    with pytest.raises(ValueError, match="threshold must be a number, not nan"):
        Engine(MODEL, backend, threshold=float("nan"))
    with pytest.raises(ValueError, match="threshold must be a number, not '1'"):
        Engine(MODEL, backend, threshold="1")
    plain = Model(dataclasses.replace(SMALL, int_n_embd=None), MODEL.params, None)
    for model, policy in ((plain, None), (MODEL, policies.window(2)), (MODEL, policies.dense)):
        with pytest.raises(ValueError, match=r"threshold is 2, .* leave it 0, or use a model with interaction weights"):
            Engine(model, backend, policy=policy, threshold=2)
        assert Engine(model, backend, policy=policy, threshold=0).threshold == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_share_to_keep(backend):
    """The config's threshold for it; refused beside a threshold, and where no scores are used."""
    model = MODEL._replace(config=dataclasses.replace(SMALL, kept_thresholds=((0.1, 1.5), (0.4, -0.5))))
    for policy in (None, policies.learned, policies.budget(3)):
        assert Engine(model, backend, policy=policy, kept=0.1).threshold == 1.5
    between = Engine(model, backend, kept=0.2).threshold
    assert between == model.config.threshold_for(0.2) == pytest.approx(0.5)
    [one], [two] = (generate(model, [[1, 2, 3]], 5, backend=backend, seed=3, **options)
                    for options in ({"kept": 0.2}, {"threshold": between}))
    assert one.ids == two.ids
    np.testing.assert_array_equal(trace(model, [1, 2, 3, 4], kept=0.2, backend=backend).lifetime,
                                  trace(model, [1, 2, 3, 4], threshold=between, backend=backend).lifetime)
    with pytest.raises(ValueError, match=r"kept is 0\.1 and threshold is 2: give one of the two"):
        Engine(model, backend, threshold=2, kept=0.1)
    with pytest.raises(ValueError, match=r"kept must be from 0\.1 to 0\.4"):
        Engine(model, backend, kept=0.5)
    with pytest.raises(ValueError, match="no kept_thresholds"):
        Engine(MODEL, backend, kept=0.1)
    plain = model._replace(config=dataclasses.replace(model.config, int_n_embd=None))
    for other, policy in ((plain, None), (model, policies.window(2)), (model, policies.dense)):
        with pytest.raises(ValueError, match=r"kept is 0\.1, .* leave it out, or use a model with interaction weights"):
            Engine(other, backend, policy=policy, kept=0.1)


def test_backends():
    with pytest.raises(ValueError, match="backend 'cuda' is not one of"):
        Engine(MODEL, "cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Engine(MODEL).backend == ("native" if native.available() else "numpy")


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(extension, "lib", None)
    with pytest.warns(UserWarning, match="not built") as caught:
        assert Engine(MODEL).backend == "numpy"
    assert len(caught) == 1
    with pytest.raises(RuntimeError, match="not built"):
        Engine(MODEL, "native")


def test_head_and_heads():
    """An untied head and per-layer scales reach the engine too (the theorem's models have both at random)."""
    config = dataclasses.replace(SMALL, tie_word_embeddings=False)
    model = Model(config, random_params(config, 0, np.float32), None)
    engine = Engine(model, "numpy")
    [row] = engine.feed([engine.new_sequence()], [[1]])
    np.testing.assert_allclose(row, forward(model.params, [[1]], config).logits[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_may_share_an_engine(backend):
    """Each thread feeds sequences of its own, for long enough to meet the others inside C."""
    config = dataclasses.replace(SMALL, n_positions=256, n_layer=1)
    engine = Engine(Model(config, random_params(config, 1, np.float32), None), backend)
    texts = np.random.default_rng(0).integers(0, config.vocab_size, (4, 200))

    def feed(text):
        last = []
        for _ in range(5):
            sequence = engine.new_sequence()
            last = [engine.feed([sequence], [text[:120]]), engine.feed([sequence], [text[120:]])][-1]
            engine.release(sequence)
        return last[0]

    alone = [feed(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(feed, texts), alone, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert engine.stats().live_tokens == 0
