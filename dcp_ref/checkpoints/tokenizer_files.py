"""The tokenizer files of a checkpoint: how text becomes ids, and which token ends it.

    tokenizer.json           the whole tokenizer; or else
    vocab.json, merges.txt   a byte-level BPE, as GPT-2's
    tokenizer_config.json    names of special tokens, added tokens, add_prefix_space, add_bos_token
    special_tokens_map.json, added_tokens.json   special and added tokens in older directories: read, as transformers
                             does, unless tokenizer_config.json has `added_tokens_decoder`

Whatever a file asks for is obeyed, or refused with a ValueError that names the file and what to do.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from dcp_ref.checkpoints.replacing import current
from dcp_ref.checkpoints.tokenizer_settings import ADDED, CONFIG, SPECIAL, Said, read_settings

END_OF_TEXT = "<|endoftext|>"
WHOLE, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")  # of vocab.json
OTHERS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tiktoken.model", "tekken.json", "vocab.txt",
          "encoder.json", "vocab.bpe")  # files of other tokenizers, which are refused
ALL = (WHOLE, VOCAB, MERGES, CONFIG, SPECIAL, ADDED, *OTHERS)


def read(directory: Path) -> tuple[tokenizers.Tokenizer, str | None] | None:
    """The tokenizer of a directory and the token that its files name as end of text; None if it has no tokenizer."""
    whole, vocab, merges = (current(directory / name) for name in (WHOLE, VOCAB, MERGES))
    if not any(file.exists() for file in (whole, vocab, merges)):
        for name in OTHERS:
            if (directory / name).exists():
                raise ValueError(f"{directory / name}: a tokenizer of a kind that is not read; make a {WHOLE} of it "
                                 "with transformers (AutoTokenizer, save_pretrained), or move it away")
        return None
    said = read_settings(directory)
    if whole.exists():
        backend = _whole(whole, said.fields)
    else:
        for file, companion in ((vocab, merges), (merges, vocab)):
            if not file.exists():
                raise ValueError(f"{file}: missing, but {companion.name} needs it; download it too")
        backend = _pair(vocab, merges, said)
    _add(backend, said)
    _put_before(backend, directory, said)
    return backend, said.special["eos_token"].content if "eos_token" in said.special else None


def byte_level(model: models.Model, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """A tokenizer that splits text as GPT-2's does; <|endoftext|> is special if the model has it."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:  # adding it otherwise would enlarge the vocabulary
        backend.add_special_tokens([END_OF_TEXT])
    return backend


def prefix(backend: tokenizers.Tokenizer) -> list[int]:
    """The ids that the post-processor puts before a text. Raises ValueError if it puts any after a text."""
    if backend.post_processor is None:
        return []
    text = tokenizers.Tokenizer(models.WordLevel({"text": 0}, "text")).encode("text")
    parts = backend.post_processor.process(text)
    place = parts.sequence_ids.index(0)
    if place + 1 < len(parts):
        raise ValueError(f"the post_processor puts {parts.tokens[-1]!r} after a text, which would end a prompt before "
                         "its continuation: take that out of it")
    return parts.ids[:place]


def _whole(file: Path, fields: dict[str, Any]) -> tokenizers.Tokenizer:
    text, told = _text(file), fields.get("add_prefix_space")
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        if told is not None and backend.pre_tokenizer is not None:
            whole = json.loads(text)
            if _tell_prefix_space(whole["pre_tokenizer"], told):
                backend = tokenizers.Tokenizer.from_str(json.dumps(whole))
        if backend.get_vocab_size(with_added_tokens=False) > len(backend.get_vocab(with_added_tokens=False)):
            raise ValueError("a token has two ids")
    except BaseException as error:
        raise _damaged(file, error) from None
    return backend


def _tell_prefix_space(state: dict[str, Any], told: bool) -> bool:
    """Set add_prefix_space in every pre-tokenizer that has it. Returns whether that changed anything."""
    changed = [_tell_prefix_space(part, told) for part in state.get("pretokenizers", ())]
    differs = state.get("add_prefix_space", told) != told
    if differs:
        state["add_prefix_space"] = told
    return differs or any(changed)


def _pair(vocab_file: Path, merges_file: Path, said: Said) -> tokenizers.Tokenizer:
    kind = said.fields.get("tokenizer_class")
    if kind not in CLASSES:
        raise ValueError(f"{vocab_file.parent / CONFIG}: tokenizer_class {kind!r} reads {VOCAB} in its own way; make a "
                         f"{WHOLE} with transformers (AutoTokenizer, save_pretrained)")
    lines = [line for line in _text(merges_file).split("\n") if line and not line.startswith("#version")]
    try:
        vocab = json.loads(_text(vocab_file))
        for i, token in said.added.items():
            vocab.setdefault(token.content, i)
        if not vocab or len(set(vocab.values())) < len(vocab):
            raise ValueError("two tokens have the same id" if vocab else "the vocabulary is empty")
        model = models.BPE(vocab, [tuple(line.split(" ")) for line in lines])  # type: ignore[misc]
    except BaseException as error:
        raise _damaged(vocab_file, error) from None
    return byte_level(model, bool(said.fields.get("add_prefix_space")))


def _add(backend: tokenizers.Tokenizer, said: Said) -> None:
    """Add the added and the special tokens, each with its id; those without an id come last."""
    for i, token in sorted(said.added.items()):
        if backend.get_added_tokens_decoder().get(i) != token:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != i:
            raise ValueError(f"{said.source}: {token.content!r} is to be token {i}, but beside the vocabulary it is "
                             f"token {backend.token_to_id(token.content)}; take the files that belong together")
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([token for token in said.special.values() if token.content not in known])
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
        raise ValueError(f"{said.source.parent / WHOLE}: the vocabulary is empty; download it again")
    if len(set(vocab.values())) < len(vocab):  # `tokenizers` takes the number of tokens for a free id
        raise ValueError(f"{said.source}: a token that the vocabulary lacks would get another one's id; "
                         "put it into the vocabulary")


def _put_before(backend: tokenizers.Tokenizer, directory: Path, said: Said) -> None:
    """Obey the settings that add tokens to a text; refuse those that are not supported."""
    whole, config = current(directory / WHOLE), directory / CONFIG
    for flag in ("add_eos_token", "split_special_tokens"):
        if said.fields.get(flag):
            raise ValueError(f"{config}: {flag} cannot be obeyed; set it to false")
    if said.fields.get("add_bos_token") and not whole.exists():
        bos = said.special["bos_token"].content if "bos_token" in said.special else END_OF_TEXT
        i = backend.token_to_id(bos)
        if i is None:
            raise ValueError(f"{config}: add_bos_token is true, but there is no token {bos!r}; name one as bos_token")
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, i)])
    try:
        first = prefix(backend)
    except ValueError as error:
        raise ValueError(f"{whole}: {error}") from None
    if said.fields.get("add_bos_token") and not first:  # transformers ignores it silently
        raise ValueError(f"{config}: add_bos_token is true, but the post_processor of {WHOLE} adds no token; make them "
                         "agree")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: BaseException) -> BaseException:
    return as_value_error(f"{file}: not a readable tokenizer", error, "download it again")


def as_value_error(what: str, error: BaseException, remedy: str) -> BaseException:
    """What to raise for an error of `tokenizers`, which raises plain Exception, and where it panics BaseException."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
        return error
    return ValueError(f"{what} ({error}); {remedy}")


def write(directory: Path, backend: tokenizers.Tokenizer, end: int | None) -> None:
    """Write the two files that describe the whole tokenizer; older files beside them are then not read."""
    whole = json.loads(backend.to_str())
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added}
    if end is not None:
        config["eos_token"] = backend.id_to_token(end)
    if whole["pre_tokenizer"] and "add_prefix_space" in whole["pre_tokenizer"]:  # transformers' default is false
        config["add_prefix_space"] = whole["pre_tokenizer"]["add_prefix_space"]
    (directory / WHOLE).write_text(backend.to_str(), encoding="utf-8")
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
