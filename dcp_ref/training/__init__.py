"""Training: optimizer, schedules, data, the files of a run, the loop."""

from dcp_ref.training.loop import train
from dcp_ref.training.parallel import keep_memory
from dcp_ref.training.run_files import TrainingError
from dcp_ref.training.settings import TrainSettings
from dcp_ref.training.step import perplexity

__all__ = ["TrainSettings", "TrainingError", "keep_memory", "perplexity", "train"]
