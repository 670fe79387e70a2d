"""`dcp-ref download`: fetch a model directory from the Hugging Face hub."""

import argparse

from dcp_ref.checkpoints import tokenizer_files, weights
from dcp_ref.cli import streams

FILES = ["config.json", weights.GENERATION, "model.safetensors", "model.safetensors.index.json",
         "model-*.safetensors", *tokenizer_files.ALL]
HELP = "fetch a GPT-2 from the Hugging Face hub"


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", help="gpt2, gpt2-medium, ..., or owner/name")
    p.add_argument("--out", metavar="DIR", help="the directory to make (default: here, with the model's name)")


def run(args: argparse.Namespace) -> None:
    """Download the model's files, check them by loading them, then say how to use the model."""
    try:
        from huggingface_hub import snapshot_download  # an optional dependency
    except ImportError:
        raise ValueError("the package huggingface_hub is missing: pip install huggingface_hub") from None
    out = args.out or args.name.rsplit("/", 1)[-1]
    try:
        snapshot_download(args.name, local_dir=out, allow_patterns=FILES)
    except Exception as error:  # the hub and its HTTP library raise too many kinds to name
        raise RuntimeError(f"{args.name}: {' '.join(str(error).split())}") from error  # in one line
    weights.load(out)
    streams.ready(out)
