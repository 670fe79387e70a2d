"""The `dcp-ref` command: command.py runs it, options.py describes it, and each subcommand has a file of its own."""

from dcp_ref.cli.command import main

__all__ = ["main"]
