"""Text to token ids and back: a thin wrapper of the `tokenizers` package.

A new one is byte-level BPE as in GPT-2: the 256 bytes are the alphabet, so every text has ids and comes back unchanged.
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

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # what decoders with a byte fallback call a byte


class Tokenizer:
    """The vocabulary of one model; immutable. `vocab_size` is one more than the largest id.

    `eos_id` ends a text: the first of `ends`, tokens or ids, that there is, or else <|endoftext|>. `rows`: the ids of
    the model that it belongs to; the tokenizer may have more, which no text may use. `prefix` comes before each text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, ends: Iterable[str | int | None] = (),
                 rows: int | None = None) -> None:
        backend.no_truncation()  # a file may ask for either; both would change the text without a word
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
        """Byte-level BPE of at most `vocab_size` tokens (fewer when the texts run out of pairs); <|endoftext|> is id 0.

        The same texts give the same tokenizer. Raises ValueError when vocab_size has no room for the 256 bytes.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if vocab_size <= len(alphabet):
            raise ValueError(f"vocab_size must be at least {len(alphabet) + 1}, not {vocab_size}")
        texts = list(texts)
        possible = 1 + len(alphabet) + sum(len(text.encode(errors="replace")) for text in texts)
        vocab_size = min(vocab_size, possible)  # each merge shortens a text; `tokenizers` makes room for all it is told
        backend = tokenizer_files.byte_level(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet,
                                      show_progress=False)
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_directory(cls, directory: str | PathLike[str], ends: Sequence[int] = (),
                       rows: int | None = None) -> "Tokenizer | None":
        """What the files of a directory say (tokenizer_files), or None when it has no tokenizer.

        The end of text that they name comes before `ends`, the model's. Raises ValueError, naming the file, for one
        that is corrupt, lacks its companion, or asks for what cannot be obeyed.
        """
        found = tokenizer_files.read(Path(directory))
        return None if found is None else cls(found[0], (found[1], *ends), rows)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def __contains__(self, token: int) -> bool:
        """Whether an id has a token."""
        return token in self._tokens

    def missing(self, vocab_size: int) -> np.ndarray:  # -> int64 [N]
        """The ids of such a model that have no token: between the tokens, and after them."""
        there = np.zeros(vocab_size, bool)
        there[[i for i in self._tokens if i < vocab_size]] = True
        return np.flatnonzero(~there)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write tokenizer.json, and tokenizer_config.json with what it does not say, into an existing directory."""
        tokenizer_files.write(Path(directory), self._backend, self.eos_id)

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """The ids of `text`; special tokens written out in it, as <|endoftext|>, become their ids.

        `begins`: whether `prefix` comes first, as before each text of its own. Raises ValueError for a lone surrogate,
        which is no character and has no bytes, and for a token that the model does not know.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode: a lone surrogate at index {error.start}") from None
        ids = self._backend.encode(text, add_special_tokens=False).ids
        for i in ids if self._rows < self.vocab_size else ():
            if i >= self._rows:
                raise ValueError(f"text has {self._tokens[i]!r}, token id {i}, but the model's vocab_size is "
                                 f"{self._rows}: leave it out, or use the tokenizer that belongs to the model")
        return self.prefix + ids if begins else ids

    def count_bytes(self, ids: Iterable[int]) -> int:
        """The bytes of UTF-8 that decode writes for `ids`; what stands before and after a text counts as none.

        A byte that is half a character counts as one.
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
        """The text of `ids`; bytes that are not whole UTF-8 characters become U+FFFD.

        Raises ValueError naming the first id that the vocabulary does not have.
        """
        checked = [int(i) for i in ids]
        for i in checked:
            if i not in self._tokens:
                raise ValueError(f"token id {i} is not in the vocabulary (0 to {self.vocab_size - 1})")
        if self._byte_level:  # `tokenizers` takes the letters of added tokens, such as é, for bytes
            return b"".join([self._bytes[i] for i in checked]).decode("utf-8", "replace")
        return self._backend.decode(checked, skip_special_tokens=False)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """What each id of a byte-level tokenizer stands for: an added token for its letters, another for its bytes."""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
        rest = sorted(set(range(256)) - set(own.values()))  # GPT-2 gave them the letters from U+0100 on, in order
        byte = own | dict(zip(letters[len(own) :], rest, strict=True))
        added = self._backend.get_added_tokens_decoder().keys()
        result = {}
        for i, token in self._tokens.items():
            learned = token in byte or (i not in added and all(map(byte.__contains__, token)))
            result[i] = bytes(map(byte.__getitem__, token)) if learned else token.encode()
        return result
