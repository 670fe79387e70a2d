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
from dcp_ref.analysis.likelihood import nats

FOLDER = Path(__file__).parents[2] / "examples"
BEYOND = sorted((FOLDER / "studies" / "beyond").glob("*.py"))
STUDIES = [*sorted((FOLDER / "studies").glob("*.py")), *BEYOND]
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


def lines_of(out):
    """The cells of each line of the table in a study's output."""
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    return found[2:]  # a title, and the rule under it


def check_summary(out):
    rows = lines_of(out)
    kept = [float(row[1].rstrip("%")) for row in rows]
    assert [row[0].partition(":")[0] for row in rows] == ["sinks"] * 4 + ["learned at 0"]
    assert kept[:4] == sorted(kept[:4], reverse=True) and all(0 < share < 100 for share in kept)
    perplexities = np.array([row[2:6] for row in rows], float)
    assert (perplexities > 1).all() and all(len({*row}) == 4 for row in perplexities)  # each is another attention
    assert all(row[6] not in row[2:6] for row in rows) and rows[4][6] == ""
    changes = [float(row[7].partition("%")[0]) for row in rows]
    assert changes == pytest.approx(100 * (perplexities[:, 1] / perplexities[:, 0] - 1), abs=0.1)


def check_recall(out):
    """With m as large as the text, a query attends to everything: all rules are the dense model then."""
    lines = lines_of(out)
    assert len(lines) == 5 and len({line[6] for line in lines}) == 1
    assert all(0 < float(line[1].rstrip("%")) < 100 and len({*line[2:6]}) > 1 for line in lines)
    model = dcp_ref.load("tiny")
    passage = re.search(r'PASSAGE = """(.*?)"""', (FOLDER / "studies/beyond/recall.py").read_text(), re.S)[1]
    ids = np.array(model.tokenizer.encode(passage))
    logits = dcp_ref.forward(model.params, ids[None, :-1], model.config, policy=dcp_ref.policies.dense).logits[0]
    assert float(lines[0][6]) == pytest.approx(np.exp(nats(logits, ids[1:]).mean()), abs=0.011)


def check_by_task(out):
    rows = lines_of(out)
    assert [row[1] for row in rows] == ["-1", "-0.5", "0", "0.5", "1", "1.5"] * 2
    for task in ("lambada", "plain text"):
        kept, text = ([float(row[n].rstrip("%")) for row in rows if row[0] == task] for n in (2, 3))
        assert len(kept) == 6 and (np.diff(kept) < 0).all() and (np.diff(text) < 0).all()
        assert 0 < kept[-1] < kept[0] < 100
        assert out.count(f"\n{task} loses ") == 1
    model, [last] = dcp_ref.load("tiny"), [row for row in rows if row[:2] == ["plain text", "0.5"]]
    passage = re.search(r'PASSAGE = """(.*?)"""', (FOLDER / "studies/beyond/by_task.py").read_text(), re.S)[1]
    found = dcp_ref.trace(model, passage, threshold=0.5)
    assert float(last[2].rstrip("%")) == pytest.approx(100 * found.share_kept.mean(), abs=0.06)
    assert float(last[5]) == pytest.approx(-found.log_probabilities.mean(), abs=0.11)  # the last token is not fed there


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


@pytest.mark.parametrize("name", ["what_is_dropped", "summary", "recall", "by_task"])
def test_a_text_that_is_too_short_is_named(tmp_path, name):
    (tmp_path / "empty.txt").touch()
    [example] = [path for path in STUDIES if path.stem == name]
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
    most = 150 if example in BEYOND else 90 if "argparse" in example.read_text(encoding="utf-8") else 60
    assert len(lines) <= most
    assert lines[0].startswith('"""') and any(line.startswith("Watch for: ") for line in lines[:9])


def test_there_is_one_check_for_every_example():
    assert sorted(CHECKS) == sorted(map(check_of, EXAMPLES))
    assert len(EXAMPLES) == 13


@pytest.mark.parametrize("folder", [FOLDER / "studies", FOLDER / "studies" / "beyond"], ids=lambda path: path.name)
def test_the_studies_have_a_sign(folder):
    sign = (folder / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in STUDIES if path.parent == folder]
    assert re.findall(r"^\| \[(\S+)\]\(\1\) \|", sign, re.M) == files
