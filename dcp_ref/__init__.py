"""Dynamic Context Pruning (arXiv 2305.15805): a reference implementation in NumPy and C."""

from dcp_ref import policies
from dcp_ref.checkpoints.weights import CheckpointError, Model, load, save
from dcp_ref.config import Config
from dcp_ref.model import Forward, Loss, forward, loss_and_grads
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import Generation, generate
from dcp_ref.sigmoid import alpha_sigmoid
from dcp_ref.tracing.record import Trace
from dcp_ref.tracing.recording import trace

__version__ = "0.1.0"
__all__ = [
    "CacheFull",
    "CheckpointError",
    "Config",
    "Engine",
    "Forward",
    "Generation",
    "Loss",
    "Model",
    "Trace",
    "alpha_sigmoid",
    "forward",
    "generate",
    "load",
    "loss_and_grads",
    "policies",
    "save",
    "trace",
]
