"""Dynamic Context Pruning (arXiv 2305.15805): a reference implementation in NumPy and C."""

from .config import Config
from .model import Forward, Loss, forward, loss_and_grads
from .sigmoid import alpha_sigmoid
from .runtime.engine import Engine
from .runtime.generation import Generation, generate
from .weights import CheckpointError, Model, load, save

__version__ = "0.1.0"
__all__ = ["CheckpointError", "Config", "Forward", "Loss", "Model", "alpha_sigmoid", "forward", "load",
           "loss_and_grads", "save"]
