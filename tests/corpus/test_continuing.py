"""Continuations are those of `generate`, with random numbers that belong to a row's id."""

import dataclasses
import pickle

import numpy as np
import pytest
from corpus_tools import saved_model
from hypothesis import given
from hypothesis import strategies as st
from text_models import CONFIG, text_model

from dcp_ref import Engine, load
from dcp_ref.corpus import Continuer
from dcp_ref.corpus.continuing import number_of
from dcp_ref.runtime.generation import complete, make_rows
from dcp_ref.runtime.sampling import Sampling, row_stream

PROMPTS = ["the old", "a", "señor, the sea was", "海は", "the sea and the old man and the sea", "grey", "naïve 🌊",
           "x" * 9]
IDS = [*range(5), "five", "6", 6]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"), text_model())


def continued(continuer, ids=IDS, prompts=PROMPTS):
    found = continuer({"id": ids, "text": prompts})
    assert list(found) == ["id", "text", "ids", "stop_reason", "error"]
    return list(zip(found["text"], found["ids"], found["stop_reason"], found["error"], strict=True))


def test_a_row_is_continued_as_generate_does_it(model):
    loaded = load(model)
    found = continued(Continuer(model, seed=5, max_new_tokens=20, temperature=0.9, top_k=40, stop=["ea"]))
    for n, (id, prompt) in enumerate(zip(IDS, PROMPTS, strict=True)):
        [row] = make_rows(loaded, [prompt], 20, 5, ["ea"])
        row.rng = row_stream(5, number_of(id))
        complete(Engine(loaded), [row], Sampling(0.9, 40))
        assert found[n] == (row.text, row.ids, row.stop_reason, "")
    assert {reason for _, _, reason, _ in found} >= {"length", "stop"}


@pytest.mark.parametrize("backend", [None, "numpy"])
def test_batches_and_order_change_no_bit(model, backend):
    def new(batch):
        return Continuer(model, max_new_tokens=12, batch=batch, backend=backend)

    expected = continued(new(1))
    for batch in (2, 3, None):
        assert continued(new(batch)) == expected
    assert continued(new(3), IDS[::-1], PROMPTS[::-1])[::-1] == expected
    assert [row for n in range(8) for row in continued(new(None), IDS[n : n + 1], PROMPTS[n : n + 1])] == expected


def test_the_id_and_the_seed_decide_what_is_drawn(model):
    def texts(ids, seed=0):
        return [text for text, *_ in continued(Continuer(model, max_new_tokens=20, seed=seed), ids, ["the sea"] * 3)]

    same, other, again = texts(["a", "b", "a"])
    assert same == again != other
    assert texts([7, "7", np.int64(7)])[::2] == texts([7, 8, 7])[::2]
    assert len(set(texts([1, "1", 2]))) == 3
    assert texts(["a", "b", "c"], seed=1) != texts(["a", "b", "c"])


@given(st.lists(st.one_of(st.integers(), st.text()), unique_by=lambda id: (type(id), id), min_size=2))
def test_ids_have_numbers_of_their_own(ids):
    assert len({number_of(id) for id in ids}) == len(ids)


def test_rows_that_cannot_be_continued_have_an_error(model):
    prompts = ["the sea", "", "the sea " * 99, "\udc80", None]
    found = continued(Continuer(model, max_new_tokens=5), range(5), prompts)
    assert [error for *_, error in found] == [
        "", "the text is empty", found[2][3], "the text: text is not valid Unicode: a lone surrogate at index 0",
        "the text is a NoneType, not a string"]
    assert "the text is too long" in found[2][3]
    assert found[0] == continued(Continuer(model, max_new_tokens=5), [0], ["the sea"])[0]
    assert all(row[:3] == ("", [], "error") for row in found[1:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_for_which_no_token_can_be_drawn_does_not_end_the_others(model, monkeypatch, tmp_path):
    draw, expected = Sampling.draw, continued(Continuer(model, max_new_tokens=9))
    state = row_stream(0, number_of("five")).bit_generator.state["state"]

    def fails(self, logits, rng):
        if rng.bit_generator.state["state"]["inc"] == state["inc"]:
            raise ValueError("logits: the largest is nan, so no token can be drawn")
        return draw(self, logits, rng)

    monkeypatch.setattr(Sampling, "draw", fails)
    continuer = Continuer(model, max_new_tokens=9)
    found = continued(continuer)
    assert found[5] == ("", [], "error", "logits: the largest is nan, so no token can be drawn")
    assert found[:5] + found[6:] == expected[:5] + expected[6:]
    assert continuer.engine.stats().live_tokens == 0
    monkeypatch.undo()
    plain = text_model(dataclasses.replace(CONFIG, int_n_embd=None))
    huge = {name: array * np.float32(1e38 if name == "ln_f.weight" else 1) for name, array in plain.params.items()}
    broken = Continuer(saved_model(tmp_path, plain._replace(params=huge)))
    assert all("no token can be drawn" in error for *_, error in continued(broken))


def test_it_can_be_pickled_and_refuses_settings(model):
    continuer = Continuer(model, max_new_tokens=4, stop="sea", top_p=0.9)
    there = pickle.loads(pickle.dumps(continuer))
    assert there.facts() == continuer.facts() and continued(there) == continued(continuer)
    assert {name: continuer.facts()[name] for name in ("max_new_tokens", "stop", "top_p", "seed")} == {
        "max_new_tokens": 4, "stop": ["sea"], "top_p": 0.9, "seed": 0}
    for options in ({"seed": -1}, {"max_new_tokens": 1.5}, {"temperature": -1}, {"top_p": 0}, {"stop": [""]}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Continuer(model, **options)
