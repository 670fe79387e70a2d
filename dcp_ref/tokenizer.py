"""Text to token ids and back: a thin wrapper of the `tokenizers` package.

Byte-level BPE as in GPT-2: the 256 bytes are the alphabet, so every text has ids and comes back unchanged.
"""

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dcp_ref.replacing import current

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """The vocabulary of one model; immutable. `vocab_size` is one more than the largest id."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()  # a file may ask for either; both would change the text without a word
        backend.no_padding()
        self._backend = backend
        self._ids = frozenset(backend.get_vocab(with_added_tokens=True).values())
        if not self._ids:
            raise ValueError("the vocabulary is empty")
        self.vocab_size: int = max(self._ids) + 1
        self.eos_id: int | None = backend.token_to_id(END_OF_TEXT)

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
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet,
                                      show_progress=False)
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def from_directory(cls, directory: str | PathLike[str]) -> "Tokenizer | None":
        """tokenizer.json, or else vocab.json and merges.txt, or None when the directory has none of the three.

        Raises ValueError, naming the file, for one that is corrupt or lacks its companion.
        """
        names = "tokenizer.json", "vocab.json", "merges.txt"
        whole, vocab, merges = (current(Path(directory) / name) for name in names)
        if whole.exists():
            return _read(whole, lambda: cls(tokenizers.Tokenizer.from_file(str(whole))))
        if not vocab.exists() and not merges.exists():
            return None
        for file, companion in ((vocab, merges), (merges, vocab)):
            if not file.exists():
                raise ValueError(f"{file}: missing, but {companion.name} needs it; download it too")
        return _read(vocab, lambda: cls(_byte_level(models.BPE.from_file(str(vocab), str(merges)))))

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write tokenizer.json into an existing directory."""
        (Path(directory) / "tokenizer.json").write_text(self._backend.to_str(), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; <|endoftext|> written out in it becomes its one id.

        Raises ValueError for a lone surrogate, which is no character and has no bytes.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode: a lone surrogate at index {error.start}") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def byte_counts(self) -> list[int]:
        """Bytes of text that each id stands for, by id: each of its characters is one. End of text stands for none."""
        tokens = [self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]
        return [0 if token == END_OF_TEXT else len(token) for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not whole UTF-8 characters become U+FFFD.

        Raises ValueError naming the first id that the vocabulary does not have.
        """
        checked = [int(i) for i in ids]
        for i in checked:
            if i not in self._ids:
                raise ValueError(f"token id {i} is not in the vocabulary (0 to {self.vocab_size - 1})")
        return self._backend.decode(checked, skip_special_tokens=False)


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:  # else adding it would enlarge the vocabulary
        backend.add_special_tokens([END_OF_TEXT])
    return backend


def _read(file: Path, read: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return read()
    except Exception as error:  # `tokenizers` raises plain Exception
        raise ValueError(f"{file}: not a readable tokenizer ({error}); download it again") from None
