"""Scores are those of `evaluate`, and their bits belong to the text alone."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from corpus_tools import saved_model, text_of
from hypothesis import given
from hypothesis import strategies as st
from text_models import CONFIG, text_model

from dcp_ref import Engine, load, native
from dcp_ref.analysis import perplexity, texts
from dcp_ref.analysis.likelihood import nats
from dcp_ref.corpus import Scorer

TEXTS = [text_of(np.random.default_rng(n), most) for n, most in enumerate([3, 200, 20, 60, 1, 500, 9, 60, 0, 33])]
BACKENDS = ["numpy", pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="not built"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"), text_model())


def same(a, b):
    """Whether two columns of results have the same bits."""
    assert list(a) == list(b)
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes() if not isinstance(x, str) else x == y, name
    return True


def scored(scorer, texts):
    return scorer({"id": np.arange(len(texts)), "text": np.array(texts, object)})


def one_by_one(scorer, texts):
    rows = [scored(scorer, [text]) for text in texts]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} | {"id": np.arange(len(texts))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("context", "stride"), [(None, None), (20, 7)])
def test_a_document_is_scored_as_evaluate_measures_it(model, backend, context, stride):
    loaded, documents = load(model), [text for text in TEXTS if text.strip()][: 5 if backend == "native" else 2]
    found = scored(Scorer(model, backend=backend, context=context, stride=stride), documents)
    for n, text in enumerate(documents):
        tokens = texts.tokens_of(loaded, [text])
        expected = perplexity.evaluate(Engine(loaded, backend), tokens, context, stride, batch=1)
        assert found["tokens"][n] == expected.tokens.sum() == len(tokens) - 1
        assert found["log_probability"][n] == pytest.approx(-expected.nats.sum(), rel=1e-13)
        assert found["bytes"][n] == texts.count_bytes(loaded, tokens)
        assert found["bits_per_byte"][n] == pytest.approx(expected.bits_per_byte(found["bytes"][n]), rel=1e-13)
        np.testing.assert_array_equal(found["live_tokens"][n], expected.live.sum(1) / expected.tokens.sum())
        assert found["share_kept"][n] == expected.share_kept
        assert found["error"][n] == ""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["learned", "heavy_hitters:3,5", "learned:4"])
def test_batches_and_order_change_no_bit(model, backend, policy):
    some = TEXTS if backend == "native" else ["the sea " * 30, *TEXTS[2:5:2], TEXTS[8]]  # NumPy is slow
    expected = one_by_one(Scorer(model, backend=backend, policy=policy, batch=1), some)
    for batch in (1, 2, 7, None) if backend == "native" else (None,):
        assert same(scored(Scorer(model, backend=backend, policy=policy, batch=batch), some), expected)
    turned = scored(Scorer(model, backend=backend, policy=policy), some[::-1])
    assert same({name: column[::-1] for name, column in turned.items() if name != "id"},
                {name: column for name, column in expected.items() if name != "id"})


@given(n=st.integers(1, 9), vocabulary=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_nats_of_a_row_do_not_depend_on_the_rows_beside_it(n, vocabulary, seed):
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 9, (n, vocabulary)).astype(np.float32)
    targets = draw.integers(0, vocabulary, n)
    alone = [nats(logits[k : k + 1], targets[k : k + 1])[0] for k in range(n)]
    assert nats(logits, targets).tobytes() == np.array(alone).tobytes()


def test_rows_that_are_none_have_an_error_and_the_others_their_bits(model):
    strange = ["a sea", None, "caf\udce9", "", 7, b"bytes", "an old man", math.nan]
    found = scored(Scorer(model), strange)
    assert [error != "" for error in found["error"]] == [False, True, True, False, True, True, False, True]
    assert "lone surrogate at index 3" in found["error"][2] and "NoneType" in found["error"][1]
    assert np.isnan(found["log_probability"][[1, 2, 4, 5, 7]]).all() and not found["tokens"][[1, 2, 4, 5, 7]].any()
    alone = one_by_one(Scorer(model), ["a sea", "", "an old man"])
    assert found["log_probability"][[0, 3, 6]].tobytes() == alone["log_probability"].tobytes()
    assert found["log_probability"][3] == found["tokens"][3] == 0 and np.isnan(found["bits_per_byte"][3])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_is_the_rows_error(tmp_path):
    model = text_model(dataclasses.replace(CONFIG, int_n_embd=None))
    huge = {name: array * np.float32(1e38 if name == "ln_f.weight" else 1) for name, array in model.params.items()}
    directory = saved_model(tmp_path, model._replace(params=huge))
    found = scored(Scorer(directory), ["the old man", ""])
    assert found["error"].tolist() == ["the log probability is not finite", ""]


def test_it_can_be_pickled_and_gives_its_ids_back(model):
    scorer = Scorer(model, id="name", text="body", policy="window:4", context=16, weights="int8")
    rows = {"name": ["x", "y"], "body": ["a sea", "grey"], "more": [1, 2]}
    there = pickle.loads(pickle.dumps(scorer))
    assert there.settings == scorer.settings and there.facts() == scorer.facts()
    assert same(there(rows), scorer(rows))
    assert list(scorer(rows)) == ["name", *Scorer.columns] and scorer(rows)["name"] is rows["name"]


def test_no_rows_are_columns_too(model):
    assert {name: len(column) for name, column in Scorer(model)({"id": [], "text": []}).items()} == dict.fromkeys(
        ("id", *Scorer.columns), 0)


@pytest.mark.parametrize(("options", "words"), [
    ({"context": 49}, r"context must be from 2 to n_positions \(48\), not 49"), ({"context": 1}, "context"),
    ({"context": 9, "stride": 10}, r"stride must be from 1 to the context \(9\), not 10"), ({"stride": 0}, "stride"),
    ({"batch": 0}, "batch must be an integer of at least 1"), ({"policy": "nonsense"}, "nonsense"),
    ({"threads": 0}, "threads")])
def test_refusals(model, options, words):
    with pytest.raises(ValueError, match=words):
        Scorer(model, **options)


def test_what_it_needs(model, tmp_path):
    with pytest.raises(ValueError, match="the rows have no column 'text', but"):
        Scorer(model)({"id": [1], "body": ["x"]})
    with pytest.raises(ValueError, match="has no tokenizer"):
        Scorer(saved_model(tmp_path, text_model()._replace(tokenizer=None)))


def test_facts_change_with_what_decides_the_bits(model, tmp_path):
    facts = Scorer(model).facts()
    assert facts["task"] == "Scorer" and facts == Scorer(model, batch=3, threads=1).facts()
    other = Scorer(saved_model(tmp_path, text_model(seed=1))).facts()
    assert {name for name in facts if facts[name] != other[name]} == {"weights_sha256"}
    for name, value in {"policy": "window:3", "threshold": 0.5, "kv": "int8", "weights": "int8", "stride": 5}.items():
        changed = Scorer(model, **{name: value}).facts()
        assert {field for field in facts if facts[field] != changed[field]} == {name}
