"""`dcp-ref info`: the backend, versions and models of this installation."""

import argparse
import json
import platform
from importlib.metadata import version

from dcp_ref import __version__, native
from dcp_ref.checkpoints import files
from dcp_ref.cli import options
from dcp_ref.training.parallel import processors

HELP = "show the backend, the versions and the shipped models"


def add_options(p: argparse.ArgumentParser) -> None:
    options.add_json(p)


def run(args: argparse.Namespace) -> None:
    """Print a line for each fact, or one JSON object."""
    facts = {
        "dcp-ref": __version__,
        "backend": "native" if native.available() else "numpy",
        "simd": native.simd_level() or f"none: {native.missing()}",
        "threads": f"{native.threads()} in the kernels, on {processors()} processors",
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "cffi", "safetensors", "tokenizers", "tqdm")},
        "platform": platform.platform(),
        "models": ", ".join(files.shipped_models()) or "none",
    }
    print(json.dumps(facts) if args.json else "\n".join(f"{name:12} {value}" for name, value in facts.items()))
