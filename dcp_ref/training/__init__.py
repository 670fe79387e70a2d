"""Training: optimizer, schedules, data, the files of a run, the loop."""

from .checkpoint import TrainingError
from .loop import train
from .settings import TrainSettings
from .step import perplexity

__all__ = ["TrainSettings", "TrainingError", "perplexity", "train"]
