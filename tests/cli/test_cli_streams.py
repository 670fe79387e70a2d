"""The command where a standard stream is closed, full, or read by nobody: what goes where, and how it ends."""

import os
import subprocess
import sys

import pytest
from cli_tools import saved
from text_models import text_model
from training_tools import SHAPE, write_text

from dcp_ref.checkpoints import weights

MODEL = text_model()
CLOSED = "standard output is closed"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The arguments of each command, and a word of what it writes on stdout."""
    model, directory = saved(MODEL, tmp_path_factory), tmp_path_factory.mktemp("streams")
    book = write_text(directory / "book.txt")
    train = ["train", "--text", book, "--out", str(directory / "out"), "--config", SHAPE, "--steps", "1"]
    return {
        "generate": (["generate", "the old man", "--model", model, "--max-new-tokens", "3"], "the old man"),
        "json": (["generate", "the old man", "--model", model, "--max-new-tokens", "3", "--json"], '{"generations'),
        "evaluate": (["evaluate", "--text", book, "--model", model, "--max-tokens", "30"], "perplexity"),
        "train": ([*train, "--vocab-size", "270", "--batch", "2", "--eval-windows", "2"], "ready: "),
        "info": (["info"], "backend"),
        "help": (["--help"], "usage: dcp-ref"),
        "help of a command": (["bench", "--help"], "usage: dcp-ref bench"),
        "version": (["--version"], "dcp-ref 0"),
        "none": ([], "usage: dcp-ref"),
        "a typo": (["generate", "--nope"], ""),
        "bad input": (["generate", "the", "--model", "nowhere"], ""),
        "bad bench": (["bench", "--batch", "0"], ""),
    }


CODES = {"a typo": 2, "bad input": 2, "bad bench": 2}
NAMES = ["generate", "json", "evaluate", "train", "info", "help", "help of a command", "version", "none", *CODES]


def run(arguments, redirections, buffered=True):
    """`python -m dcp_ref ARGUMENTS REDIRECTIONS` in a shell: (exit code, stdout, stderr)."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "dcp_ref", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_messages_that_nobody_gets_change_nothing_else(commands, name, redirection):
    code, out, err = run(commands[name][0], redirection)
    assert (code, err) == (CODES.get(name, 0), "")
    assert out.startswith(commands[name][1]) or commands[name][1] in out
    assert "tokens/s;" not in out and "dcp-ref generate:" not in out and not (name in CODES and out)


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_stdout(commands, name):
    """What a result would go to: a failure, before the work. The lines of train are news, which are not missed."""
    code, _, err = run(commands[name][0], ">&-")
    if name in ("a typo", "train"):
        assert code == CODES.get(name, 0)
    else:
        assert code == 1 and err.count("\n") == 1 and err.startswith("dcp-ref")
        assert CLOSED in err or "Bad file descriptor" in err
    assert run(commands[name][0], ">&- 2>&-") == (code, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("name", ["generate", "json", "evaluate", "info", "help", "help of a command", "version"])
def test_a_full_stdout(commands, name, buffered):
    code, _, err = run(commands[name][0], ">/dev/full", buffered)
    assert code == 1 and err.count("\n") == 1 and "No space left on device" in err


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path, commands):
    """Else what is meant for stderr would be written into a checkpoint."""
    script = """import os, sys
from dcp_ref.cli import command as cli
cli.main(["info"])
sys.exit(3 + (os.open(sys.executable, os.O_RDONLY) > 2))"""
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script], check=False)
    assert done.returncode == 4


@pytest.mark.parametrize("name", ["info", "help", "evaluate"])
def test_a_reader_that_is_gone(commands, name):
    gone, end = os.pipe()
    os.close(gone)
    with open(end, "wb") as pipe:
        done = subprocess.run([sys.executable, "-m", "dcp_ref", *commands[name][0]], stdout=pipe,
                              stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("name", ["generate", "bad input"])
def test_nobody_reads_the_messages(commands, name):
    gone, end = os.pipe()
    os.close(gone)
    with open(end, "wb") as pipe:
        done = subprocess.run([sys.executable, "-m", "dcp_ref", *commands[name][0]], stderr=pipe,
                              stdout=subprocess.PIPE, check=False)
    assert done.returncode == CODES.get(name, 0) and done.stdout.startswith(commands[name][1].encode())


def test_names_that_are_no_utf8(tmp_path, commands):
    """They come out as they are on the disk; in plots and messages, which take Unicode alone, they are written out."""
    name, book = os.fsdecode(b"mod\xe9l  $a$"), os.fsdecode(b"b\xe9$.txt")
    weights.save(MODEL, tmp_path / name)
    write_text(tmp_path / book)
    command = [sys.executable, "-m", "dcp_ref"]

    def of(*arguments):
        return subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, check=False)

    sweep = ["--sweep", "--thresholds", "1", "--context", "20", "--out", os.fsdecode(b"curv\xe9")]
    done = of("evaluate", "--text", book, "--model", name, "--max-tokens", "30", *sweep)
    assert (done.returncode, done.stderr) == (0, b"") and b"mod\xe9l  $a$" in done.stdout
    assert b"mod\xe9l  $a$" in (tmp_path / os.fsdecode(b"curv\xe9.md")).read_bytes()
    assert (tmp_path / os.fsdecode(b"curv\xe9.png")).exists()
    run = ["--steps", "1", "--batch", "1", "--eval-windows", "1", "--valid", book, "--plot", "--init", name, "--prune"]
    done = of("train", "--text", book, "--out", name + "2", *run)
    assert (done.returncode, done.stderr) == (0, b"") and b"--model 'mod\xe9l  $a$2'\n" in done.stdout
    assert (tmp_path / f"{name}2" / "metrics.png").exists()
    assert of("generate", "the", "--model", name + "2", "--max-new-tokens", "1").returncode == 0
    err = of("generate", "--file", "no\n  thing\x1b").stderr
    assert err.startswith(b"dcp-ref generate: no\\n  thing\\x1b: cannot be read")
