"""The workflow is small, whole, and names only what is here; PyYAML comes with the extra hub."""

import re

import pytest
from test_readme import ROOT

yaml = pytest.importorskip("yaml")
FILE = ROOT / ".github" / "workflows" / "ci.yml"
TEXT = FILE.read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load(TEXT)
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_it_fits_on_a_screen():
    lines = TEXT.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    assert all(line == line.rstrip() and "\t" not in line for line in lines)


def test_its_keys_are_those_that_a_workflow_has():
    assert set(WORKFLOW) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads `on` as true
    for job in WORKFLOW["jobs"].values():
        assert set(job) <= {"strategy", "runs-on", "steps", "needs"}
        assert {name.partition("-")[0] for name in job["strategy"]["matrix"]["os"]} == {"ubuntu", "macos", "windows"}
    for step in STEPS:
        assert set(step) <= {"uses", "with", "run", "env", "if"} and ("uses" in step) != ("run" in step)


def test_everything_is_pinned():
    """Machines, actions and versions of Python by name: latest is no version, and 3.10 is no number."""
    assert "latest" not in TEXT
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in STEPS if "uses" in step)
    assert all(isinstance(version, str) for version in WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"])
    assert all("==" in step["run"] for step in STEPS if "install cibuildwheel" in step.get("run", ""))


def test_what_it_uses_is_here():
    """Values of the matrix, extras, and the least Python."""
    for job in WORKFLOW["jobs"].values():
        used = set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}|matrix\.(\w+) ==", str(job)))
        assert {name for pair in used for name in pair if name} <= set(job["strategy"]["matrix"])
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [extras] = re.findall(r'"\.\[(.*?)\]"', TEXT)
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))
    least = re.search(r'requires-python = ">=3\.(\d+)"', project).group(1)
    assert f"CIBW_BUILD: cp3{least}-*" in TEXT and f'python: ["3.{least}",' in TEXT
