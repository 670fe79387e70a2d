"""A sequence in a file and back: the same bits go on. What does not fit or is damaged is refused; nothing changes."""

import contextlib
import dataclasses
import os

import numpy as np
import pytest
from fault_tools import failing_at, fails_at_line
from hypothesis import given, settings
from hypothesis import strategies as st
from models import moderate_model, random_model, random_models
from safetensors.numpy import load_file
from theorem_tools import BACKENDS, dense_with
from thread_tools import SANITIZED, run_python
from tolerances import THEOREM_LOGITS

import dcp_ref
from dcp_ref import Engine, policies
from dcp_ref.runtime import saving
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.precision import STORAGES

MODEL = moderate_model()
DEEP = moderate_model(propagate_in_depth=True)
TEXT = np.random.default_rng(1).integers(0, 300, 120)
SMALL = random_model(dcp_ref.Config(vocab_size=11, n_positions=40, n_embd=8, n_layer=2, n_head=2, int_n_embd=4), 0, 1.0)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def odd(i, positions, scores, attention):
    """A rule of one's own: odd positions stay for 30 tokens, even ones for 10."""
    return i - positions > np.where(positions % 2, 30, 10)


RULES = [policies.dense, policies.learned, policies.budget(12), policies.sinks(2, 20), policies.heavy_hitters(5, 20),
         policies.rule("odd", odd)]


def live(engine, sequence):
    return [engine.live_positions(sequence, layer).tolist() for layer in range(engine.config.n_layer)]


def held(engine):
    stats = engine.stats()
    return stats.live_tokens, stats.bytes_owned, sorted(engine._cache._sequences._sequences)


def go_on(engine, sequence):
    """Logits of some more tokens, one, a few and many at once."""
    return np.concatenate([engine.feed([sequence], [chunk], logits="all")[0]
                           for chunk in (TEXT[:1], TEXT[1:4], TEXT[20:40])])


@each_backend
@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("policy", RULES, ids=str)
@pytest.mark.parametrize("model", [MODEL, DEEP], ids=["alone", "in depth"])
def test_what_is_restored_goes_on_to_the_bit(backend, kv, policy, model, tmp_path):
    """A fork, with pins, which shares pages with a parent that goes on; in the same engine, and in another."""
    engine = Engine(model, backend, kv=kv, policy=policy)
    parent = engine.new_sequence()
    engine.feed([parent], [TEXT[:70]], pinned=[np.arange(70) % 9 == 2])
    sequence = engine.fork(parent)
    engine.feed([parent, sequence], [[1], [2]])
    before = held(engine)
    engine.save(sequence, tmp_path / "saved")
    assert held(engine) == before and os.listdir(tmp_path) == ["saved"]
    other = Engine(model, backend, kv=kv, policy=policy)
    there, here = other.restore(tmp_path / "saved"), engine.restore(tmp_path / "saved")
    assert live(other, there) == live(engine, here) == live(engine, sequence) and engine.length(here) == 71
    other.save(there, tmp_path / "again")
    again, whole = (load_file(tmp_path / name) for name in ("again", "saved"))
    assert again.keys() == whole.keys() and all(again[name].tobytes() == whole[name].tobytes() for name in whole)
    expected = go_on(engine, sequence)
    np.testing.assert_array_equal(go_on(other, there), expected)
    np.testing.assert_array_equal(go_on(engine, here), expected)
    assert live(other, there) == live(engine, here) == live(engine, sequence)
    engine.release(here)
    other.release(there)
    other.trim()
    assert other.stats()[:6] == (0, 0, 0, 0, 0, 0)


@each_backend
@settings(max_examples=60)
@given(random_models(), st.integers(2, 16), st.integers(0, 2**32 - 1), st.data())
def test_the_theorem_holds_across_a_file(backend, tmp_path_factory, m, T, seed, data):
    """A text whose sequence is saved and restored in between is the dense forward's, pins too."""
    ids = np.random.default_rng(seed).integers(0, m.config.vocab_size, T)
    pinned = np.random.default_rng(seed).random(T) < 0.2
    expected, stays = dense_with(m, ids, pinned=pinned)
    cut, file = data.draw(st.integers(1, T - 1)), tmp_path_factory.mktemp("saved") / "file"
    first, second = Engine(m, backend), Engine(m, backend)
    sequence = first.new_sequence()
    first.feed([sequence], [ids[:cut]], pinned=[pinned[:cut]])
    first.save(sequence, file)
    restored = second.restore(file)
    [got] = second.feed([restored], [ids[cut:]], logits="all", pinned=[pinned[cut:]])
    np.testing.assert_allclose(got, expected[cut:], **THEOREM_LOGITS)
    for layer, positions in enumerate(live(second, restored)):
        np.testing.assert_array_equal(positions, np.flatnonzero(stays[layer, T - 1]))


@each_backend
def test_a_sequence_without_tokens(backend, tmp_path):
    engine = Engine(SMALL, backend)
    engine.save(engine.new_sequence(), tmp_path / "saved")
    restored, fresh = engine.restore(tmp_path / "saved"), engine.new_sequence()
    assert engine.length(restored) == 0
    np.testing.assert_array_equal(engine.feed([restored], [[1, 2]])[0], engine.feed([fresh], [[1, 2]])[0])


@each_backend
def test_a_sequence_that_was_released_is_not_saved(backend, tmp_path):
    engine = Engine(SMALL, backend)
    sequence = engine.new_sequence()
    engine.release(sequence)
    with pytest.raises(ValueError, match=f"sequence {sequence} is unknown or was released"):
        engine.save(sequence, tmp_path / "saved")
    assert not os.listdir(tmp_path)


def saved(engine, file, n=36):
    sequence = engine.new_sequence()
    engine.feed([sequence], [TEXT[:n] % 11], pinned=[np.arange(n) == 3])
    engine.save(sequence, file)
    return sequence


def refused(engine, file, *words):
    """`restore` names the file and what is wrong, and the engine is as it was."""
    before = held(engine)
    with pytest.raises(ValueError, match=f"^{file}: ") as error:
        engine.restore(file)
    assert all(word in str(error.value) for word in words), error.value
    assert held(engine) == before


def with_config(**changes):
    config = dataclasses.replace(SMALL.config, **changes)
    return dcp_ref.Model(config, SMALL.params, None)


OTHERS = {
    "weights is ": {"model": random_model(SMALL.config, 1, 1.0)},
    "config.int_delay is 0 there, and 2 here": {"model": with_config(int_delay=2)},
    "config.propagate_in_depth is False there, and True here": {"model": with_config(propagate_in_depth=True)},
    "policy.name is 'learned' there, and 'learned:5' here": {"policy": policies.budget(5)},
    "policy.learned is True there, and False here": {"policy": policies.Policy("learned", window=3)},
    "threshold is 0.0 there, and 0.5 here": {"threshold": 0.5},
    "kv is 'float32' there, and 'int8' here": {"kv": "int8"},
    "weights_storage is 'float32' there, and 'float16' here": {"weights": "float16"}}


@each_backend
@pytest.mark.parametrize("words", OTHERS)
def test_what_belongs_to_another_engine(backend, words, tmp_path):
    saved(Engine(SMALL, backend), tmp_path / "saved")
    refused(Engine(OTHERS[words].get("model", SMALL), backend,
                   **{name: value for name, value in OTHERS[words].items() if name != "model"}),
            tmp_path / "saved", "belongs to another engine: ", words, "read the text again")


def test_another_backend_rule_or_version(tmp_path, monkeypatch):
    file, engine = tmp_path / "saved", Engine(SMALL, "numpy")
    saved(engine, file)
    if len(BACKENDS) > 1:
        refused(Engine(SMALL, "native"), file, "backend is 'numpy' there, and 'native' here")
    monkeypatch.setattr(dcp_ref, "__version__", "0.0")
    refused(engine, file, "version is ", "and '0.0' here")
    saved(Engine(SMALL, "numpy", policy=policies.rule("mine", odd)), file)
    refused(Engine(SMALL, "numpy", policy=policies.rule("mine", lambda *_: None)), file, "policy.rule is 'odd' there")
    monkeypatch.setattr(saving, "VERSION", "2")
    refused(Engine(SMALL, "numpy", policy=policies.rule("mine", odd)), file, "version 1 of the format, and this is 2")


def test_what_is_no_saved_cache(tmp_path):
    engine = Engine(SMALL, "numpy")
    refused(engine, tmp_path / "none", "cannot be read (No such file or directory)")
    refused(engine, tmp_path, "cannot be read (Is a directory)")
    (tmp_path / "text").write_text("a text")
    refused(engine, tmp_path / "text", "no saved cache, or damaged")
    dcp_ref.save(SMALL, tmp_path / "model")
    refused(engine, tmp_path / "model" / "model.safetensors", "no saved cache", "give a file that Engine.save wrote")


@each_backend
def test_every_byte_counts(backend, tmp_path):
    """Truncated anywhere, or with a bit flipped anywhere."""
    engine, file = Engine(SMALL, backend), tmp_path / "saved"
    saved(engine, file)
    data, draw = file.read_bytes(), np.random.default_rng(0)
    for size in [*range(0, len(data), 211), len(data) - 1]:
        file.write_bytes(data[:size])
        refused(engine, file)
    for at in [*range(0, 400), *draw.integers(0, len(data), 400).tolist()]:
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(draw.integers(8))]) + data[at + 1 :])
        refused(engine, file)
    file.write_bytes(data + b"more")
    refused(engine, file)
    file.write_bytes(data)
    assert engine.length(engine.restore(file)) == 36


def changed(name, change, layer=1):
    """Of what is saved, one field of one layer."""
    def edit(tokens):
        layers = [dict(fields) for fields in tokens.layers]
        layers[layer][name] = change(layers[layer][name].copy())
        return tokens._replace(layers=layers)

    return edit


def put(at, value):
    def change(x):
        x[at] = value
        return x

    return change


def without(name):
    def edit(tokens):
        layers = [dict(fields) for fields in tokens.layers]
        del layers[0][name]
        return tokens._replace(layers=layers)

    return edit


WRONG = {
    "positions that descend": (changed("position", lambda x: x[::-1]), "layer.1.position must ascend"),
    "a position twice": (changed("position", lambda x: put(0, x[1])(x)), "layer.1.position must ascend"),
    "a position below 0": (changed("position", put(0, -1)), "layer.1.position must ascend"),
    "a position beyond seen": (changed("position", put(-1, 36)), "to 35, the last token"),
    "positions of another type": (changed("position", np.float64), "layer.1.position is float64"),
    "keys of another shape": (changed("k", lambda x: x[:, :-1]), "layer.1.k is float32"),
    "keys of another type": (changed("k", np.float64), "layer.1.k is float64"),
    "fewer values": (changed("v", lambda x: x[1:]), "layer.1.v is float32"),
    "no values": (without("v"), "KeyError"),
    "no positions": (without("position"), "KeyError"),
    "more than is known": (changed("more", lambda x: x), "tensors that are too many: ['layer.1.more']"),
    "a token that one layer pins": (changed("pinned", np.zeros_like), "a pinned token is not in all layers"),
    "a last token that is missing": (lambda tokens: tokens._replace(seen=37), "to 36, the last token"),
    "tokens seen beyond the positions": (lambda tokens: tokens._replace(seen=41), "seen is 41"),
    "tokens seen below 0": (lambda tokens: tokens._replace(seen=-1), "seen is -1"),
    "no number of tokens seen": (lambda tokens: tokens._replace(seen=True), "seen is True"),
    "a layer too many": (lambda tokens: tokens._replace(layers=[*tokens.layers, tokens.layers[0]]), "too many"),
    "a layer too few": (lambda tokens: tokens._replace(layers=tokens.layers[:1]), "KeyError: 'layer.1.position'"),
    "no token": (lambda tokens: tokens._replace(
        layers=[{name: x[:0] for name, x in fields.items()} for fields in tokens.layers]), "must ascend")}
SLOTS = {
    "a slot twice": (changed("slot", lambda x: put(0, x[1])(x)), "layer.1.slot must be different slots"),
    "a slot below 0": (changed("slot", put(0, -1)), "layer.1.slot must be different slots"),
    "a slot of no page": (changed("slot", put(0, 64)), "layer.1.slot must be different slots below")}


@pytest.mark.parametrize(("backend", "wrong"), [(b, w) for b in BACKENDS for w in WRONG] +
                         [(b, w) for b in BACKENDS if b == "native" for w in SLOTS])
def test_impossible_tokens(backend, wrong, tmp_path):
    """Written as `save` does, so that the digest fits."""
    engine, file = Engine(SMALL, backend), tmp_path / "saved"
    edit, words = (WRONG | SLOTS)[wrong]
    tokens = engine._saving.export(engine._cache, saved(engine, file))
    if wrong == "more than is known":
        tokens.layers[1]["more"] = np.zeros(3)
    saving.write(file, edit(tokens), engine._owner())
    refused(engine, file, "damaged", words, "read the text again")


@each_backend
def test_past_the_bound(backend, tmp_path):
    file, engine = tmp_path / "saved", Engine(MODEL, backend)
    sequence = engine.new_sequence()
    engine.feed([sequence], [TEXT])
    engine.save(sequence, file)
    small = Engine(MODEL, backend, max_cache_bytes=engine.stats().bytes_owned)
    first = small.restore(file)
    assert small.stats().bytes_owned == small.stats().bytes_peak == engine.stats().bytes_owned
    before = held(small)
    with pytest.raises(CacheFull, match="its bound is"):
        small.restore(file)
    assert held(small) == before
    small.release(first)
    assert live(small, small.restore(file)) == live(engine, sequence)


@pytest.mark.skipif(SANITIZED, reason="a sanitizer sees no lines of Python")
@each_backend
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("what", ["save", "restore"])
def test_an_interrupt_at_any_line(backend, error, what, tmp_path):
    """The older file or the new one stands there, whole; no sequence with tokens is left behind."""
    engine, file = Engine(SMALL, backend), tmp_path / "saved"
    old, new = saved(engine, file, 20), saved(engine, tmp_path / "other", 36)
    n, hit, known = 0, True, set(engine._cache._sequences._sequences)
    before, found = engine.stats()[:3], set()
    while hit:
        n += 1
        results: list[int] = []
        save, restore = lambda: engine.save(new, file), lambda: results.append(engine.restore(file))  # noqa: B023
        hit = fails_at_line(n, error(), save if what == "save" else restore)
        for stray in set(engine._cache._sequences._sequences) - known:
            assert stray in results or engine.length(stray) == 0
            engine.release(stray)
        assert engine.stats()[:3] == before
        if what == "save" and n % 7 == 0:
            restored = engine.restore(file)
            found.add(engine.length(restored))
            assert live(engine, restored) == live(engine, {20: old, 36: new}[engine.length(restored)])
            engine.release(restored)
    assert n > 50


def test_a_failure_at_any_call_of_the_system(tmp_path):
    """As in test_replacing.py, which also ends the process there."""
    engine, file = Engine(SMALL, "numpy"), tmp_path / "saved"
    old, new = saved(engine, file, 20), saved(engine, tmp_path / "other", 36)
    lengths, n, happened = [], 0, True
    while happened:
        n += 1
        engine.save(old, file)

        def fail():
            raise OSError("no space")

        with failing_at(n, fail) as failed:
            with contextlib.suppress(OSError):
                engine.save(new, file)
            happened = failed()
        restored = engine.restore(file)
        assert live(engine, restored) == live(engine, {20: old, 36: new}[engine.length(restored)])
        lengths.append(engine.length(restored))
        engine.release(restored)
    assert set(lengths) == {20, 36} and n > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_that_is_killed_while_it_saves(tmp_path):
    code = """
import os, sys
from pathlib import Path
from fault_tools import failing_at
from models import random_model
import dcp_ref
model = random_model(dcp_ref.Config(vocab_size=11, n_positions=40, n_embd=8, n_layer=2, n_head=2, int_n_embd=4), 0, 1.0)
engine, file, lengths = dcp_ref.Engine(model, "numpy"), Path(sys.argv[1]), []
def fed(n):
    sequence = engine.new_sequence()
    engine.feed([sequence], [[1] * n])
    return sequence
old, new = fed(5), fed(9)
for n in range(1, 200):
    engine.save(old, file)
    if os.fork() == 0:
        with failing_at(n, lambda: os._exit(9)):
            engine.save(new, file)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    lengths.append(engine.length(engine.restore(file)))
    if code == 0:
        break
print(code, lengths[-1], set(lengths) == {5, 9}, n > 5)
"""
    assert run_python(code, str(tmp_path / "saved")) == "0 9 True True\n"
