"""The settings beside a vocabulary in a checkpoint's directory: options, special tokens and added tokens."""

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.replacing import current

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Said(NamedTuple):
    """The options, the special tokens by name, the added tokens by id, and the file with the added tokens."""

    fields: dict[str, Any]
    special: dict[str, AddedToken]
    added: dict[int, AddedToken]
    source: Path


def read_settings(directory: Path) -> Said:
    """The settings in a directory. Older files are read only if tokenizer_config.json has no `added_tokens_decoder`, as
    transformers does. Raises ValueError naming a damaged file."""
    fields = {"tokenizer_class": _object(directory / "config.json").get("tokenizer_class")}
    file = directory / CONFIG
    fields |= _object(file)
    special = _special(file, fields)
    if fields.get("added_tokens_decoder") is not None:
        return Said(fields, special, _added(file, fields["added_tokens_decoder"]), file)
    special |= _special(directory / SPECIAL, _object(directory / SPECIAL))
    names = {token.content for token in special.values()}
    listed = {str(i): {"content": token, "special": token in names, "normalized": token not in names}
              for token, i in _object(directory / ADDED).items()}
    return Said(fields, special, _added(directory / ADDED, listed), directory / ADDED)


def _special(file: Path, fields: dict[str, Any]) -> dict[str, AddedToken]:
    """The special tokens by name; those of the lists EXTRA are named by number, as in extra_special_tokens[0]."""
    special = {name: _token(file, name, fields[name]) for name in NAMES if fields.get(name) is not None}
    for name in EXTRA:
        extra = fields.get(name) or []
        if not isinstance(extra, (list, dict)):
            raise ValueError(f"{file}: {name} is not a list of tokens; download it again")
        extra = list(extra.values()) if isinstance(extra, dict) else extra
        special |= {f"{name}[{n}]": _token(file, f"{name}[{n}]", value) for n, value in enumerate(extra)}
    return special


def _added(file: Path, listed: Any) -> dict[int, AddedToken]:
    if not isinstance(listed, dict):
        raise ValueError(f"{file}: added_tokens_decoder is not an object of tokens; download it again")
    result = {}
    for i, token in listed.items():
        if not i.isdecimal() or len(i) > 9:
            raise ValueError(f"{file}: token {token!r} has the id {i}, which no token can have; download it again")
        result[int(i)] = _token(file, f"token {i}", token)
    return result


def _token(file: Path, name: str, value: Any) -> AddedToken:
    fields = {"content": value, "special": True} if isinstance(value, str) else value
    content = fields.get("content") if isinstance(fields, dict) else None
    if not isinstance(content, str) or not content:
        raise ValueError(f"{file}: {name} is {value!r}, which is no token; download it again")
    return AddedToken(content, **{flag: bool(fields[flag]) for flag in FLAGS if flag in fields})


def _object(file: Path) -> dict[str, Any]:
    return files.read_json(file) if current(file).exists() else {}
