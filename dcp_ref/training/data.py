"""From text files to token ids, and from token ids to batches."""

import lzma
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from dcp_ref.checkpoints import inputs
from dcp_ref.checkpoints.inputs import decoded
from dcp_ref.checkpoints.tokenizer import END_OF_TEXT, Tokenizer
from dcp_ref.runtime.sampling import row_stream
from dcp_ref.training.settings import TrainSettings

PIECE = 1_000_000  # characters given to the tokenizer at once
TOKENIZER_PIECES = 16  # the vocabulary is learned from about so many pieces, spread over the text
HELD_OUT = 0.01  # share of the tokens that validate when there is no file for it


def read_texts(
    settings: TrainSettings, tokenizer: Tokenizer | None, context: int, pool: Executor
) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    """The tokenizer given, or else a new one, and the token ids to train and to validate on.

    Raises ValueError for files that cannot be read, and for text shorter than one sequence and the token after it.
    """
    documents = read_documents(settings.text)
    held_out = read_documents(settings.valid)
    tokenizer = tokenizer or train_tokenizer(documents, settings.vocab_size)
    tokens = tokenize(tokenizer, documents, pool)
    parts = (tokens, tokenize(tokenizer, held_out, pool)) if settings.valid else split(tokens)
    for name, paths, part in zip(("text", "valid"), (settings.text, settings.valid), parts, strict=True):
        if len(part) <= context:
            source = ", ".join(map(inputs.name, paths)) or "the last hundredth of the text, which is validated on"
            remedy = "more text" if paths else "valid, files to validate on"
            raise ValueError(f"{name}: {source}: {len(part)} tokens are too few for a context of {context}; "
                             f"give {remedy}, or a smaller context")
    return tokenizer, *parts


def read_documents(paths: Sequence[str]) -> list[str]:
    """The documents of UTF-8 text files (`.xz` ones unpacked; - is standard input), lines `<|endoftext|>` between them.

    Raises ValueError naming the file that cannot be read.
    """
    inputs.check(paths)
    documents: list[str] = []
    for path in paths:
        try:
            raw = inputs.read(path)
            text = decoded(lzma.decompress(raw) if path.endswith(".xz") else raw)
        except UnicodeDecodeError as error:
            raise ValueError(f"{inputs.name(path)}: not UTF-8 at byte {error.start}") from error
        except lzma.LZMAError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        documents += [document.strip("\n") for document in text.split(END_OF_TEXT)]
    return [document for document in documents if document]


def pieces(document: str) -> list[str]:
    """A document cut before spaces into parts of at most PIECE characters: GPT-2's words begin with their space."""
    cuts = [0]
    while len(document) - cuts[-1] > PIECE:
        space = document.rfind(" ", cuts[-1] + 1, cuts[-1] + PIECE)
        cuts.append(space if space > 0 else cuts[-1] + PIECE)
    return [document[a:b] for a, b in zip(cuts, [*cuts[1:], len(document)], strict=True)]


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE learned from an even sample of the documents' pieces."""
    parts = [part for document in documents for part in pieces(document)]
    stride = max(1, round(sum(map(len, parts)) / (TOKENIZER_PIECES * PIECE)))
    return Tokenizer.train(parts[::stride], vocab_size)


def tokenize(tokenizer: Tokenizer, documents: Sequence[str], pool: Executor) -> np.ndarray:
    """The documents' token ids, end of text after each (where there is such a token): uint16 or uint32 [N].

    What the tokenizer puts before a text comes before each too, but an end of text is not written twice.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    once, each = (tokenizer.prefix, []) if tokenizer.prefix == end else ([], tokenizer.prefix)

    def encode(document: str) -> np.ndarray:
        ids = [np.array(tokenizer.encode(part, begins=False), dtype) for part in pieces(document)]
        return np.concatenate([np.array(each, dtype), *ids, np.array(end, dtype)])

    return np.concatenate([np.array(once if documents else [], dtype), *pool.map(encode, documents)])


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation tokens: the last HELD_OUT of them validate."""
    cut = len(tokens) - int(len(tokens) * HELD_OUT)
    return tokens[:cut], tokens[cut:]


def windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int64 [B, T] each: the T = `context` tokens from each start, and those one further on."""
    block = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return block[:, :-1], block[:, 1:]


def batch(tokens: np.ndarray, size: int, context: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Random windows [B, T]. They depend on (seed, step) alone, so a resumed run sees what an unbroken one would."""
    starts = row_stream(seed, step).integers(0, len(tokens) - context, size)
    return windows(tokens, starts, context)
