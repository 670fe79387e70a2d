"""`dcp-ref download`: fetch a model directory from the Hugging Face hub."""

import argparse

from dcp_ref.checkpoints import hub, tokenizer_files, weights
from dcp_ref.cli import streams

FILES = ["config.json", weights.GENERATION, "model.safetensors", "model.safetensors.index.json",
         "model-*.safetensors", *tokenizer_files.ALL]
HELP = "fetch a GPT-2 from the Hugging Face hub"


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", help="gpt2, gpt2-medium, ..., or owner/name; @REVISION may follow")
    p.add_argument("--out", metavar="DIR", help="the directory to make (default: here, with the model's name)")


def run(args: argparse.Namespace) -> None:
    """Download the model's files, check them by loading them, then say how to use the model."""
    out = args.out or hub.split(args.name)[0].rsplit("/", 1)[-1]
    hub.download(args.name, out, FILES)
    weights.load(out)
    streams.ready(out)
