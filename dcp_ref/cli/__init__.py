"""The `dcp-ref` command: main.py runs it, options.py describes it, and each subcommand has a file of its own."""

from dcp_ref.cli.main import main

__all__ = ["main"]
