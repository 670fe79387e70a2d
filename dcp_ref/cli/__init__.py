"""The `dcp-ref` command.

Read command.py (the list of subcommands, and how each run ends), options.py (what can be given), then the subcommands,
each in the file of its name: generate, train, evaluate (with evaluate_sweep), calibrate, trace, conformance, download,
bench, info. streams.py is for standard streams that are closed, full or unread.
"""

from dcp_ref.cli.command import main

__all__ = ["main"]
