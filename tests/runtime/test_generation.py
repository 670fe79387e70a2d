"""Generation against the dense model, token by token; how rows end; what may be shown before they do."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from text_models import CONFIG, TOKENIZER, text_model
from tokenizers import models, pre_tokenizers
from tokenizers_of_all_kinds import KINDS
from training_tools import failing

from dcp_ref import CacheFull, Engine, Model, forward, generate, native, policies
from dcp_ref.checkpoints import tokenizer_files
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.runtime import generation
from dcp_ref.runtime.generation import Generation, Row
from dcp_ref.runtime.sampling import Sampling, row_stream

BACKENDS = ["numpy", pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="not built"))]
MODEL = text_model()
WITHOUT_END = text_model(dataclasses.replace(CONFIG, eos_token_id=None))
PROMPTS = ["the old man", "the sea", "señor, 海", "t"]
SAMPLED = {"temperature": 0.9, "top_k": 60, "top_p": 0.98, "seed": 7}


def dense_ids(model, prompt, n, row, temperature, top_k, top_p, seed):
    """What the dense model writes after one prompt, all of it computed anew for every token."""
    ids, sampling, rng = list(prompt), Sampling(temperature, top_k, top_p), row_stream(seed, row)
    for _ in range(n):
        logits = forward(model.params, np.array([ids]), model.config).logits[0, -1]
        ids.append(sampling.draw(logits, rng))
    return ids[len(prompt) :]


@pytest.mark.parametrize("settings", [SAMPLED, SAMPLED | {"temperature": 0}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_row_is_what_the_dense_model_writes(backend, settings):
    results = generate(WITHOUT_END, PROMPTS, max_new_tokens=15, backend=backend, **settings)
    for b, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        ids = dense_ids(WITHOUT_END, TOKENIZER.encode(prompt), 15, b, **settings)
        assert result == Generation(ids, TOKENIZER.decode(ids), "length")


@given(others=st.lists(st.sampled_from([*PROMPTS, [1, 2, 3], "the end" * 9]), min_size=3, max_size=3))
def test_a_row_does_not_depend_on_the_rows_beside_it(others):
    prompts = [others[0], "the old man", *others[1:]]
    alone = generate(MODEL, ["the sea", "the old man"], max_new_tokens=12, seed=3)[1]
    assert generate(MODEL, prompts, max_new_tokens=12, seed=3)[1] == alone


def test_the_seed_and_the_row_choose_the_text():
    texts = [r.text for seed in range(3) for r in generate(MODEL, ["the"] * 3, max_new_tokens=20, seed=seed)]
    assert len(set(texts)) == 9
    assert [r.text for r in generate(MODEL, ["the"] * 3, max_new_tokens=20, seed=1)] == texts[3:6]


def test_no_prompts_no_results():
    assert generate(MODEL, []) == []


def test_end_of_text_ends_a_row_and_is_left_out():
    [free, beside] = generate(WITHOUT_END, ["the sea"] * 2, max_new_tokens=20)
    end = next(i for i in free.ids if i not in beside.ids)
    model = text_model(dataclasses.replace(CONFIG, eos_token_id=end))
    ids = free.ids[: free.ids.index(end)]
    ended = Generation(ids, TOKENIZER.decode(ids), "eos")
    assert generate(model, ["the sea"] * 2, max_new_tokens=20) == [ended, beside]


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_meet():
    [free] = generate(WITHOUT_END, ["the sea"], max_new_tokens=30)
    for start in range(len(free.text) - 3):
        stop = free.text[start : start + 3]
        if "\ufffd" in stop:  # may be half a character on the way
            continue
        [result] = generate(WITHOUT_END, ["the sea"], max_new_tokens=30, stop=["never there", stop])
        assert result.text == free.text[: free.text.index(stop)] and result.stop_reason == "stop"
        n = len(result.ids)
        assert result.ids == free.ids[:n]
        assert stop in TOKENIZER.decode(result.ids) and stop not in TOKENIZER.decode(result.ids[:-1])


def test_a_stop_string_in_the_last_token_counts():
    [free] = generate(WITHOUT_END, ["the sea"], max_new_tokens=30)
    texts = [TOKENIZER.decode(free.ids[:n]) for n in range(31)]
    n = next(n for n in range(2, 31) if texts[n][-1].isascii() and texts[n][-1] not in texts[n - 1])
    for stop in ([texts[n][-1]], texts[n][-1]):  # one string will do for a list of one
        [result] = generate(WITHOUT_END, ["the sea"], max_new_tokens=n, stop=stop)
        assert result == Generation(free.ids[:n], texts[n][:-1], "stop")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("room", [0, 1, 5])
def test_the_last_position(room, backend):
    prompt = [1] * (CONFIG.n_positions - room)
    [result, beside] = generate(WITHOUT_END, [prompt, "the"], max_new_tokens=9, backend=backend)
    assert len(result.ids) == room + 1 and result.stop_reason == "n_positions"  # the newest token needs no position
    assert len(beside.ids) == 9 and beside.stop_reason == "length"
    assert generate(WITHOUT_END, [prompt], max_new_tokens=room + 1)[0].stop_reason == "length"


def test_no_tokens_at_all(monkeypatch):
    monkeypatch.setattr(generation.Engine, "feed", None)
    assert generate(MODEL, ["the", [1]], max_new_tokens=0) == [Generation([], "", "length")] * 2


def test_without_a_tokenizer_ids_work_and_texts_are_refused():
    model = WITHOUT_END._replace(tokenizer=None)
    prompt = TOKENIZER.encode("the sea")
    [with_text] = generate(WITHOUT_END, ["the sea"], max_new_tokens=9)
    for same in (prompt, tuple(prompt), np.array(prompt), np.array(prompt, np.uint16)):
        assert generate(model, [same], max_new_tokens=9) == [with_text._replace(text=None)]
    with pytest.raises(ValueError, match=r"prompts\[1\]: the model has no tokenizer; give token ids"):
        generate(model, [[1], "the sea"])
    with pytest.raises(ValueError, match="stop: the model has no tokenizer"):
        generate(model, [[1]], stop=["x"])


def test_ids_beyond_the_tokenizer_are_never_drawn():
    config = dataclasses.replace(CONFIG, vocab_size=4 * TOKENIZER.vocab_size, eos_token_id=None)
    results = generate(text_model(config), [[config.vocab_size - 1]] * 4, max_new_tokens=40, temperature=100.0)
    assert all(len(r.ids) == 40 and max(r.ids) < TOKENIZER.vocab_size for r in results)


def with_holes(vocab_size):
    """A byte-level tokenizer whose ids are 0, 3, 6, ..., in a model that has every id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizer_files.byte_level(models.BPE({letter: 3 * i for i, letter in enumerate(letters)}, []))
    config = dataclasses.replace(CONFIG, vocab_size=vocab_size, eos_token_id=None)
    return text_model(config)._replace(tokenizer=Tokenizer(backend))


@pytest.mark.parametrize("temperature", [0, 1.0, 100.0])
@pytest.mark.parametrize("vocab_size", [400, 766, 1000])  # fewer than the tokenizer's, as many, more
def test_ids_without_a_text_are_never_drawn(vocab_size, temperature):
    model = with_holes(vocab_size)
    results = generate(model, ["the", [1, 2]], max_new_tokens=40, temperature=temperature, top_k=300, seed=2)
    assert all(len(r.ids) == 40 and all(i in model.tokenizer and i < vocab_size for i in r.ids) for r in results)


def test_an_end_without_a_text_can_be_drawn():
    model = with_holes(1000)
    config = dataclasses.replace(model.config, eos_token_id=tuple(range(1, 1000, 3)))
    results = generate(model._replace(config=config), ["the"] * 4, max_new_tokens=99, temperature=100.0)
    assert all(r.stop_reason == "eos" for r in results)


def test_several_ends_of_text():
    [free] = generate(WITHOUT_END, ["the sea"], max_new_tokens=20)
    for ends in ((free.ids[9], free.ids[4]), [free.ids[9], 10**6]):
        [result] = generate(text_model(dataclasses.replace(CONFIG, eos_token_id=ends)), ["the sea"], max_new_tokens=20)
        n = min(free.ids.index(i) for i in ends if i in free.ids)
        assert result.ids == free.ids[:n] and result.stop_reason == "eos"


def test_a_token_that_the_model_has_no_row_for_is_refused_in_a_prompt():
    config = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size - 1)
    last = TOKENIZER.decode([config.vocab_size])
    for tokenizer in (TOKENIZER, Tokenizer(TOKENIZER._backend, rows=config.vocab_size)):
        model = text_model(config)._replace(tokenizer=tokenizer)
        with pytest.raises(ValueError, match=rf"prompts\[1\]: .*token id {config.vocab_size}"):
            generate(model, ["t", last])
        assert len(generate(model, ["t"], max_new_tokens=9, temperature=99.0)[0].ids) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_and_its_continuation_are_the_text_of_all_ids(kind):
    tokenizer = Tokenizer(KINDS[kind]())
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, eos_token_id=None)
    model = text_model(config)._replace(tokenizer=tokenizer)
    prompts = ["the old", "at the sea"]
    for prompt, result in zip(prompts, generate(model, prompts, max_new_tokens=30, temperature=3.0), strict=True):
        ids = tokenizer.encode(prompt)
        assert tokenizer.decode(ids) + result.text == tokenizer.decode([*ids, *result.ids])


def test_a_stop_string_in_bytes_that_go_on():
    """A tokenizer with a byte fallback: the run of bytes may go on for ever, the stop string is seen in it."""
    tokenizer = Tokenizer(KINDS["byte_fallback"]())
    byte = {value: i for i, value in tokenizer.byte_tokens.items()}
    model = Model(dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, eos_token_id=None), {}, tokenizer)
    row = Row(model, tokenizer.encode("the"), 99, row_stream(0, 0), ["海\n"])
    for value in "é海\n\n".encode():
        if row.stop_reason is None:
            row.accept(byte[value])
            assert row.settled() == ("é" if row.stop_reason else "")
    assert row.stop_reason == "stop" and len(row.ids) == 6 and row.text == "é"


@pytest.mark.parametrize("backend", BACKENDS)
def test_pages_of_rows_that_have_ended_are_free_for_the_others(backend):
    """Three long rows end while the last is short: when it is long, there is no room for all four."""
    model = text_model(dataclasses.replace(CONFIG, eos_token_id=None, n_positions=400))
    prompts = [[1] * 390, [2] * 390, [3] * 390, [4]]
    options = {"policy": policies.dense, "backend": backend}
    engine = Engine(model, **options)
    engine.feed([engine.new_sequence()], [[1]])
    page = engine.stats().bytes_owned // CONFIG.n_layer * (32 if backend == "numpy" else 1)  # or of a token
    room = (3 * 13 + 3) * CONFIG.n_layer * page  # 13 pages of at most 32 tokens hold 400
    results = generate(model, prompts, max_new_tokens=500, max_cache_bytes=room, **options)
    assert results == generate(model, prompts, max_new_tokens=500, **options)
    assert [len(r.ids) for r in results] == [11, 11, 11, 400]
    with pytest.raises(CacheFull):
        generate(model, [*prompts[:3], [4] * 390], max_new_tokens=500, max_cache_bytes=room, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), MemoryError()])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_held_however_a_generation_ends(monkeypatch, backend, error):
    for place in ("draw", "feed"):
        engine = Engine(MODEL, backend)
        rows = generation.make_rows(MODEL, PROMPTS, 20, 0, ())
        owner = Sampling if place == "draw" else Engine
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(owner, place, failing(getattr(owner, place), 6, error, after=False))
            generation.complete(engine, rows, Sampling())
        assert engine.stats().live_tokens == 0 and not engine._cache._sequences.all()
    engine = Engine(MODEL, backend)
    generation.complete(engine, generation.make_rows(MODEL, PROMPTS, 20, 0, ()), Sampling())
    assert engine.stats().live_tokens == 0 and not engine._cache._sequences.all()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("the sea", "prompts must be a list, not one string"),
        (b"the sea", "prompts must be a list, not one string"),
        (["the sea", ""], r"prompts\[1\] is empty"),
        ([[]], r"prompts\[0\] is empty"),
        ([1, 2, 3], r"prompts\[0\] must be a text or a list of token ids, not 1"),
        ([b"the sea"], r"prompts\[0\] must be a text or a list of token ids, not b'the sea'"),
        ([[1, 2.5]], r"prompts\[0\] must be a text or a list of token ids"),
        ([np.zeros(3)], r"prompts\[0\] must be a text or a list of token ids"),
        ([[1, CONFIG.vocab_size]], rf"prompts\[0\]: token id {CONFIG.vocab_size} is not in"),
        ([[-1]], r"prompts\[0\]: token id -1 is not in"),
        (["the", "a" * 99], r"prompts\[1\] is too long: 99 tokens, but the model has 48 positions"),
        (["caf\udce9"], r"prompts\[0\]: text is not valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_continued_are_named(prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, prompts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer of at least 0, not -1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be an integer of at least 0, not 2.0"),
        ({"max_new_tokens": None}, "max_new_tokens must be an integer of at least 0, not None"),
        ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
        ({"seed": "1"}, "seed must be an integer of at least 0, not '1'"),
        ({"stop": [""]}, "stop must be texts of at least one character, not ''"),
        ({"stop": ""}, "stop must be texts of at least one character, not ''"),
        ({"stop": [3]}, "stop must be texts of at least one character, not 3"),
        ({"temperature": -1}, "temperature must be 0"),
        ({"backend": "cuda"}, "backend 'cuda' is not one of"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, ["the sea"], **settings)


tokens = st.lists(st.sampled_from([t for part in ("a", "b", "海", "\ufffd", "the") for t in TOKENIZER.encode(part)]))
stops = st.lists(st.text("ab海\ufffd", min_size=1, max_size=4), max_size=3)


@example(tokens=[t for letter in "aab" for t in TOKENIZER.encode(letter)], stops=["aab"], n=9, interrupted=False)
@given(tokens=tokens, stops=stops, n=st.integers(1, 25), interrupted=st.booleans())
def test_what_is_shown_is_never_taken_back(tokens, stops, n, interrupted):
    """Tokens in any order: halves of characters, stop strings cut anywhere."""
    row, shown = Row(Model(CONFIG, {}, TOKENIZER), [0], n, row_stream(0, 0), stops), ""
    for token in tokens:
        if row.stop_reason is None:
            row.accept(token)
        assert row.settled().startswith(shown)
        shown = row.settled()
        assert not any(s in shown for s in stops)
    if interrupted:
        row.interrupt()
        text = row.generation().text  # with what might have become a stop string, without half a character
        assert row.stop_reason is not None and text.startswith(shown)
        if row.stop_reason == "interrupted":
            assert text in (TOKENIZER.decode(row.ids), TOKENIZER.decode(row.ids)[:-1])
        shown = text
    if row.stop_reason not in (None, "interrupted"):
        whole = TOKENIZER.decode(row.ids)
        assert row.text == shown == (whole if row.stop_reason == "length" else whole[: len(shown)])


def test_the_first_stop_string_in_the_text_counts():
    row = Row(Model(CONFIG, {}, TOKENIZER), [0], 99, row_stream(0, 0), ["d", "old", "l"])
    [token] = TOKENIZER.encode(" old")
    row.accept(token)
    assert row.text == " " and row.stop_reason == "stop"


def test_what_is_held_back():
    row, settled = Row(Model(CONFIG, {}, TOKENIZER), [0], 99, row_stream(0, 0), ["a海b", "x"]), []
    for part in ("o", "a", "海", "a", "海", "🌊", "x"):
        for token in TOKENIZER.encode(part):  # byte by byte
            row.accept(token)
            assert "\ufffd" not in row.settled()
        settled.append(row.settled())
    assert settled == ["o", "o", "o", "oa海", "oa海", "oa海a海🌊", "oa海a海🌊"]


def test_bytes_that_are_no_characters_are_shown_but_for_the_last():
    row = Row(Model(CONFIG, {}, TOKENIZER), [0], 99, row_stream(0, 0), [])
    for n in range(5):
        row.accept(TOKENIZER.encode("🌊")[-1])
        assert row.settled() == n * "\ufffd"
