"""A trace in a file and back; damaged and foreign files are refused by name."""

import json
import math
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import moderate_model
from safetensors import safe_open
from safetensors.numpy import save_file
from trace_tools import traced_models

import dcp_ref
from dcp_ref import policies, tracing
from dcp_ref.policies import for_model

TEXT = "The old man looked at the sea, and 소설 🙂\n</script><img src=x onerror=alert(1)>"


def assert_alike(a, b):
    for name in ("config", "texts", "prompt_tokens", "policy", "threshold", "backend", "scores", "weights", "kv",
                 "name"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("ids", "lifetime", "live_counts", "kinds"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for one, two in zip(a.drops, b.drops, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype
    assert a.to_json() == b.to_json() and str(a) == str(b)


@settings(max_examples=30)
@given(case=traced_models(), scores=st.booleans())
def test_there_and_back(tmp_path_factory, case, scores):
    m, policy, threshold, ids = case
    learned = for_model(m.config, policy).learned
    trace = dcp_ref.trace(m, ids, policy, threshold, scores=scores and learned)
    path = tmp_path_factory.mktemp("trace") / "x.trace"
    trace.save(path)
    again = tracing.load(path)
    assert again.model is None
    assert_alike(trace, again)
    with_model = again.with_model(m)
    assert_alike(trace, with_model)
    if learned and len(ids) > 1:
        np.testing.assert_array_equal(with_model.why(0, 1, 0).terms, trace.why(0, 1, 0).terms)
        if not scores:
            with pytest.raises(ValueError, match=r"a file, which holds no model: use trace\.with_model\(model\)"):
                again.why(0, 1, 0)
    assert [file.name for file in path.parent.iterdir()] == ["x.trace"]


def test_another_model_is_refused():
    m = moderate_model()
    trace = dcp_ref.trace(m, [1, 2, 3])
    changed = dict(m.params) | {"ln_f.bias": m.params["ln_f.bias"] + 1}
    with pytest.raises(ValueError, match="model: its config or weights are not those of the model that this trace"):
        trace.with_model(m._replace(params=changed))
    with pytest.raises(ValueError, match="model: its config or weights"):
        trace.with_model(moderate_model(n_head=4))
    assert trace.with_model(moderate_model()).why(0, 1, 0)


def test_a_model_that_was_calibrated_since_is_the_same():
    m, measured = moderate_model(), moderate_model(kept_thresholds=((0.1, 1.0),))
    assert dcp_ref.trace(m, [1, 2, 3]).with_model(measured).weights_hash == dcp_ref.trace(measured, [1]).weights_hash


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.safetensors"
    dcp_ref.trace(dcp_ref.load("tiny"), TEXT, scores=True).save(path)
    return path


def test_a_file_cut_short_or_with_a_byte_changed_is_refused_or_still_a_trace(saved):
    whole = saved.read_bytes()
    for cut in range(0, len(whole), len(whole) // 40):
        saved.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.safetensors: "):
            tracing.load(saved)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        saved.write_bytes(changed)
        try:
            str(tracing.load(saved))
        except ValueError as error:
            assert "a.safetensors: " in str(error)


def changed(path, metadata=None, header=None, **arrays):
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        old = dict(file.metadata())
    fields = json.loads(old["trace"]) | (header or {})
    tensors = {name: x for name, x in (tensors | arrays).items() if x is not None}
    save_file(tensors, path, old | {"trace": json.dumps(fields)} | (metadata or {}))


@pytest.mark.parametrize(("change", "words"), [
    ({"metadata": {"format": "pt"}}, "no trace, but another safetensors file"),
    ({"metadata": {"version": "2"}}, "version 2 of the format, and this is 1"),
    ({"metadata": {"trace": "{"}}, "damaged"), ({"metadata": {"trace": "[]"}}, "damaged"),
    ({"header": {"texts": ["a"]}}, "damaged"), ({"header": {"texts": [1] * 99}}, "damaged"),
    ({"header": {"policy": {"name": "x", "window": -1}}}, "damaged"),
    ({"header": {"config": {"n_layer": 9}}}, "damaged"), ({"header": {"policy": {"name": "dense"}}}, "damaged"),
    ({"header": {"prompt_tokens": 0}}, "damaged"), ({"header": {"threshold": "nan"}}, "damaged"),
    ({"header": {"backend": 3}}, "damaged"), ({"header": {"name": None}}, "damaged"),
    ({"header": {"policy": {"name": 3}}}, "damaged"),
    ({"ids": np.zeros(3, np.int64)}, "damaged"), ({"ids": None}, "damaged"), ({"q": None}, "damaged"),
    ({"lifetime": np.zeros((4, 9), np.int32)}, "damaged"), ({"beta": np.zeros(4)}, "damaged"),
    ({"reason": np.full(1, 9, np.int8)}, "damaged"), ({"key_parts": np.zeros((1, 9), np.float32)}, "damaged"),
])
def test_what_does_not_fit_is_refused(saved, change, words):
    changed(saved, **change)
    with pytest.raises(ValueError, match=rf"a\.safetensors: {words}"):
        tracing.load(saved)


def test_reasons_and_lifetimes_that_cannot_be(saved):
    trace = tracing.load(saved)
    held, dropped = trace.lifetime.copy(), trace.lifetime.copy()
    held[0, -1] = 2  # the last token has one row
    dropped[trace.drops.layer[0], trace.drops.position[0]] = 0  # each token has its own
    for name, array in [("lifetime", held), ("lifetime", dropped), ("lifetime", 0 * trace.lifetime),
                        ("lifetime", trace.lifetime + len(trace.ids)),
                        ("ids", trace.ids + 10**6), ("reason", np.full_like(trace.drops.reason, 6))]:
        trace.save(saved)
        changed(saved, **{name: array})
        with pytest.raises(ValueError, match=r"a\.safetensors: damaged"):
            tracing.load(saved)


def test_files_that_are_none(tmp_path):
    (tmp_path / "text").write_text("no trace")
    dcp_ref.save(moderate_model(), tmp_path / "model")
    for name, words in [("text", "no trace, or damaged"), ("missing", "cannot be read"), ("model", "cannot be read"),
                        ("model/model.safetensors", "no trace, but another safetensors file")]:
        with pytest.raises(ValueError, match=rf"{name}: {words}"):
            tracing.load(tmp_path / name)


def test_a_failure_leaves_the_older_file(saved, monkeypatch):
    before = saved.read_bytes()
    trace = dcp_ref.trace(dcp_ref.load("tiny"), "Another")
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trace.save(saved)
    assert saved.read_bytes() == before and [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_json_is_what_it_says():
    trace = dcp_ref.trace(dcp_ref.load("tiny"), TEXT, threshold=0.5, scores=True)
    found = json.loads(trace.to_json())
    assert found == trace.to_dict()
    L, T, D = 4, len(trace.ids), len(trace.drops.layer)
    assert (found["format"], found["version"], found["n_layer"], found["threshold"]) == ("dcp_ref.trace", 1, L, 0.5)
    assert "".join(found["texts"]) == TEXT and len(found["ids"]) == len(found["kinds"]) == T
    assert all(len(found["drops"][name]) == D for name in found["drops"])
    q, k = (decoded(found["interaction"][name], (L, T, found["interaction"]["r"])) for name in "qk")
    query, key = (decoded(found["parts"][name], (-1,)) for name in ("query", "key"))
    start = 0
    for n in range(D):
        layer, j, i, s = (found["drops"][name][n] for name in ("layer", "position", "dropped_by", "score"))
        beta, end = found["interaction"]["beta"][layer], start + 3 + 2 * layer
        assert q[layer, i] @ k[layer, j] / math.sqrt(q.shape[2]) + beta == pytest.approx(s, abs=1e-5)
        assert query[start:end].sum() == pytest.approx(s - beta, abs=1e-4)
        assert key[start:end].sum() == pytest.approx(s - beta, abs=1e-4)
        assert found["drops"]["margin"][n] == pytest.approx(s - 0.5, abs=1e-6)
        start = end
    assert start == len(query) == len(key)
    assert found["parts"]["names"] == ["embedding", "position", *(f"h.{n}.{part}" for n in range(L)
                                                                  for part in ("attn", "mlp"))]


def decoded(text, shape):
    import base64

    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape)


def test_json_has_no_infinity():
    for threshold, shown in ((math.inf, "inf"), (-math.inf, "-inf")):
        found = json.loads(dcp_ref.trace(dcp_ref.load("tiny"), TEXT, threshold=threshold).to_json())
        assert found["threshold"] == shown and set(found["drops"]["margin"]) <= {None}
    found = dcp_ref.trace(dcp_ref.load("tiny"), TEXT, policies.window(3)).to_dict()
    assert set(found["drops"]["score"]) == {None} and found["interaction"] is found["parts"] is None
    assert {found["reasons"][n] for n in found["drops"]["reason"]} == {"window"}


def test_the_page_gets_one_trace_or_two(monkeypatch):
    calls = []
    fake = types.ModuleType("page")
    fake.page = lambda traces: calls.append(traces) or '<p title="page">'
    monkeypatch.setitem(__import__("sys").modules, "dcp_ref.tracing.page", fake)
    trace = dcp_ref.trace(dcp_ref.load("tiny"), "The sea")
    assert trace.to_html() == '<p title="page">' and calls == [[trace.to_dict()]]
    trace.to_html(trace)
    assert len(calls[1]) == 2
    assert 'srcdoc="&lt;p title=&quot;page&quot;&gt;"' in trace._repr_html_()
