"""What is measured on: models that can read, and texts as training reads them."""

from collections.abc import Sequence

import numpy as np

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.checkpoints.weights import Model
from dcp_ref.training import data
from dcp_ref.training.parallel import Pool, processors


def load(name: str) -> Model:
    """A model with a tokenizer. Raises CheckpointError, and ValueError when it has none."""
    model = weights.load(name)
    tokenizer_of(model, name)
    return model


def tokenizer_of(model: Model, name: str = "the model") -> Tokenizer:
    """Raises ValueError when it has none."""
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, and texts cannot be read without one")
    return model.tokenizer


def read_tokens(model: Model, paths: Sequence[str], max_tokens: int | None = None) -> np.ndarray:  # -> [N]
    """The tokens of files, as `tokens_of` has them. Raises ValueError as it does, and for files that cannot be read."""
    return tokens_of(model, data.read_documents(paths), max_tokens)


def tokens_of(model: Model, documents: Sequence[str], max_tokens: int | None = None) -> np.ndarray:  # -> [N]
    """The tokens of documents, an end of text after each, up to the last of `max_tokens` that are to be scored.

    Nothing predicts the first token: there is one more than are scored. Raises ValueError for max_tokens below 2.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be 2 or more, not {max_tokens}")
    tokenizer = tokenizer_of(model)
    with Pool(processors()) as pool:
        tokens = data.tokenize(tokenizer, documents, pool)
    return tokens if max_tokens is None else tokens[: max_tokens + 1]


def count_bytes(model: Model, tokens: np.ndarray) -> int:  # [N]
    """The bytes of text that all tokens but the first, which nothing predicts, stand for, as decoding writes it."""
    tokenizer = tokenizer_of(model)
    return tokenizer.count_bytes(tokens.tolist()) - tokenizer.count_bytes(tokens[:1].tolist())
