"""Training a model, and what it drops, on text files.

Read settings.py (with settings_checks.py) and step.py, one optimizer step, with what it uses: data.py, schedules.py,
optimizer.py, steering.py (gamma), teacher.py. loop.py repeats the step; run_files.py keeps what a run can resume from.
parallel.py, signals.py and metrics_plot.py are threads, signals and the picture.
"""

from dcp_ref.training.loop import train
from dcp_ref.training.parallel import keep_memory
from dcp_ref.training.run_files import TrainingError
from dcp_ref.training.settings import TrainSettings
from dcp_ref.training.step import perplexity

__all__ = ["TrainSettings", "TrainingError", "keep_memory", "perplexity", "train"]
