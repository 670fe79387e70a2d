"""Pinned tokens: the theorem with pins, on both backends; in the caches; how they are given, and what is refused."""

import re

import numpy as np
import pytest
from cache_tools import CACHES, Inputs, any_policies, configs, poison, thresholds, walk_layers, with_pages
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import moderate_model, random_models
from theorem_tools import BACKENDS, dense_with, schedules
from tolerances import CACHE_ATTENTION, THEOREM_LOGITS

from dcp_ref import Engine, forward, generate, load, native, policies, trace
from dcp_ref.policies import Policy
from dcp_ref.runtime.precision import STORAGES

SEEDS = st.integers(0, 2**32 - 1)
TEXT = "The old man looked at the sea, and the sea looked back at him."


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150)
@given(random_models(), any_policies(), schedules(16), SEEDS, st.sampled_from([0.1, 0.5, 1.0]), st.data())
def test_decoding_with_pins_is_the_dense_forward_with_pins(backend, m, policy, schedule, seed, share, data):
    """Whatever the batch and the cuts; a fork halfway has the pins of its parent."""
    assume(m.config.int_n_embd is not None or not policy.learned)
    lengths, calls = schedule
    threshold, rng = data.draw(thresholds(m.config, policy)), np.random.default_rng(seed)
    texts = [rng.integers(0, m.config.vocab_size, n) for n in lengths]
    pins = [rng.random(n) < share for n in lengths]
    expected = [dense_with(m, ids, policy, threshold, pinned) for ids, pinned in zip(texts, pins, strict=True)]
    engine = Engine(m, backend, policy=policy, threshold=threshold)
    handles, fed = [engine.new_sequence() for _ in texts], [0] * len(texts)
    for call in calls:
        parts = [(b, slice(fed[b], fed[b] + n)) for b, n in call]
        if data.draw(st.booleans()):
            handles[parts[0][0]] = engine.fork(handles[parts[0][0]])
        given_pins = [pins[b][part].tolist() for b, part in parts]
        given_pins = [one[0] if len(set(one)) == 1 else one for one in given_pins]  # all alike: a single bool
        results = engine.feed([handles[b] for b, _ in parts], [texts[b][part] for b, part in parts], logits="all",
                              pinned=given_pins)
        for (b, part), got in zip(parts, results, strict=True):
            logits, live = expected[b]
            np.testing.assert_allclose(got, logits[part], **THEOREM_LOGITS)
            fed[b] = part.stop
            for layer in range(m.config.n_layer):
                np.testing.assert_array_equal(engine.live_positions(handles[b], layer),
                                              np.flatnonzero(live[layer, fed[b] - 1]))


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
@settings(max_examples=100)
@given(config=configs(), chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6), page_slots=st.integers(1, 5),
       policy=any_policies(), kv=st.sampled_from(STORAGES), seed=SEEDS, data=st.data())
def test_both_caches_keep_the_same_pins(config, chunks, page_slots, policy, kv, seed, data):
    """Exact scores and attention, ties among them; and dropped slots poisoned."""
    assume(sum(chunks) <= config.n_positions and (config.int_n_embd is not None or not policy.learned))
    threshold, rng = data.draw(thresholds(config, policy)), np.random.default_rng(seed)
    inputs, pinned = Inputs(config, sum(chunks), rng, sharp=True), rng.random(sum(chunks)) < 0.4
    caches = [with_pages(make, config, page_slots, kv=kv, policy=policy, threshold=threshold) for make in CACHES]
    handles, start = [cache.new_sequence() for cache in caches], 0
    for count in chunks:
        results = [walk_layers(cache, [handle], [count], inputs, start, policy, pinned[start : start + count])
                   for cache, handle in zip(caches, handles, strict=True)]
        start += count
        for (out, dropped), (c_out, c_dropped) in zip(*results, strict=True):
            np.testing.assert_array_equal(c_dropped, dropped)
            np.testing.assert_allclose(c_out, out, **CACHE_ATTENTION)
            assert not pinned[dropped[:, 1]].any()
        if data.draw(st.booleans()):
            handles = [cache.fork(handle) for cache, handle in zip(caches, handles, strict=True)]
        for layer in range(config.n_layer):
            ours, theirs = (set(cache.live_positions(handle, layer).tolist())
                            for cache, handle in zip(caches, handles, strict=True))
            assert ours == theirs >= set(np.flatnonzero(pinned[:start]).tolist())
        poison(caches[1])


@pytest.mark.parametrize("make", CACHES)
def test_a_pinned_token_is_not_inherited_away(make):
    config = moderate_model(int_n_embd=None, propagate_in_depth=True).config
    cache, row = make(config), np.ones((3, config.n_embd), np.float32)
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [3], np.array([True, False, False]))
    _, dropped = cache.step(0, batch, row, row, row, inherited=np.array([[2, 0], [2, 1]], np.int32))
    assert dropped.tolist() == [[2, 1]] and cache.live_positions(sequence, 0).tolist() == [0, 2]


@pytest.mark.parametrize("make", CACHES)
def test_pins_are_not_counted_among_heavy_hitters(make):
    """With all attention alike, the latest candidate stays; the pinned ones besides."""
    config = moderate_model(n_layer=1).config
    cache, row = make(config, policy=policies.heavy_hitters(1, 1)), np.zeros((6, config.n_embd), np.float32)
    sequence = cache.new_sequence()
    pinned = np.array([True, False, True, False, False, False])
    cache.step(0, cache.reserve([sequence], [6], pinned), row, row, row)
    left = cache.live_positions(sequence, 0).tolist()
    assert {0, 2, 5} <= set(left) and len(left) == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kv", STORAGES)
def test_a_longer_text(backend, kv):
    """Several pages, rounds of a prompt and threads: pins at both ends of the pages and of the bitmap's words."""
    model, rng = moderate_model(beta=0.0), np.random.default_rng(0)
    text, pinned = rng.integers(0, 300, 120), np.isin(np.arange(120), [0, 1, 31, 32, 33, 63, 64, 95, 96, 119])
    engine = Engine(model, backend, kv=kv)
    sequence = engine.new_sequence()
    engine.feed([sequence], [text[:100]], pinned=[pinned[:100]])
    [got] = engine.feed([sequence], [text[100:]], pinned=[pinned[100:]])
    logits, mask = forward(model.params, text[None], model.config, pinned=pinned)
    if kv == "float32":  # with fewer bits a score may fall on the threshold's other side
        np.testing.assert_allclose(got, logits[0, -1], **THEOREM_LOGITS)
    for layer in range(2):
        live = engine.live_positions(sequence, layer).tolist()
        assert set(np.flatnonzero(pinned)) <= set(live) and len(live) < 60
        assert kv != "float32" or live == np.flatnonzero(mask[layer, 0, -1]).tolist()


@pytest.mark.parametrize("policy", [policies.learned, policies.window(2), policies.heavy_hitters(1, 2),
                                    Policy("both", True, 3, 1)], ids=str)
def test_forward_never_drops_what_is_pinned(policy):
    model, ids = moderate_model(beta=0.0), np.random.default_rng(1).integers(0, 300, (2, 20))
    pinned = np.random.default_rng(2).random((2, 20)) < 0.3
    config, params = model.config, model.params
    mask = forward(params, ids, config, policy=policy, pinned=pinned).interaction
    assert (mask.swapaxes(-1, -2)[:, pinned] == 1).all() and (mask == 0).any()
    kept = np.zeros((20, 20), bool)
    kept[4, 3] = True
    both = forward(params, ids, config, policy=policy, pinned=pinned, kept=kept).interaction
    assert (both[:, :, 4, 3] == 1).all() and (both.swapaxes(-1, -2)[:, pinned] == 1).all()
    none = forward(params, ids, config, policy=policy, pinned=np.zeros(20, bool))
    np.testing.assert_array_equal(none.logits, forward(params, ids, config, policy=policy).logits)
    with pytest.raises(ValueError, match=r"pinned must be booleans that broadcast to \[2, 20\], not int64 \[20\]"):
        forward(params, ids, config, policy=policy, pinned=np.zeros(20, int))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pinned", [[True], True, [True, [True]], [True, [True, False, True]], [1, True],
                                    [True, [1, 0]], [None, True], ["yes", True], [[[True]], True],
                                    [True, [[True], [True, False]]]])
def test_pins_that_do_not_fit_change_nothing(backend, pinned):
    engine = Engine(moderate_model(), backend)
    sequences = [engine.new_sequence(), engine.new_sequence()]
    with pytest.raises(ValueError, match=r"(sequence [01]: )?pinned must "):
        engine.feed(sequences, [[1], [2, 3]], pinned=pinned)
    assert engine.stats().live_tokens == 0
    engine.feed(sequences, [[1], [2, 3]], pinned=(one for one in [True, [False, True]]))
    assert engine.stats().live_tokens > 0


@pytest.mark.parametrize("make", CACHES)
@pytest.mark.parametrize("pinned", [np.zeros(2, bool), np.zeros(3), [True, False, True], np.zeros((3, 1), bool), True])
def test_a_cache_takes_a_boolean_for_each_token(make, pinned):
    cache = make(moderate_model().config)
    with pytest.raises(ValueError, match=r"pinned must be None or booleans \[3\]"):
        cache.reserve([cache.new_sequence()], [3], pinned)


@pytest.mark.parametrize("backend", BACKENDS)
def test_generate_pins_a_leading_text_or_ranges(tiny, backend):
    ids = tiny.tokenizer.encode(TEXT)
    n = len(tiny.tokenizer.encode("The old man"))
    by_text, by_range, by_bools, none = (
        generate(tiny, [TEXT], 12, 0, backend=backend, trace=True, pin=pin)[0]
        for pin in ("The old man", [(0, 1), (1, n)], np.arange(len(ids)) < n, None))
    assert by_text.ids == by_range.ids == by_bools.ids
    assert by_text.trace.pinned == by_range.trace.pinned == tuple(range(n)) and none.trace.pinned == ()
    T = len(by_text.trace.ids)
    assert (by_text.trace.left[:, :n] == T).all() and (none.trace.left[:, :n] < T).any()
    _, mask = forward(tiny.params, by_text.trace.ids[None], tiny.config, pinned=np.arange(T) < n)
    np.testing.assert_array_equal(by_text.trace.left > T - 1, mask[:, 0, -1] > 0)
    assert generate(tiny, [ids], 12, 0, backend=backend, pin="The old man")[0].ids == by_text.ids


@pytest.mark.parametrize(("pin", "words"), [
    ("", "pin must not be an empty text"), ("The sea", "prompts[0] does not begin with the text to pin, 'The sea'"),
    ("The old m", "prompts[0] does not begin with the tokens of the text to pin, 'The old m': where a token spans"),
    ([(0, 99)], "prompts[0]: pin: the range (0, 99) is not within its"), ([(3, 3)], "the range (3, 3) is not within"),
    ([(-1, 2)], "the range (-1, 2)"), ([(1, 2, 3)], "pin must not hold (1, 2, 3): give a text"),
    ([5], "pin must not hold 5: give a text"), (7, "pin must not be 7: give a text"),
    ([(0.5, 2)], "pin must not hold (0.5, 2)"), ([True], "prompts[0]: pin must be true, false, or"),
    ([True, 1], "pin must not hold True")])
def test_a_pin_that_does_not_fit_a_prompt_is_refused(tiny, pin, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        generate(tiny, [TEXT], 3, pin=pin)


def test_a_text_to_pin_needs_a_tokenizer(tiny):
    with pytest.raises(ValueError, match="pin: the model has no tokenizer"):
        generate(tiny._replace(tokenizer=None), [[1, 2]], 3, pin="a")
    assert generate(tiny._replace(tokenizer=None), [[1, 2]], 3, pin=[(0, 1)])[0].stop_reason == "length"


def test_a_trace_knows_its_pins(tiny, tmp_path):
    from dcp_ref.tracing import load as load_trace

    found, plain = trace(tiny, TEXT, pinned="The old man"), trace(tiny, TEXT)
    n, T = len(found.pinned), len(found.ids)
    assert found.pinned == tuple(range(n)) and (found.left[:, :n] == T).all()
    layer, j = np.argwhere(plain.left[:, :n] < T)[0].tolist()
    i = int(plain.left[layer, j])
    assert "is pinned: nothing drops it" in str(found.why(layer, i, j)) and "pinned" not in str(plain.why(layer, i, j))
    assert f"{n} pinned" in str(found) and found.to_dict()["pinned"] == list(range(n))
    logits, _ = forward(tiny.params, found.ids[None], tiny.config, pinned=np.arange(T) < n)
    shifted = logits[0, :-1] - logits[0, :-1].max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), found.ids[1:, None], 1)[:, 0]
    np.testing.assert_allclose(found.log_probabilities, chosen, rtol=1e-3, atol=1e-3)
    found.save(tmp_path / "pinned.safetensors")
    again = load_trace(tmp_path / "pinned.safetensors").with_model(tiny)
    assert again.pinned == found.pinned
    np.testing.assert_array_equal(again.counterfactual().delta, found.counterfactual().delta)
    assert "is pinned" in str(again.why(layer, i, j))
