"""Tokenizer: any text comes back, training repeats itself, and what cannot be encoded or decoded is said."""

import json
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers_of_all_kinds import KINDS, TEXT

from dcp_ref.checkpoints.tokenizer import END_OF_TEXT, Tokenizer

TEXTS = ["the old man looked at the sea, the old sea", "and the sea looked back at the old man"] * 5
TOKENIZER = Tokenizer.train(TEXTS, 280)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


@pytest.mark.parametrize("text", ["", " ", " two  spaces", "\r\n\t\0", "Ġ", "é", "e\u0301", "😀🏽", "\ufeff", "\ufffd"])
def test_texts_that_normalisation_or_bytes_could_change(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_common_words_become_one_token():
    assert len(TOKENIZER.encode(" the")) == 1
    assert len(TOKENIZER.encode("xyz")) == 3


def test_end_of_text_is_one_id_and_is_not_hidden():
    assert TOKENIZER.eos_id == 0
    ids = TOKENIZER.encode(f"sea{END_OF_TEXT}old")
    assert ids.count(0) == 1
    assert TOKENIZER.decode(ids) == f"sea{END_OF_TEXT}old"


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff"])
def test_a_lone_surrogate_is_refused(text):
    with pytest.raises(ValueError, match=f"surrogate at index {len(text) - 1}"):
        TOKENIZER.encode(text)


@pytest.mark.parametrize("bad", [-1, TOKENIZER.vocab_size, 2**40])
def test_an_unknown_id_is_named(bad):
    with pytest.raises(ValueError, match=rf"id {bad} is not"):
        TOKENIZER.decode([5, bad, 6])


def test_half_a_character_is_a_replacement_character():
    assert TOKENIZER.decode(TOKENIZER.encode("é")[:1]) == "\ufffd"


def test_training_has_the_size_asked_for_or_what_the_texts_can_give():
    assert TOKENIZER.vocab_size == 280
    few = Tokenizer.train(["ab"], 5000)
    assert few.vocab_size < 280
    assert few.decode(few.encode("any — text")) == "any — text"
    assert Tokenizer.train(["ab"], 10**18).vocab_size == few.vocab_size


def test_training_accepts_a_generator():
    assert Tokenizer.train((text for text in TEXTS), 280).encode("the sea") == TOKENIZER.encode("the sea")


@pytest.mark.parametrize("size", [-1, 0, 256])
def test_too_small_a_vocabulary_is_refused(size):
    with pytest.raises(ValueError, match="at least 257"):
        Tokenizer.train(TEXTS, size)


def test_training_repeats_itself_in_another_process(tmp_path):
    script = ("import sys; from dcp_ref.checkpoints.tokenizer import Tokenizer;"
              f"Tokenizer.train({TEXTS!r}, 280).save(sys.argv[1])")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    (tmp_path / "here").mkdir()
    TOKENIZER.save(tmp_path / "here")
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "here" / "tokenizer.json").read_bytes()


def test_save_and_read_back(tmp_path):
    TOKENIZER.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again is not None
    assert (again.vocab_size, again.eos_id) == (TOKENIZER.vocab_size, TOKENIZER.eos_id)
    assert again.encode("the old man é") == TOKENIZER.encode("the old man é")


def test_an_empty_directory_has_none(tmp_path):
    assert Tokenizer.from_directory(tmp_path) is None


def write_pair(directory, vocab, merges):
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))


def test_vocab_and_merges(tmp_path):
    write_pair(tmp_path, {"a": 0, "b": 1, "ab": 2, "Ġ": 3, END_OF_TEXT: 4}, ["a b"])
    pair = Tokenizer.from_directory(tmp_path)
    assert pair is not None
    assert pair.encode(f"ab ba{END_OF_TEXT}") == [2, 3, 1, 0, 4]
    assert (pair.vocab_size, pair.eos_id) == (5, 4)
    assert pair.decode([2, 3, 4]) == f"ab {END_OF_TEXT}"


def test_a_vocabulary_without_end_of_text_does_not_grow(tmp_path):
    write_pair(tmp_path, {"a": 0, "b": 7}, [])
    pair = Tokenizer.from_directory(tmp_path)
    assert pair is not None
    assert (pair.vocab_size, pair.eos_id) == (8, None)
    with pytest.raises(ValueError, match="id 3 is not"):  # a gap in the ids
        pair.decode([3])


def test_tokenizer_json_comes_before_the_pair(tmp_path):
    write_pair(tmp_path, {"a": 0}, [])
    TOKENIZER.save(tmp_path)
    whole = Tokenizer.from_directory(tmp_path)
    assert whole is not None and whole.vocab_size == 280


def test_truncation_and_padding_in_the_file_are_not_obeyed(tmp_path):
    TOKENIZER.save(tmp_path)
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    fields["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": END_OF_TEXT}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    again = Tokenizer.from_directory(tmp_path)
    assert again is not None
    for text in ("s", "the old man looked at the sea"):
        assert again.encode(text) == TOKENIZER.encode(text)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_pair_names_the_missing_file(tmp_path, missing):
    write_pair(tmp_path, {"a": 0}, [])
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=rf"{missing}: missing"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"version": "1.0"}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_corrupt_file_is_named(tmp_path, name, content):
    write_pair(tmp_path, {"a": 0}, [])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_corrupt_merges_are_named(tmp_path):
    write_pair(tmp_path, {"a": 0}, ["a b"])  # "b" is not in the vocabulary
    with pytest.raises(ValueError, match=r"vocab\.json: not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_bytes_are_decoded_as_the_library_does(ids):
    assert TOKENIZER.decode(ids) == TOKENIZER._backend.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_decoded_as_they_are_written(special):
    """Their letters are no bytes, though é is the name of one in byte-level BPE."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str())
    backend.add_tokens([AddedToken(word, special=special) for word in ("café", "naïve", "海")])
    tokenizer, text = Tokenizer(backend), "the café; naïve 海 señor"
    ids = tokenizer.encode(text)
    assert max(ids) >= 280 and tokenizer.decode(ids) == text
    assert tokenizer.count_bytes(ids) == len(text.encode())
    assert tokenizer.count_bytes(tokenizer.encode("café")) == 5


@pytest.mark.parametrize("name", KINDS)
def test_bytes_are_those_that_decoding_writes(name):
    tokenizer = Tokenizer(KINDS[name](), ["</s>", "[SEP]"])
    for text in ("the old man", TEXT, "sea " * 9):
        ids = tokenizer.encode(text)
        assert tokenizer.count_bytes(ids) == len(tokenizer.decode(ids).encode())
        ends = [*ids, tokenizer.eos_id, *ids, tokenizer.eos_id]  # the space that begins a text is not written
        assert tokenizer.count_bytes(ends) == 2 * len(tokenizer.decode(ids).encode())


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_part_of_a_character_counts_its_bytes(name):
    tokenizer = Tokenizer(KINDS[name]())
    ids = tokenizer.encode("the señor 🌊")
    for cut in range(1, 5):
        assert tokenizer.count_bytes(ids[: len(ids) + 1 - cut]) == len("the señor 🌊".encode()) + 1 - cut
