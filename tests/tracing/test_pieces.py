"""The text of each token, and its kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_of_all_kinds import KINDS as TOKENIZERS

import dcp_ref
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.tracing.kinds import KINDS, kinds_of
from dcp_ref.tracing.pieces import pieces

TINY = dcp_ref.load("tiny").tokenizer


def kinds(*texts, own=None):
    found, names = kinds_of(texts, own)
    assert found.dtype == np.int8
    return [names[n] for n in found]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_pieces_are_the_text(text):
    ids = TINY.encode(text)
    found = pieces(TINY, ids)
    assert "".join(found) == text and len(found) == len(ids)


@given(st.lists(st.integers(0, 4095), max_size=40))
def test_pieces_of_any_ids_are_what_decode_gives(ids):
    found = pieces(TINY, ids)
    assert "".join(found) == TINY.decode(ids) and len(found) == len(ids)


def test_a_character_stands_at_its_last_token():
    found = pieces(TINY, TINY.encode("a 소🙂b"))
    assert "".join(found) == "a 소🙂b" and "소" in found and found[found.index("소") - 1] == ""
    assert pieces(TINY, TINY.encode("소")[:1]) == ("\ufffd",)  # and what is left of one at the end


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
def test_pieces_of_tokenizers_of_every_kind(kind, data):
    tokenizer = Tokenizer(TOKENIZERS[kind]())
    ids = data.draw(st.lists(st.sampled_from(sorted(tokenizer.vocabulary.values())), max_size=12))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_ids_without_text():
    assert pieces(None, [3, 1]) == ("[3]", "[1]")
    assert pieces(TINY, [9999, *TINY.encode("sea"), 9999]) == ("[9999]", *pieces(TINY, TINY.encode("sea")), "[9999]")
    assert pieces(TINY, []) == () and pieces(TINY, [9999]) == ("[9999]",)


def test_kinds():
    assert kinds("The", " old", " man", "'s", " li", "fe", ",", "\n", " ", " 12", "3", " Lon", "don", " He", ".") == [
        "function word", "word", "word", "rest of a word", "word", "rest of a word", "punctuation", "whitespace",
        "whitespace", "digit", "digit", "capitalised", "rest of a word", "function word", "punctuation"]
    assert kinds("", "", "소", "설", " 🙂", "<|endoftext|>", "A", " AND", '"', "We", " _") == [
        "rest of a word", "rest of a word", "word", "rest of a word", "punctuation", "whitespace", "function word",
        "function word", "punctuation", "function word", "punctuation"]


def test_kinds_of_ones_own_come_first():
    own = {"sea": r"\bsea\b", "speech": '["“”]'}
    found, names = kinds_of([" sea", " seas", "“", ",", " the"], own)
    assert names == ("sea", "speech", *KINDS)
    assert [names[n] for n in found] == ["sea", "word", "speech", "punctuation", "function word"]
    with pytest.raises(ValueError, match=r"kinds: broken: '\(' is not a regular expression"):
        kinds_of(["a"], {"broken": "("})
