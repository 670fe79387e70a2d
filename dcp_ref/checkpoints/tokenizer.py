"""Text to token ids and back: a thin wrapper around the `tokenizers` package.

A new tokenizer is a byte-level BPE, as GPT-2's. Its alphabet is the 256 bytes, so any text can be encoded, and decoding
gives it back unchanged.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from dcp_ref.checkpoints import tokenizer_files
from dcp_ref.checkpoints.tokenizer_files import END_OF_TEXT

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # the token of a byte, for decoders with a byte fallback
REPAIR = "its files are damaged: download them again"


class Tokenizer:
    """The tokenizer of one model; immutable. `vocab_size` is one more than the largest id.

    `eos_id` ends a text: it is the first of `ends` (tokens or ids) that exists, or else <|endoftext|>. `rows` is the
    model's vocab_size; the tokenizer may have more ids, which no text may use. The ids in `prefix` begin each text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, ends: Iterable[str | int | None] = (),
                 rows: int | None = None) -> None:
        backend.no_truncation()  # a file may ask for either, which would silently change the text
        backend.no_padding()
        self._backend = backend
        self._tokens = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
        if not self._tokens:
            raise ValueError("the vocabulary is empty")
        self.vocab_size: int = max(self._tokens) + 1
        self._rows = self.vocab_size if rows is None else rows
        self.prefix = tokenizer_files.prefix(backend)
        ids = [backend.token_to_id(end) if isinstance(end, str) else end for end in (*ends, END_OF_TEXT)]
        self.eos_id: int | None = next((i for i in ids if i in self._tokens and i < self._rows), None)
        decoder = "" if backend.decoder is None else backend.decoder.__getstate__().decode()
        self._byte_level = decoder.startswith('{"type":"ByteLevel"')
        spelled = {i: BYTE.fullmatch(token) for i, token in self._tokens.items()} if '"ByteFallback"' in decoder else {}
        self.byte_tokens = {i: int(found[1], 16) for i, found in spelled.items() if found}  # the byte of each id

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE of at most `vocab_size` tokens, fewer if the texts run out of pairs; <|endoftext|> is id 0.

        The same texts give the same tokenizer. Raises ValueError when vocab_size is too small for the 256 bytes.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if vocab_size <= len(alphabet):
            raise ValueError(f"vocab_size must be at least {len(alphabet) + 1}, not {vocab_size}")
        texts = list(texts)
        # Each merge shortens a text, so no more are possible; `tokenizers` would allocate memory for vocab_size.
        possible = 1 + len(alphabet) + sum(len(text.encode(errors="replace")) for text in texts)
        vocab_size = min(vocab_size, possible)
        backend = tokenizer_files.byte_level(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet,
                                      show_progress=False)
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_directory(cls, directory: str | PathLike[str], ends: Sequence[int] = (),
                       rows: int | None = None) -> "Tokenizer | None":
        """The tokenizer of a directory (tokenizer_files.py), or None if it has none.

        An end of text that its files name comes before `ends`, the model's. Raises ValueError, naming the file, for one
        that is corrupt, lacks its companion, or asks for something that is not supported.
        """
        found = tokenizer_files.read(Path(directory))
        return None if found is None else cls(found[0], (found[1], *ends), rows)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def __contains__(self, token: int) -> bool:
        """Whether there is a token with this id."""
        return token in self._tokens

    def missing(self, vocab_size: int) -> np.ndarray:  # -> int64 [N]
        """The ids below vocab_size that have no token."""
        there = np.zeros(vocab_size, bool)
        there[[i for i in self._tokens if i < vocab_size]] = True
        return np.flatnonzero(~there)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write tokenizer.json, and tokenizer_config.json for the rest, into an existing directory."""
        tokenizer_files.write(Path(directory), self._backend, self.eos_id)

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """The ids of `text`; special tokens that are written in it, such as <|endoftext|>, become their ids.

        `begins`: whether the text begins here, so that `prefix` comes first. Raises ValueError for a lone surrogate,
        which has no bytes in UTF-8, for a token that the model does not have, and where the tokenizer fails.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode: a lone surrogate at index {error.start}") from None
        try:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise tokenizer_files.as_value_error("the tokenizer cannot encode this text", error, REPAIR) from None
        for i in ids if self._rows < self.vocab_size else ():
            if i >= self._rows:
                raise ValueError(f"text has {self._tokens[i]!r}, token id {i}, but the model's vocab_size is "
                                 f"{self._rows}: leave it out, or use the tokenizer that belongs to the model")
        return self.prefix + ids if begins else ids

    def count_bytes(self, ids: Iterable[int]) -> int:
        """The bytes of UTF-8 text that `ids` stand for; `prefix` and `eos_id` stand for none.

        A byte of an incomplete character counts as one.
        """
        around = {self.eos_id, *self.prefix}
        total, text = 0, []
        for i in (*ids, None):
            if i is not None and i not in around:
                text.append(int(i))
            elif self._byte_level:
                total, text = total + sum(len(self._bytes[i]) for i in text), []
            else:
                words = [i for i in text if i not in self.byte_tokens]
                total, text = total + len(text) - len(words) + len(self.decode(words).encode()), []
        return total

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; incomplete UTF-8 characters become U+FFFD.

        Raises ValueError naming the first id that has no token.
        """
        checked = [int(i) for i in ids]
        for i in checked:
            if i not in self._tokens:
                raise ValueError(f"token id {i} is not in the vocabulary (0 to {self.vocab_size - 1})")
        if self._byte_level:  # `tokenizers` takes letters of added tokens, such as é, for bytes
            return b"".join([self._bytes[i] for i in checked]).decode("utf-8", "replace")
        try:
            return self._backend.decode(checked, skip_special_tokens=False)
        except BaseException as error:
            raise tokenizer_files.as_value_error("the tokenizer cannot decode these ids", error, REPAIR) from None

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """The bytes of each id of a byte-level tokenizer: an added token's are its text in UTF-8."""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
        rest = sorted(set(range(256)) - set(own.values()))  # in order, GPT-2's letters from U+0100 on
        byte = own | dict(zip(letters[len(own) :], rest, strict=True))
        added = self._backend.get_added_tokens_decoder().keys()
        result = {}
        for i, token in self._tokens.items():
            learned = token in byte or (i not in added and all(map(byte.__contains__, token)))
            result[i] = bytes(map(byte.__getitem__, token)) if learned else token.encode()
        return result
