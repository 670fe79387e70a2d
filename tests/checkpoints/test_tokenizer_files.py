"""What stands beside a vocabulary is obeyed as transformers obeys it, or refused by name; what is saved says it all."""

import json

import pytest
from checkpoint_tools import edit_config, model_of
from text_models import CONFIG
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from tokenizers_of_all_kinds import KINDS

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import END_OF_TEXT, Tokenizer
from dcp_ref.checkpoints.weights import CheckpointError

LETTERS = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
A, B, SPACE = LETTERS["a"], LETTERS["b"], LETTERS["Ġ"]
DECODER = "added_tokens_decoder"


def pair(directory, vocab=(), **files):
    """vocab.json of all bytes and more, merges.txt, and other files by the first part of their names."""
    (directory / "vocab.json").write_text(json.dumps(LETTERS | dict(vocab)))
    (directory / "merges.txt").write_text("#version: 0.2\na b\n" if "ab" in dict(vocab) else "#version: 0.2\n")
    return beside(directory, **files)


def whole(directory, post_processor=None, prefix_space=False, **files):
    """The same as tokenizer.json, with <|endoftext|> as 256."""
    backend = Backend(models.BPE(LETTERS | {END_OF_TEXT: 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    if post_processor is not None:
        backend.post_processor = post_processor
    backend.save(str(directory / "tokenizer.json"))
    return beside(directory, **files)


def beside(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_directory(directory)


def refused(directory, *words):
    with pytest.raises(ValueError) as caught:
        Tokenizer.from_directory(directory)
    assert all(word in str(caught.value) for word in words), caught.value


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, **flags}


@pytest.mark.parametrize("made", [pair, whole])
def test_added_tokens(tmp_path, made):
    first = 256 if made is pair else 257
    found = made(tmp_path, added_tokens={"</s>": first + 1, "<x>": first}, special_tokens_map={"eos_token": "</s>"})
    assert found.encode("a<x></s>b") == [A, first, first + 1, B]
    assert found.eos_id == first + 1 and found.decode([A, first + 1]) == "a</s>"


def test_ids_that_are_left_out_are_obeyed_or_refused(tmp_path):
    assert pair(tmp_path, added_tokens={"</s>": 300}).encode("a</s>") == [A, 300]
    with pytest.raises(ValueError, match=r"added_tokens\.json: '</s>' is to be token 300, but .* it is token 257"):
        whole(tmp_path)


def test_an_added_token_with_the_id_of_another(tmp_path):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 5}))
    with pytest.raises(ValueError, match="two tokens have the same id"):
        pair(tmp_path)
    with pytest.raises(ValueError, match="'</s>' is to be token 5"):
        whole(tmp_path)


@pytest.mark.parametrize("made", [pair, whole])
def test_special_tokens_are_found_in_a_text(tmp_path, made):
    last = 256 if made is pair else 257
    names = {"eos_token": token("</s>"), "pad_token": "[PAD]", "additional_special_tokens": ["<x>", token("<y>")]}
    found = made(tmp_path, special_tokens_map=names)
    assert found.encode("</s>[PAD]<x><y>") == [last, last + 1, last + 2, last + 3] and found.eos_id == last
    assert pair(tmp_path, {"</s>": 256}, special_tokens_map={"eos_token": "</s>"}).encode("a</s>")[-1] in (256, 257)


def test_tokens_of_tokenizer_config_come_before_the_older_files(tmp_path):
    found = pair(tmp_path, tokenizer_config={DECODER: {"256": token("</s>", special=True)}, "eos_token": "</s>"},
                 added_tokens={"<x>": 257}, special_tokens_map={"eos_token": "<x>"})
    assert found.encode("</s>")== [256] and found.eos_id == 256 and len(found.encode("<x>")) == 3


def test_a_token_that_the_vocabulary_lacks_never_gets_the_id_of_another(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 2}))
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    refused(tmp_path, "the vocabulary lacks", "id")


@pytest.mark.parametrize("made", [pair, whole])
@pytest.mark.parametrize("told", [False, True])
def test_a_space_before_a_text(tmp_path, made, told):
    expected = [SPACE, A] if told else [A]
    assert made(tmp_path, tokenizer_config={"add_prefix_space": told}).encode("a") == expected
    if made is whole:
        config = {"add_prefix_space": told}
        assert whole(tmp_path, prefix_space=not told, tokenizer_config=config).encode("a") == expected
        assert whole(tmp_path, prefix_space=told, tokenizer_config={}).encode("a") == expected


def test_a_token_before_a_text(tmp_path):
    told = {"add_bos_token": True}
    assert pair(tmp_path, {END_OF_TEXT: 256}, tokenizer_config=told).encode("a") == [256, A]
    found = pair(tmp_path, {"<s>": 256}, tokenizer_config={**told, "bos_token": "<s>"})
    assert found.encode("a") == [256, A] and found.encode("a", begins=False) == [A] and found.encode("") == [256]
    before = processors.TemplateProcessing(single=[END_OF_TEXT, "$A"], special_tokens=[(END_OF_TEXT, 256)])
    for config in ({}, told):
        assert whole(tmp_path, before, tokenizer_config=config).encode("a") == [256, A]
    assert whole(tmp_path, processors.ByteLevel(), tokenizer_config={}).encode("a") == [A]


def test_what_cannot_be_obeyed_is_refused(tmp_path):
    after = processors.TemplateProcessing(single=["$A", END_OF_TEXT], special_tokens=[(END_OF_TEXT, 256)])
    with pytest.raises(ValueError, match=r"tokenizer\.json: the post_processor puts '<\|endoftext\|>' after a text"):
        whole(tmp_path, after)
    (tmp_path / "tokenizer.json").unlink()
    for made in (pair, whole):
        for flag in ("add_eos_token", "split_special_tokens"):
            with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {flag} cannot be obeyed"):
                made(tmp_path, tokenizer_config={flag: True})
            assert made(tmp_path, tokenizer_config={flag: False}) is not None
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: add_bos_token is true, but"):
            made(tmp_path, tokenizer_config={"add_bos_token": True})


def test_a_pair_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer_class 'RobertaTokenizer' reads vocab\.json in its own way"):
        pair(tmp_path, tokenizer_config={"tokenizer_class": "RobertaTokenizer"})
    assert whole(tmp_path) is not None  # tokenizer.json says all
    (tmp_path / "tokenizer.json").unlink()
    assert pair(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"}) is not None
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="BertTokenizer"):
        beside(tmp_path, config={"tokenizer_class": "BertTokenizer"})


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt", "tokenizer.model"])
def test_tokenizers_that_are_not_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, name, "make a tokenizer.json")
    assert whole(tmp_path) is not None


@pytest.mark.parametrize(("name", "content"), [
    ("tokenizer_config", []), ("tokenizer_config", {"eos_token": 3}), ("tokenizer_config", {DECODER: [1]}),
    ("tokenizer_config", {DECODER: {"x": token("y")}}), ("tokenizer_config", {DECODER: {"1": "y"}, "eos_token": {}}),
    ("special_tokens_map", {"pad_token": {}}), ("special_tokens_map", {"additional_special_tokens": 3}),
    ("added_tokens", ["</s>"]), ("added_tokens", {"</s>": "one"}), ("added_tokens", {"</s>": True}),
])
def test_damaged_files_are_named(tmp_path, name, content):
    pair(tmp_path)
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    refused(tmp_path, f"{name}.json", "download it again")


def test_a_directory_in_place_of_a_file(tmp_path):
    (tmp_path / "tokenizer.json").mkdir()
    refused(tmp_path, "tokenizer.json: cannot be read (Is a directory)")


def test_a_byte_order_mark_and_windows_lines(tmp_path):
    assert pair(tmp_path, {"ab": 256}).encode("ab") == [256]
    for name in ("vocab.json", "merges.txt"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert Tokenizer.from_directory(tmp_path).encode("ab") == [256]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_says_it_all(tmp_path, kind):
    """Beside older files of another tokenizer too."""
    beside(tmp_path, special_tokens_map={"eos_token": "<other>"}, added_tokens={"<other>": 7})
    tokenizer = Tokenizer(KINDS[kind](), ["</s>", "[SEP]"])
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.vocabulary == tokenizer.vocabulary and again.eos_id == tokenizer.eos_id
    assert again.encode("the old man ") == tokenizer.encode("the old man ")


def test_settings_are_saved(tmp_path):
    first = pair(tmp_path, {"<s>": 256}, tokenizer_config={"add_bos_token": True, "add_prefix_space": True,
                                                           "bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "new").mkdir()
    first.save(tmp_path / "new")
    again = Tokenizer.from_directory(tmp_path / "new")
    assert again.encode("a") == first.encode("a") == [256, SPACE, A] and again.eos_id == first.eos_id == 257


def checkpoint(directory, **files):
    """A model of 259 ids whose tokenizer has </s> as 257 and <x> as 258 beside <|endoftext|>, 256."""
    config = CONFIG.from_dict({**CONFIG.to_dict(), "vocab_size": 259})
    weights.save(model_of(config), directory)
    whole(directory, added_tokens={"</s>": 257, "<x>": 258}, **files)
    return directory


@pytest.mark.parametrize(("config", "generation", "ends", "eos"), [
    (257, None, (257,), 257), ([258, 257], None, (258, 257), 258), (None, None, (), 256), ([], None, (), 256),
    (257, {"eos_token_id": 258}, (258,), 258), (257, {"eos_token_id": [256, 258]}, (256, 258), 256),
    (257, {"eos_token_id": None}, (), 256), (257, {"do_sample": True}, (257,), 257),
    (9999, None, (9999,), 256), ("absent", None, (256,), 256), ("absent", {"eos_token_id": 258}, (258,), 258),
])
def test_what_ends_a_text(tmp_path, config, generation, ends, eos):
    """generation_config.json, else config.json, for generation; for documents the first of these with a token."""
    checkpoint(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["eos_token_id"] = config
    if config == "absent":
        del fields["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    model = weights.load(tmp_path)
    assert (model.config.ends, model.tokenizer.eos_id) == (ends, eos)
    weights.save(model, tmp_path / "new")
    weights.save(model, tmp_path)  # over a generation_config.json
    for place in (tmp_path / "new", tmp_path):
        again = weights.load(place)
        assert (again.config, again.tokenizer.eos_id) == (model.config, eos)


def test_the_end_that_the_tokenizer_names(tmp_path):
    checkpoint(tmp_path, special_tokens_map={"eos_token": "<x>"})
    edit_config(tmp_path, eos_token_id=257)
    model = weights.load(tmp_path)
    assert (model.config.ends, model.tokenizer.eos_id) == ((257,), 258)  # as transformers: generate, and tokenizer
    beside(tmp_path, special_tokens_map={"eos_token": "<missing>"})
    assert weights.load(tmp_path).tokenizer.eos_id == 257  # the model has no row for the other


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("bad", ["x", [1, "x"], [True], 1.5, [[1]], {}])
def test_ends_that_are_no_ids(tmp_path, name, bad):
    checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    fields = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(fields | {"eos_token_id": bad}))
    with pytest.raises(CheckpointError, match=f"/{name}: config: eos_token_id must be an integer, a list"):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("field", [{"stop_strings": ["x"]}, {"forced_eos_token_id": 257}])
def test_other_ways_to_end_a_text_are_refused(tmp_path, name, field):
    checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    fields = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(fields | dict.fromkeys(field)))
    assert weights.load(tmp_path)
    (tmp_path / name).write_text(json.dumps(fields | field))
    with pytest.raises(CheckpointError, match=f"/{name}: {next(iter(field))} would end a text"):
        weights.load(tmp_path)


def test_ids_that_the_model_has_no_row_for(tmp_path):
    checkpoint(tmp_path)
    beside(tmp_path, special_tokens_map={"pad_token": "[PAD]"})
    model = weights.load(tmp_path)
    assert model.tokenizer.vocab_size == 260 and model.tokenizer.encode("a<x>") == [A, 258]
    with pytest.raises(ValueError, match=r"text has '\[PAD\]', token id 259, but the model's vocab_size is 259"):
        model.tokenizer.encode("a[PAD]")
    weights.save(model, tmp_path / "new")
    assert weights.load(tmp_path / "new").tokenizer.vocab_size == 260
