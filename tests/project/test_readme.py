"""The README's Python example prints what the README says; its table and counts are true too."""

import re
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from test_house import PAPER

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_it_says(tmp_path):
    code, output = re.search(r"```python\n(.*?)```\s+```\n(.*?)```", README, re.DOTALL).groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == output


def test_what_it_says_of_running_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, check=True)


def test_all_files_that_it_names_exist():
    """In links and between backquotes; the reading order begins with the paper, as its files import each other."""
    links = [file for file in re.findall(r"\]\(([^)]+)\)", README) if "://" not in file]
    quoted = re.findall(r"`((?:dcp_ref|csrc|tests|examples|benchmarks)/[^\s`]*)`", README)
    assert len(links) > 25 and len(quoted) > 8
    assert [file for file in [*links, *quoted] if not (ROOT / file).exists()] == []
    order = re.findall(r"^\| \[([^]]+)\]\(", README, re.M)
    assert order[: len(PAPER)] == [f"dcp_ref/{name}.py" for name in PAPER]


@pytest.mark.parametrize(("name", "rows"), [("decode", 10), ("training", 4)])
def test_its_tables_are_the_newest_benchmarks(name, rows):
    newest = max((ROOT / "benchmarks" / "results").glob(f"*-{name}.md"))
    table = [line for line in newest.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(table) > rows and "\n".join(table) in README
    assert newest.name[:10] in README


def test_it_says_what_the_shipped_model_was_measured_at():
    newest = max((ROOT / "benchmarks" / "results").glob("*-shipped.md")).read_text(encoding="utf-8")
    for speed, megabytes in (re.findall(r"\| (\d+) \| ([\d.]+) \|", newest)[row] for row in (0, 2)):
        assert f"{int(speed):,}" in README and f"{megabytes} MB" in README


def test_the_rule_is_the_same_everywhere():
    rule = re.search(r"iff\n\n +(\(rank.*\n +\(window.*)\n", (ROOT / "dcp_ref/policies.py").read_text()).group(1)
    for text in (README, (ROOT / "csrc/dcp.h").read_text().replace("*", "")):
        assert " ".join(rule.split()) in " ".join(text.split())


def test_it_counts_the_mutants():
    assert f"`make mutants` applies {len(mutants.MUTANTS)} small wrong edits" in README


def test_the_algorithm_fits_in_700_lines_and_the_makefile_on_a_screen():  # csrc/: test_csrc.py
    def count(*files):
        return sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files)

    names = ("sigmoid", "layers", "interaction", "attention", "block", "model")
    assert count(*(f"dcp_ref/{name}.py" for name in names)) <= 700
    assert count("Makefile") <= 70
