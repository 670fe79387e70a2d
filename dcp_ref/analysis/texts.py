"""Reading what is measured: models with a tokenizer, and texts, as training reads them."""

from collections.abc import Sequence

import numpy as np

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.checkpoints.weights import Model
from dcp_ref.training import data
from dcp_ref.training.parallel import Pool, processors


def load(name: str) -> Model:
    """The model of a directory or name. Raises CheckpointError, and ValueError when it has no tokenizer."""
    model = weights.load(name)
    tokenizer_of(model, name)
    return model


def tokenizer_of(model: Model, name: str = "the model") -> Tokenizer:
    """The model's tokenizer. Raises ValueError when it has none."""
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, and texts cannot be read without one")
    return model.tokenizer


def read_tokens(model: Model, paths: Sequence[str], max_tokens: int | None = None) -> np.ndarray:  # -> [N]
    """`tokens_of` the documents in files. Raises ValueError for a file that cannot be read, and as tokens_of does."""
    return tokens_of(model, data.read_documents(paths), max_tokens)


def tokens_of(model: Model, documents: Sequence[str], max_tokens: int | None = None) -> np.ndarray:  # -> [N]
    """The tokens of documents, each followed by an end of text.

    At most max_tokens + 1 of them, as the first token is not scored: nothing predicts it. Raises ValueError for
    max_tokens below 2.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be 2 or more, not {max_tokens}")
    tokenizer = tokenizer_of(model)
    with Pool(processors()) as pool:
        tokens = data.tokenize(tokenizer, documents, pool)
    return tokens if max_tokens is None else tokens[: max_tokens + 1]


def count_bytes(model: Model, tokens: np.ndarray) -> int:  # [N]
    """The bytes of text that the scored tokens, all but the first, stand for."""
    tokenizer = tokenizer_of(model)
    return tokenizer.count_bytes(tokens.tolist()) - tokenizer.count_bytes(tokens[:1].tolist())
