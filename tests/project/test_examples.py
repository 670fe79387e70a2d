"""Every example runs, and what it prints is checked: a number, a picture or a verdict that a fault would change."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import CACHE_ATTENTION, PROJECTION, TINY_LOGITS, TRAINING_FLOAT32

import dcp_ref
from dcp_ref import native

FOLDER = Path(__file__).parents[2] / "examples"
STUDIES = sorted((FOLDER / "studies").glob("*.py"))
EXAMPLES = [*sorted(FOLDER.glob("*.py")), *STUDIES]
PATH = os.pathsep.join([str(Path(dcp_ref.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATH, "PYTHONUTF8": "1"}
HIDE_EXTENSION = "import runpy, sys; sys.modules['dcp_ref._native'] = None; runpy.run_path(sys.argv[1])"


def run(arguments, directory) -> str:
    """Standard output of a Python that imports the very package that is tested, from another directory."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], check=False, capture_output=True, encoding="utf-8", timeout=300,
        cwd=directory, env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def number(pattern: str, out: str) -> float:
    """The one number after `pattern`."""
    [found] = re.findall(pattern + r"\s*([-+.\de]+)", out)
    return float(found)


def check_01(out):
    curves = re.findall(r"^alpha (\S+) *\|(.{61})\|  exactly", out, re.M)
    assert [alpha for alpha, _ in curves] == ["1", "1.25", "1.5", "2", "3", "4", "8", "64", "inf"]
    assert dict(curves)["inf"] == " " * 31 + "█" * 30  # a tie is dropped
    assert dict(curves)["2"].count(" ") == dict(curves)["2"].count("█") == 21
    assert " " not in dict(curves)["1"] and "█" not in dict(curves)["1"]
    assert max(float(x) for x in re.findall(r"left-over (\S+)", out)) < 1e-14
    assert re.search(r"^1 +0\.2689 .* 0\.7311 +inf$", out, re.M)


def check_02(out):
    """The mask of layer 0, made again from the signs of the printed scores, one pair at a time."""
    rows = [line[13:] for line in out.splitlines() if re.match(r" {2,3}\d+ ", line)]  # after number and token
    T = len(rows) // 2
    signs = [[s[0] == "+" for s in row.split()] for row in rows[:T]]
    assert [len(row) for row in signs] == list(range(T)) and T >= 8
    live: list[int] = []
    for i, row in enumerate(signs):
        now = {j for j in live if not row[j]}
        gone = set(range(i)) - set(live)
        expected = "".join("×" if j in now else "·" if j in gone else "█" for j in range(i)) + "■"
        assert rows[T + i][:T].rstrip() == expected
        live = [j for j in live if j not in now] + [i]
    assert number(r"by hand and by forward\(\): largest difference", out) == 0


def check_03(out):
    assert number("Weights of the dropped: largest", out) == 0
    assert number("Every row adds up to 1: largest error", out) < TRAINING_FLOAT32["atol"]
    assert number("rescaled: largest difference", out) < TRAINING_FLOAT32["atol"]
    rows = re.findall(r"\|(.*)\|  \|(.*)\|\s+(\d+)\s+(\d+)%", out)
    assert len(rows) >= 8
    for i, (_, right, live, _) in enumerate(rows):
        assert right.count("··") == i + 1 - int(live)


def check_04(out):
    everything, each = out.split("One direction in one tensor")
    errors = np.array(re.findall(r"^1e-\d\d +\S+ +(\S+) █* +(\S+) █+$", everything, re.M), float)
    assert errors.shape == (10, 2)
    assert errors[:, 0].min() < 1e-8 and errors[0, 0] > 1e-5  # the h^2 of a smooth loss, then rounding
    assert errors[:, 1].min() > 1e-3  # the wrong sign never goes away
    tensors = re.findall(r"^(h\.0\.\S+) .*?(\S+)$", each, re.M)
    assert len(tensors) == 15
    assert all(float(error) < 10 * PROJECTION for _, error in tensors)


def check_05(out):
    rows = [line[15:] for line in out.splitlines() if re.match(r" {5,6}\d+ ", line)]  # after number and drops
    tables = [" ".join(row[:54].replace("*", " ").split()) for row in rows]
    assert len(rows) == 16
    assert tables[10] == "0 1 2 3 4 5 6 7 8 9 10 ."
    assert tables[11] == "0 1 2 3 11 . 6 7 8 9 10 ."  # 4 and 5 dropped, the lower hole used again, nothing moved
    assert tables[12] == "0 1 2 3 11 12 6 7 8 9 10 ."
    assert sorted(map(int, tables[14].split())) == [6, *range(8, 15)]  # 1, 3, 7 dropped: two pages are enough
    assert rows[14][54:].split()[:3] == ["8", "8", "1"]  # live, slots, free pages
    assert number("largest difference", out) < CACHE_ATTENTION["atol"]


def check_06(out):
    assert "Live sets equal, all tokens and layers: True" in out
    assert "Most likely next token equal: True" in out
    assert number("largest difference", out) < TINY_LOGITS["atol"]
    live, seen = map(int, re.search(r"Held at the end: (\d+) of (\d+) tokens", out).groups())
    assert live < seen and len(re.findall(r"^ +\d+ .{0,7} \*", out, re.M)) == 12


def check_07(out):
    dense, pruned = (
        np.array(re.findall(rf"^{run} +\d+ +\S+ +(\S+) █+ +(\S+)%", out, re.M), float) for run in ("dense", "pruned")
    )
    assert (dense[:, 1] == 100).all() and dense[-1, 0] < 2.05  # 2.2 is the best without looking back for the animal
    assert pruned[-1, 1] < 40 and pruned[-1, 0] < 2.05


def check_08(out):
    numbers = re.findall(r"^layer \d +([\d· ]+)$", out, re.M)
    drops = sum(cell.isdigit() for row in numbers for cell in row.split())
    assert re.findall(r"drops +\d+ of (\d+)$", out, re.M) == [str(drops)] * 3 and drops > 50
    assert "'.'      drops" in out and "Here the token was dropped." in out
    score = number("the score", out.replace(".\n", "\n"))
    assert score < 0 and number("largest difference", out) < TRAINING_FLOAT32["atol"]
    assert out.count(" nats. Most of it:") == 2


def check_comparison(out):
    table = dict(re.findall(r"^(dense|gamma-\S+|kept-\S+) +\d+ +(\S+)%", out, re.M))
    assert list(table) == ["dense", "gamma-0.1", "gamma-0.015", "gamma-0.2", "kept-0.5"]
    assert table.pop("dense") == "100.0" and all(0 < float(kept) < 100 for kept in table.values())
    fixed = re.findall(r"^\| (\w+) +\| dense \| \w+:\S+ +\| +(\S+)% ", out, re.M)
    assert {rule for rule, _ in fixed} == {"window", "strided", "sinks", "heavy_hitters"}
    assert {round(float(kept), -1) for _, kept in fixed} >= {50, 20, 10}
    assert out.count(" writes: The ") == 2


def check_what_is_dropped(out):
    kinds = re.findall(r"^\| ([a-z ]+?) +\| .* (\d+) \| +([\d.]+) \| +[\d.]+% \|$", out, re.M)
    assert len(kinds) >= 4 * 5 and sum(int(tokens) for _, tokens, _ in kinds) == 4 * number("tiny:", out)
    kept = number("kept:", out)
    assert 0 < kept < 100
    by_layer = [float(x) for x in re.findall(r"^layer \d: (\S+)% kept$", out, re.M)]
    assert np.mean(by_layer) == pytest.approx(kept, abs=0.1)
    ages = np.array([re.findall(r"(\S+)%", line) for line in re.findall(r"^\d+ .*%$", out, re.M)], float)
    assert len(ages) >= 3 and (ages[0] > ages[-1]).all()


CHECKS = {name: check for name, check in globals().items() if name.startswith("check_")}


def check_of(example):
    """The name of an example's check: check_ and its number, or a study's whole name."""
    return f"check_{example.stem if example in STUDIES else example.name[:2]}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_promises(example, tmp_path):
    out = run([str(example)], tmp_path)
    assert out.strip()
    assert max(map(len, out.splitlines())) <= 120
    if example.name.startswith("05") and not native.available():
        assert "not built" in out
    else:
        CHECKS[check_of(example)](out)
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short_is_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    [example] = [path for path in STUDIES if path.stem == "what_is_dropped"]
    done = subprocess.run([sys.executable, str(example), "--text", "empty.txt"], check=False, capture_output=True,
                          encoding="utf-8", cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 2 and "--text empty.txt: 0 tokens are too few" in done.stderr


def test_the_slot_table_says_when_there_is_no_extension(tmp_path):
    [example] = [path for path in EXAMPLES if path.name.startswith("05")]
    out = run(["-c", HIDE_EXTENSION, str(example)], tmp_path)
    assert len(out.splitlines()) == 1 and "not built" in out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_documented(example):
    lines = example.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (90 if "argparse" in example.read_text(encoding="utf-8") else 60)
    assert lines[0].startswith('"""') and any(line.startswith("Watch for: ") for line in lines[:9])


def test_there_is_one_check_for_every_example():
    assert sorted(CHECKS) == sorted(map(check_of, EXAMPLES))
    assert len(EXAMPLES) == 10


def test_the_studies_have_a_sign():
    sign = (FOLDER / "studies" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\S+)\]\(\1\) \|", sign, re.M) == [path.name for path in STUDIES]
