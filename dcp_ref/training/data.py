"""Text files to token ids, and token ids to batches."""

import lzma
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from dcp_ref.checkpoints import inputs
from dcp_ref.checkpoints.inputs import decoded
from dcp_ref.checkpoints.tokenizer import END_OF_TEXT, Tokenizer
from dcp_ref.runtime.sampling import row_stream
from dcp_ref.training.settings import TrainSettings

CHUNK = 1_000_000  # most characters given to the tokenizer at once
VOCABULARY_CHUNKS = 16  # a vocabulary is learned from about this many chunks, spread evenly over the text
HELD_OUT = 0.01  # share of the tokens to validate on when no file is given for that


def read_texts(
    settings: TrainSettings, tokenizer: Tokenizer | None, context: int, pool: Executor
) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    """The tokenizer (a new one, if None is given), the token ids to train on, and those to validate on.

    Raises ValueError for a file that cannot be read, and for a text too short for one sequence and its last target.
    """
    documents = read_documents(settings.text)
    held_out = read_documents(settings.valid)
    tokenizer = tokenizer or train_tokenizer(documents, settings.vocab_size)
    tokens = tokenize(tokenizer, documents, pool)
    parts = (tokens, tokenize(tokenizer, held_out, pool)) if settings.valid else split(tokens)
    for name, paths, part in zip(("text", "valid"), (settings.text, settings.valid), parts, strict=True):
        if len(part) <= context:
            source = ", ".join(map(inputs.name, paths)) or "the last 1% of the text, which is validated on"
            remedy = "more text" if paths else "valid, files to validate on"
            raise ValueError(f"{name}: {source}: {len(part)} tokens are too few for a context of {context}; "
                             f"give {remedy}, or a smaller context")
    return tokenizer, *parts


def read_documents(paths: Sequence[str]) -> list[str]:
    """The documents of UTF-8 files, in which `<|endoftext|>` separates them; .xz is unpacked, - is standard input.

    Raises ValueError naming a file that cannot be read.
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


def chunks(document: str) -> list[str]:
    """The document in chunks of at most CHUNK characters, cut before spaces, with which GPT-2's words begin."""
    cuts = [0]
    while len(document) - cuts[-1] > CHUNK:
        space = document.rfind(" ", cuts[-1] + 1, cuts[-1] + CHUNK)
        cuts.append(space if space > 0 else cuts[-1] + CHUNK)
    return [document[a:b] for a, b in zip(cuts, [*cuts[1:], len(document)], strict=True)]


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE learned from an even sample of the documents' chunks."""
    every = [chunk for document in documents for chunk in chunks(document)]
    stride = max(1, round(sum(map(len, every)) / (VOCABULARY_CHUNKS * CHUNK)))
    return Tokenizer.train(every[::stride], vocab_size)


def tokenize(tokenizer: Tokenizer, documents: Sequence[str], pool: Executor) -> np.ndarray:
    """The token ids of the documents, each followed by an end of text if the tokenizer has one: uint16 or uint32 [N].

    Each document begins with the tokenizer's prefix. If the prefix is itself an end of text, it comes once, at the
    start: before the other documents the end of the previous one stands for it.
    """
    once = tokenizer.prefix if tokenizer.prefix == _end(tokenizer) else []

    def encode(document: str) -> np.ndarray:
        return encode_document(tokenizer, document)[len(once) :]

    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return np.concatenate([np.array(once if documents else [], dtype), *pool.map(encode, documents)])


def encode_document(tokenizer: Tokenizer, document: str) -> np.ndarray:  # -> uint16 or uint32 [N]
    """The token ids of one document: the tokenizer's prefix, the text, and an end of text if the tokenizer has one."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    ids = [np.array(tokenizer.encode(part, begins=False), dtype) for part in chunks(document)]
    return np.concatenate([np.array(tokenizer.prefix, dtype), *ids, np.array(_end(tokenizer), dtype)])


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_id is None else [tokenizer.eos_id]


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens to train on and those to validate on, which are the last HELD_OUT of them."""
    cut = len(tokens) - int(len(tokens) * HELD_OUT)
    return tokens[:cut], tokens[cut:]


def windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int64 [B, T]: the T = `context` tokens from each start, and the token after each."""
    ids = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return ids[:, :-1], ids[:, 1:]


def batch(tokens: np.ndarray, size: int, context: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Random windows [B, T], chosen by (seed, step) alone: a resumed run sees the same ones as an unbroken run."""
    starts = row_stream(seed, step).integers(0, len(tokens) - context, size)
    return windows(tokens, starts, context)
