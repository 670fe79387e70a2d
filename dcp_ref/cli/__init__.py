"""The `dcp-ref` command.

Read command.py (the list of subcommands, and how each run ends), options.py (what can be given), then the subcommands,
each in the file of its name: generate, train, evaluate (with evaluate_sweep), trace, download, bench, info. streams.py
is for standard streams that are closed, full or unread.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code (command.py)."""
    try:
        from dcp_ref.cli.command import main
    except ValueError as error:  # an environment variable that the package reads as it is imported
        print(f"dcp-ref: {error}", file=sys.stderr)
        return 2
    return main(arguments)
