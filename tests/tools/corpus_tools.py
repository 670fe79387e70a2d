"""Corpora for tests: documents of mixed lengths and languages, bad rows among them, and what a directory holds."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from dcp_ref.checkpoints import weights

ROOT = Path(__file__).resolve().parents[2]
LONG = bool(os.environ.get("DCP_LONG"))  # `make ray` sets it: tests that take minutes
TEXT = """the old man looked at the sea, and grey was it . señor naïve Straße über Großvater море старик серое
海 灰色 老人 看着 바다 노인 سمندر 🌊 👩‍👩‍👧 x = f(y) + 3.14;"""
WORDS = [*TEXT.split(), "\n", "\t", "<|endoftext|>"]
BAD = [b"no JSON", b"[1, 2]", b'{"id": 3}', b'{"text": "no id"}', b'{"id": true, "text": "x"}',
       b'{"id": "n", "text": 7}',
       b'{"id": "utf8", "text": "caf\xe9 \xff"}', b'{"id": "half", "text": "\\ud83c"}', b"{" * 3000,
       b'{"id": "caf\xe9", "text": "an id that is no UTF-8"}', b'{"id": ' + b"9" * 30 + b', "text": "x"}']


def text_of(draw, most=60):
    return " ".join(draw.choice(WORDS, draw.integers(0, most + 1)))


def corpus(n, seed=0, most=60):
    """n rows of JSON: one in 50 is bad, one in 40 empty, one in 30 has the id of the row before, one in 25 is long."""
    draw, lines = np.random.default_rng(seed), []
    for k in range(n):
        if k % 50 == 7:
            lines.append(BAD[k // 50 % len(BAD)])
            continue
        text = "" if k % 40 == 3 else text_of(draw, 10 * most if k % 25 == 11 else most)
        name = k - 1 if k % 30 == 5 else f"doc-{k}" if k % 2 else k
        lines.append(json.dumps({"id": name, "text": text, "more": k}, ensure_ascii=k % 3 == 0).encode())
    return lines


def write(file, lines):
    file.write_bytes(b"\n".join(lines) + b"\n")
    return str(file)


def rows_of(directory):
    """All rows of a result, sorted by their ids, as bytes: equal iff the results are, byte for byte."""
    lines = [line for file in parts_of(directory) for line in file.read_bytes().splitlines()]
    return sorted(lines, key=lambda line: (str(json.loads(line)["id"]), line))


def parts_of(directory):
    return sorted(Path(directory).glob("part-*"))


def contents(directory):
    """Name and bytes of all files; what a killed run left, under names that begin with a dot, aside."""
    return {file.name: file.read_bytes() for file in Path(directory).iterdir() if not file.name.startswith(".")}


def process(*arguments, **more):
    """`dcp-ref ARGUMENTS` in a process of its own, with this copy of the package."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "dcp_ref", *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def ended(*arguments):
    """The exit code of `dcp-ref ARGUMENTS`, and what it printed."""
    run = process(*arguments)
    out, err = run.communicate()
    return run.returncode, out.decode(), err.decode()


def killed_after(seconds, *arguments):
    """`dcp-ref ARGUMENTS`, ended by SIGKILL unless it was done before."""
    with process(*arguments) as run:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.communicate(timeout=seconds)
        run.kill()


def saved_model(directory, model):
    weights.save(model, directory)
    return str(directory)
