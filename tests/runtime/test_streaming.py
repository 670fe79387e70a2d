"""Streams of tokens of every kind of tokenizer: what they add to a prompt, and when it may be shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_of_all_kinds import KINDS, TEXT

from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.runtime import row
from dcp_ref.runtime.row import Stream

TOKENIZERS = {name: Tokenizer(made()) for name, made in KINDS.items()}
BYTES = TOKENIZERS["byte_fallback"]
BYTE = {byte: i for i, byte in BYTES.byte_tokens.items()}


def added(tokenizer, prompt, ids):
    """What decoding all ids writes beyond what decoding the prompt's writes."""
    before, both = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    same = next((n for n, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), min(len(before), len(both)))
    return both[same:]


def fallback(text):
    return [BYTE[byte] for byte in text.encode()]


def ids_of(name):
    """Any ids; those of a fallback's bytes come in runs, of characters and of halves."""
    tokenizer = TOKENIZERS[name]
    runs = st.sampled_from(sorted(tokenizer._tokens)).map(lambda i: [i])
    if tokenizer is BYTES:
        words = st.sampled_from(sorted(set(tokenizer._tokens) - set(tokenizer.byte_tokens))).map(lambda i: [i])
        runs = words | st.sampled_from(["é", "海", "🌊"]).map(fallback) | st.sampled_from(list(BYTE.values())).map(
            lambda i: [i])
    return st.lists(runs, max_size=60).map(lambda parts: [i for part in parts for i in part])


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_pieces_put_together_are_what_all_ids_write(name, data):
    tokenizer = TOKENIZERS[name]
    prompt, ids = data.draw(ids_of(name)), data.draw(ids_of(name))
    stream, shown = Stream(tokenizer, prompt), ""
    for n, i in enumerate(ids, 1):
        stream.push(i)
        assert stream.text[: stream.settled].startswith(shown)  # never taken back
        shown = stream.text[: stream.settled]
        assert stream.whole() == added(tokenizer, prompt, ids[:n])
        assert stream.whole().startswith(shown)
    assert stream.whole() == added(tokenizer, prompt, ids)


@pytest.mark.parametrize("name", KINDS)
def test_a_text_goes_on_where_its_prompt_ends(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("the old man looked at the sea")
    for cut in range(1, len(ids)):
        stream = Stream(tokenizer, ids[:cut])
        for i in ids[cut:]:
            stream.push(i)
        assert tokenizer.decode(ids[:cut]) + stream.text == tokenizer.decode(ids) == "the old man looked at the sea"
        assert stream.settled == len(stream.text)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_character_comes_when_its_last_byte_has(name):
    tokenizer = TOKENIZERS[name]
    stream, seen = Stream(tokenizer, tokenizer.encode("the")), []
    for i in tokenizer.encode("🌊")[-4:]:
        stream.push(i)
        seen.append(stream.text)
    assert seen == ["", "", "", "🌊"]
    stream.push(tokenizer.encode("the")[0])
    assert stream.text[: stream.settled].startswith("🌊")


def test_bytes_that_end_in_the_middle_of_a_character_are_not_lost():
    for name in ("byte_level", "byte_fallback"):
        tokenizer = TOKENIZERS[name]
        stream = Stream(tokenizer, tokenizer.encode("the"))
        for i in tokenizer.encode("🌊")[-4:-1]:
            stream.push(i)
        assert stream.text == "" and set(stream.whole()) == {"\ufffd"}


def test_a_replacement_character_that_is_meant_comes_out():
    for name in ("byte_level", "byte_fallback"):
        tokenizer = TOKENIZERS[name]
        prompt, ids = tokenizer.encode("the"), tokenizer.encode("the \ufffd sea \ufffd")
        stream = Stream(tokenizer, prompt)
        for i in ids[len(prompt) :]:
            stream.push(i)
        assert stream.whole() == " \ufffd sea \ufffd"


def test_a_run_of_bytes_that_breaks_was_not_shown():
    """One wrong byte, and a decoder with a fallback writes U+FFFD for all bytes of the run."""
    stream = Stream(BYTES, BYTES.encode("the"))
    for i in fallback("海海"):
        stream.push(i)
    assert stream.text == "海海" and stream.settled == 0
    stream.push(BYTE[0x80])
    assert stream.text == "" and stream.whole() == 7 * "\ufffd"
    stream.push(BYTES.encode("the")[0])
    assert stream.text[: stream.settled].startswith(7 * "\ufffd")


def test_a_prompt_may_end_in_a_long_run_of_bytes():
    run = fallback("海" * row.WINDOW)
    for cut in (3, 6):
        stream = Stream(BYTES, [*BYTES.encode("the"), *run[:-cut]])
        for i in run[-cut:]:
            stream.push(i)
        assert stream.text == stream.whole() == "海" * (cut // 3) and stream.settled == 0
        stream.push(BYTES.encode("the")[0])
        assert stream.text[: stream.settled].startswith("海" * (cut // 3) + " ")


@pytest.mark.parametrize("name", KINDS)
def test_a_token_costs_the_same_however_many_came_before(name, monkeypatch):
    """Ids decoded for each new one."""
    tokenizer, decoded = TOKENIZERS[name], []
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded.append(len(ids)) or decode(self, ids))
    ids = tokenizer.encode(TEXT * 30)
    stream = Stream(tokenizer, ids)
    decoded.clear()
    for i in ids:
        stream.push(i)
    assert len(ids) > 30 * row.WINDOW / 4 and max(decoded) <= row.WINDOW + 1
    assert len(decoded) < 1.1 * len(ids)


def test_a_long_run_of_bytes_is_decoded_once(monkeypatch):
    decoded, decode = [], Tokenizer.decode
    stream = Stream(BYTES, BYTES.encode("the"))
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded.append(len(ids)) or decode(self, ids))
    for i in [*fallback("海" * 500), *BYTES.encode("the old man") * 9]:
        stream.push(i)
    assert sum(n > row.WINDOW + 1 for n in decoded) == 1


def test_ids_of_the_prompt_that_have_no_text_are_left_out():
    tokenizer = TOKENIZERS["metaspace"]
    stream = Stream(tokenizer, [*tokenizer.encode("the old"), 10**6])
    for i in tokenizer.encode("man"):
        stream.push(i)
    assert stream.text == " man"
