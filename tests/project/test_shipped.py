"""benchmarks/shipped.py: what it refuses, and when it writes a file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dcp_ref
from dcp_ref.checkpoints.files import SHIPPED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """Runs a copy of it, which writes into the copy's directory."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    script = shutil.copy(ROOT / "benchmarks" / "shipped.py", tmp_path / "benchmarks")
    shutil.copy(ROOT / "README.md", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(dcp_ref.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return lambda *arguments: subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True,
                                             check=False, env=environment)


def test_a_text_that_is_too_short(run, tmp_path):
    (tmp_path / "empty.txt").touch()
    done = run("--text", str(tmp_path / "empty.txt"))
    assert done.returncode == 2 and "empty.txt: 0 tokens are too few for a context of 512" in done.stderr


def test_only_a_text_that_was_given_has_a_result_file(run, tmp_path):
    done = run("--batch", "1")
    assert done.returncode == 0 and "README.md, batch 1, " in done.stdout, done.stderr
    assert not list((tmp_path / "benchmarks" / "results").iterdir())
    shutil.copytree(SHIPPED / "tiny", tmp_path / "plain")
    (tmp_path / "valid.txt").write_text("The old man looked at the sea. " * 80)
    done = run("--batch", "1", "--text", str(tmp_path / "valid.txt"), "--dense", str(tmp_path / "plain"))
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "benchmarks" / "results").iterdir()
    assert file.name.endswith("-shipped.md") and file.read_text() == done.stdout
    assert done.stdout.startswith("valid.txt, batch 1, ")
    names = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert names[2:] == ["tiny, its rule", "tiny, nothing dropped", "plain, dense"]
