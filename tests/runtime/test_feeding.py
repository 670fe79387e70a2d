"""A prompt under a bound: fed in pieces where it does not fit at once, and all or nothing for the caller."""

import numpy as np
import pytest
from cache_tools import page_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from models import moderate_model
from theorem_tools import BACKENDS
from tolerances import STORED, THEOREM_LOGITS

from dcp_ref import Config, Engine, native, policies
from dcp_ref.bench.decoding import calibrated, random_model, random_prompt
from dcp_ref.native.extension import lib
from dcp_ref.runtime import feeding
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.feeding import Piece, in_pieces
from dcp_ref.runtime.precision import STORAGES

MODEL = moderate_model()
TEXT = np.random.default_rng(1).integers(0, 300, 120)
LONG = Config(vocab_size=50, n_positions=1024, n_embd=32, n_head=2, n_layer=2, int_n_embd=8, eos_token_id=None)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def same(backend, got, expected, close=THEOREM_LOGITS):
    """To the bit in C; NumPy's matrix products round in another order."""
    np.testing.assert_allclose(got, expected, **({"rtol": 0} if backend == "native" else close))


def in_c(engine):
    return not hasattr(engine._cache, "_token_bytes")


def odd(i, positions, scores, attention):
    """A rule of one's own: odd positions stay for 30 tokens, even ones for 10."""
    return i - positions > np.where(positions % 2, 30, 10)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(48, 400), st.integers(1, 3))
def test_pieces_are_all_rows_in_order(counts, most_rows, most_sequences):
    done = []

    def feed(piece):
        assert sum(piece.counts) == piece.stop - piece.start and len(piece.counts) == piece.end - piece.first
        if piece.stop - piece.start > most_rows or len(piece.counts) > most_sequences:
            raise CacheFull
        starts = np.cumsum([0, *counts])
        assert piece.start in starts or (piece.start - starts[piece.first]) % feeding.ROUND_ROWS == 0
        done.extend((b, row) for b in range(piece.first, piece.end)
                    for row in range(max(starts[b], piece.start), min(starts[b + 1], piece.stop)))

    in_pieces(counts, feed)
    assert done == [(b, row) for b, row in zip(np.repeat(range(len(counts)), counts), range(sum(counts)), strict=True)]


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_rounds_are_those_of_c():
    assert lib.DCP_ROUND_ROWS == feeding.ROUND_ROWS


def test_a_round_that_does_not_fit():
    tried = []

    def feed(piece):
        tried.append(piece.stop - piece.start)
        raise CacheFull("no room")

    with pytest.raises(CacheFull, match="no room"):
        in_pieces([180, 1], feed)
    assert tried == [181, 180, 48]
    assert Piece(0, 1, 3, 51, [48]).halves() == []


def most(backend, model, policy, text):
    """The bytes that a bound needs so that nothing is fed in pieces, and what is owned in the end."""
    engine = Engine(model, backend, policy=policy)
    sequence = engine.new_sequence()
    engine.feed([sequence], [text])
    return engine.stats().bytes_reserved, engine.stats().bytes_owned


@each_backend
@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("policy", [policies.learned, policies.budget(12), policies.sinks(2, 20),
                                    policies.heavy_hitters(5, 20), policies.rule("odd", odd)], ids=str)
def test_pieces_give_the_same(backend, logits, kv, policy, monkeypatch):
    """Logits, drops and live tokens of a ragged batch, one of whose sequences has tokens before; with pins."""
    texts, cut, results, bound = [TEXT[:50], TEXT[10:110], TEXT[:1]], [], [], None
    pins = [np.random.default_rng(len(text)).random(len(text)) < 0.1 for text in texts]
    plain = feeding.Piece.halves
    monkeypatch.setattr(feeding.Piece, "halves", lambda piece: cut.append(piece) or plain(piece))
    for _ in range(2):
        assert not cut
        engine = Engine(MODEL, backend, kv=kv, policy=policy, max_cache_bytes=bound)
        handles, drops = [engine.new_sequence() for _ in range(3)], []
        engine.feed(handles[1:2], [TEXT[:10]])
        before = engine.stats().live_tokens
        rows = engine.feed(handles, texts, logits=logits, drops=drops, pinned=pins)
        bound = engine.stats().bytes_reserved - 1  # what the feed would need at once
        if not in_c(engine):
            bound = (before + 2 * 151) * engine._cache._token_bytes - 1
        live = [engine.live_positions(h, layer).tolist() for h in handles for layer in range(2)]
        after = engine.feed(handles, [[1], [2, 3], [4]])
        results.append((np.concatenate([np.atleast_2d(row) for row in (*rows, *after)]), drops, live))
    (expected, drops, live), (got, got_drops, got_live) = results
    assert cut and got_live == live
    same("numpy" if policy.rule else backend, got, expected, STORED[kv][1])
    for x, y in zip(got_drops, drops, strict=True):
        np.testing.assert_array_equal(x, y)


@each_backend
@pytest.mark.parametrize("policy", [None, policies.window(176)], ids=str)
def test_a_long_prompt_needs_little_more_than_what_stays(backend, policy):
    """880 tokens, of which 80% go: 0.3 times the dense bytes are enough at any time, as a bound too."""
    model, text = calibrated(random_model(LONG), 0.8, 880), random_prompt(LONG, 880).tolist()
    _, dense = most(backend, model, policies.dense, text)
    if policy is None:  # a page has interaction keys besides
        dense = dense if backend == "numpy" else -(-880 // 32) * 2 * page_bytes(LONG, 32)
    engine = Engine(model, backend, policy=policy, max_cache_bytes=int(0.3 * dense))
    sequence = engine.new_sequence()
    [got] = engine.feed([sequence], [text])
    assert engine.stats().bytes_peak <= 0.3 * dense and engine.stats().bytes_reserved <= 0.3 * dense
    unbounded = Engine(model, backend, policy=policy)
    [expected] = unbounded.feed([unbounded.new_sequence()], [text])
    same(backend, got, expected)
    assert unbounded.stats().bytes_peak <= 0.35 * dense


@each_backend
@pytest.mark.parametrize("policy", [policies.dense, policies.learned, policies.window(60)], ids=str)
def test_a_prompt_that_does_not_fit_changes_nothing(backend, policy):
    engine = Engine(MODEL, backend, policy=policy)
    unit = page_bytes(MODEL.config, 32, policy=policy) if backend == "native" else 32 * engine._cache._token_bytes
    engine = Engine(MODEL, backend, policy=policy, max_cache_bytes=4 * unit)
    a, b = engine.new_sequence(), engine.new_sequence()
    engine.feed([a], [TEXT[:20]])
    before = engine.stats()
    live = engine.live_positions(a, 1).tolist()
    with pytest.raises(CacheFull, match="its bound is"):
        engine.feed([a, b], [TEXT[20:], TEXT])
    assert engine.stats()[:3] == before[:3] and engine.live_positions(a, 1).tolist() == live
    assert engine._cache.length(a) == 20 and engine._cache.length(b) == 0
    engine.release(b)
    [got] = engine.feed([a], [[7]])
    fresh = Engine(MODEL, backend, policy=policy)
    again = fresh.new_sequence()
    fresh.feed([again], [TEXT[:20]])
    same(backend, got, fresh.feed([again], [[7]])[0])


@each_backend
@pytest.mark.parametrize("what", ["feed", "release", "interrupt"])
@settings(max_examples=8)
@given(at=st.integers(0, 5))
def test_what_comes_between_the_pieces(backend, what, at):
    """A handler that feeds or releases a sequence of the feed, or an interrupt: all of the feed, or nothing."""
    unit = page_bytes(MODEL.config, 32) if backend == "native" else 32 * 90 * 4
    engine = Engine(MODEL, backend, max_cache_bytes=(12 if backend == "native" else 14) * unit)
    a, kept = engine.new_sequence(), engine.new_sequence()
    engine.feed([a, kept], [TEXT[:10], TEXT[:3]])
    before, left = engine.stats(), [at]
    plain, name = (engine._cache.room, "room") if backend == "native" else (engine._cache.check_room, "check_room")

    def handler(*args):
        left[0] -= 1
        if left[0] == -1:
            if what == "feed":
                engine.feed([a], [[9]])
            elif what == "release":
                engine.release(a)
            else:
                raise KeyboardInterrupt
        return plain(*args)

    setattr(engine._cache, name, handler)
    expected = TEXT[10:110].tolist()
    try:
        engine.feed([a], [expected])
        done = True
    except (KeyboardInterrupt, ValueError):
        done = False
    setattr(engine._cache, name, plain)
    hit = left[0] < 0
    if not hit or what == "feed":
        assert done and engine._cache.length(a) == 110 + (hit and what == "feed")
        fresh = Engine(MODEL, backend)
        again = fresh.new_sequence()
        fresh.feed([again], [TEXT[:10].tolist()])
        fresh.feed([again], [[9] * hit + expected])
        assert fresh.live_positions(again, 1).tolist() == engine.live_positions(a, 1).tolist()
    elif what == "release":
        assert not done and engine.stats().live_tokens == engine.live_counts([kept]).sum()
    else:
        assert engine._cache.length(a) == 10 and engine.stats()[:3] == before[:3]
    assert engine._cache.length(kept) == 3
    if what != "release" or not hit:
        engine.release(a)
    engine.release(kept)
    engine.trim()
    assert engine.stats()[:6] == (0, 0, 0, 0, 0, 0)
