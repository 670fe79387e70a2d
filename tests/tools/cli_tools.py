"""What the tests of the command share."""

import io
import os
import subprocess
import sys

from dcp_ref.checkpoints import weights
from dcp_ref.cli import command as cli

MAIN = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # we may have been started in the background, without it
from dcp_ref.cli import command as cli
sys.exit(cli.main())"""


def saved(model, tmp_path_factory):
    """The directory of a model."""
    directory = str(tmp_path_factory.mktemp("model"))
    weights.save(model, directory)
    return directory


def call(capsys, *arguments):
    """Runs `dcp-ref ARGUMENTS`: (exit code, stdout, stderr)."""
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


def process_of(*arguments, stdout):
    """`dcp-ref ARGUMENTS` in a process of its own, its output buffered as usual."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment)


def stdin_of(monkeypatch, data):
    """Puts bytes on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def assert_refused(result, *words, code=2):
    """One line on stderr, with these words; nothing on stdout."""
    assert result[:2] == (code, ""), result
    assert result[2].startswith("dcp-ref ") and result[2].count("\n") == 1, result[2]
    for word in words:
        assert word in result[2], result[2]
