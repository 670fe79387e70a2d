"""The dense model whose next-token distribution a run also learns."""

import hashlib
from pathlib import Path

import numpy as np

from dcp_ref.checkpoints import files, weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.config import Config
from dcp_ref.training import run_files
from dcp_ref.training.settings import TrainSettings

FINGERPRINT = "teacher_sha256"  # its field in settings.json


def load(settings: TrainSettings) -> weights.Model | None:
    """The teacher, or None if the settings name none. Raises ValueError when it cannot teach."""
    if settings.teacher is None:
        return None
    teacher = weights.load(settings.teacher)
    if teacher.config.int_n_embd is not None:
        raise ValueError(f"teacher: {settings.teacher} has interaction weights (int_n_embd "
                         f"{teacher.config.int_n_embd}); give a dense model")
    if teacher.tokenizer is None:
        raise ValueError(f"teacher: {settings.teacher} has no tokenizer")
    return teacher


def load_again(settings: TrainSettings, config: Config) -> weights.Model | None:
    """The teacher of a run that resumes. Raises ValueError when it is not the one that the run began with."""
    teacher = load(settings)
    check(settings, teacher, config, Tokenizer.from_directory(settings.out))
    check_unchanged(settings, teacher, run_files.load_settings(Path(settings.out)))
    return teacher


def check(settings: TrainSettings, teacher: weights.Model | None, config: Config, tokenizer: Tokenizer | None) -> None:
    """Raises ValueError when the teacher cannot read the student's sequences: other tokens, or too few positions."""
    if teacher is None:
        return
    same_tokens = tokenizer is not None and tokenizer.vocabulary == teacher.tokenizer.vocabulary  # type: ignore
    if not same_tokens or teacher.config.vocab_size != config.vocab_size:
        raise ValueError(f"teacher: {settings.teacher} has another vocabulary than the model to train; give one with "
                         "the same tokenizer, such as the model that init was made from")
    context = settings.context_of(config)
    if context > teacher.config.n_positions:
        raise ValueError(f"context: {context} tokens a sequence are more than the n_positions "
                         f"({teacher.config.n_positions}) of the teacher {settings.teacher}; give a smaller context")


def fingerprint(teacher: weights.Model | None) -> str | None:
    """SHA-256 of the teacher's weights, by which a run that resumes knows its teacher."""
    if teacher is None:
        return None
    digest = hashlib.sha256()
    for array in teacher.params.values():
        digest.update(np.ravel(array).view(np.uint8).data)
        files.forget(array)
    return digest.hexdigest()


def check_unchanged(settings: TrainSettings, teacher: weights.Model | None, stored: dict) -> None:
    """Raises ValueError when the weights are not those of the fingerprint in the `stored` settings of the run.

    Older runs stored no fingerprint: then nothing is checked.
    """
    own = fingerprint(teacher)
    if stored.get(FINGERPRINT, own) != own:
        raise ValueError(f"teacher: {settings.teacher} has other weights than when {settings.out} was begun: put those "
                         "back to resume, or give another out directory to start afresh")
