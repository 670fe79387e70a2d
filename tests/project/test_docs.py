"""README and docs: all commands and all Python in them run, and print what is said there."""

import dataclasses
import json
import lzma
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_tools import arguments, assert_prints, run_command, run_python, steps
from test_readme import README, ROOT, sentences
from text_models import CONFIG, text_model

from dcp_ref import native
from dcp_ref.checkpoints import weights
from dcp_ref.cli import command as cli

OF_THE_SUITE = ("testing.md", "specification.md")  # long pages of reference: tests/testing compares what they show
DOCS = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in OF_THE_SUITE)
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *DOCS]
SMALLER = {  # appended, so that a command takes seconds; of an option that comes twice, the last counts
    "train": "--steps 2 --batch 2 --micro-batch 1 --context 16 --warmup 1 --eval-windows 1 --threads 1",
    "evaluate": "--max-tokens 40 --threads 1",
    "calibrate": "--windows 1 --shares 0.5 0.2",
}
NEW_MODEL = "--vocab-size 300 --config " + repr(json.dumps({"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 64}))
NOT_RUN = {  # why; what can be checked of them is checked below
    "pip install .": "installs, and needs the network: the wheel's own test does it",
    'pip install ".[lm-eval]"': "needs the network",
    'pip install ".[ray]"': "needs the network",
    "dcp-ref score --input corpus.jsonl --out scores --ray": "needs an extra: tests/corpus/test_on_ray.py does it",
    "dcp-ref score --input corpus.jsonl --out scores --ray HEAD:6379": "needs a cluster",
    "make demo": "makes an environment, and needs the network",
    "make test": "these tests",
    "dcp-ref download gpt2": "needs the network and an extra",
    "dcp-ref bench --quick": "takes half a minute of a quiet machine",
    "python benchmarks/decode.py --resume": "takes an hour, and rivals",
    "python benchmarks/shipped.py --text valid.txt.xz --dense DENSE": "DENSE is not shipped",
    "python examples/studies/beyond/summary.py --text valid.txt.xz --windows 8 --seed 0": "takes minutes",
    "python examples/studies/beyond/recall.py --text valid.txt.xz --windows 8 --seed 0": "takes minutes",
    "python examples/studies/beyond/by_task.py --lambada lambada.jsonl --hellaswag hellaswag.jsonl --piqa piqa.jsonl "
    "--winogrande winogrande.jsonl --text valid.txt.xz --limit 50 --seed 0": "takes minutes, and its tasks",
    "python -m dcp_ref.analysis.lm_eval --model dcp_ref --model_args pretrained=tiny policy=window:64 "
    "--tasks lambada_openai": "needs an extra, and the network",
}


def bare(command):
    """Without its comment."""
    return re.sub(r"\s+#.*", "", command).strip()


def commands(page):
    return [bare(step.code) for step in steps(page.read_text(encoding="utf-8")) if not step.python]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A directory with the files that the documents speak of."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    (tmp_path / "valid.txt.xz").write_bytes(lzma.compress(text[:4000].encode()))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"Chapter {name}\n\nThe sea", encoding="utf-8")
    item = {"activity_label": "Sailing", "ctx_a": "A man looks at the sea.", "ctx_b": "he", "label": 1,
            "endings": ["sings.", "looks back.", "is a tree.", "was."]}
    rows = [{"id": name, "text": sentence} for name, sentence in (
        ("sea", "The old man looked at the sea."), ("tea", "She said that it was time for tea. " * 80), ("none", ""))]
    for name, some in (("corpus", rows), ("prompts", [{"id": n, "text": f"The sea {n}"} for n in range(2)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    weights.save(text_model(dataclasses.replace(CONFIG, int_n_embd=None)), tmp_path / "gpt2")  # what download makes
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(words):
    """The words after `dcp-ref`, and those that make it short."""
    more = SMALLER.get(words[0], "")
    if words[0] == "train" and "--init" not in words:
        more += " " + NEW_MODEL
    return words + arguments(more) if "--task" not in words else words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore:using the NumPy kernels")
def test_what_a_page_says_is_what_runs(page, desk, capsys):
    namespace = {"__name__": "__main__"}
    for step in steps(page.read_text(encoding="utf-8")):
        if step.python:
            printed = run_python(step.code, namespace)
        elif bare(step.code) in NOT_RUN:
            continue
        else:
            program, *words = arguments(step.code)
            assert program == "dcp-ref", f"{step.code}: run it, or say in NOT_RUN why not"
            printed = run_command(smaller(words), capsys)
        if step.output is not None:
            assert_prints(printed, step.output)
        elif step.python:
            assert printed == "", "it prints what the page does not say"


@pytest.mark.parametrize("command", NOT_RUN)
def test_what_is_not_run_is_at_least_there(command):
    """The options are parsed by the command's own parser; targets, extras, files and modules exist."""
    assert command in [each for page in PAGES for each in commands(page)], "no page has it any more"
    program, *words = arguments(command)
    if program == "dcp-ref":
        assert cli.parser(words).parse_args(words).command == words[0]
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    if program == "pip":
        for extra in re.findall(r"\[(.*)\]", words[-1]):
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
    if program == "python":
        file = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
        assert file.exists()
        if words[0] != "-m":
            assert [o for o in words if o.startswith("--") and f'"{o}"' not in file.read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_files_that_a_page_names_exist(page):
    """In links, in pictures, and between backquotes."""
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
             for link in link if link and "://" not in link]
    quoted = re.findall(r"`((?:dcp_ref|csrc|tests|examples|benchmarks|docs)/[^\s`]*)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in quoted if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_two_screens_and_its_sentences_are_short(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (140 if page in DOCS else 200)
    lengths = [len(sentence.split()) for sentence in sentences(text)]
    assert max(lengths) <= 35 and sum(lengths) / len(lengths) <= 20
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_every_page_is_reached_from_readme():
    """From README, or from a page that README links to."""
    linked = set(re.findall(r"docs/([\w-]+\.md)", README))
    assert {page.name for page in DOCS} == linked - set(OF_THE_SUITE)


DECODE = sorted({f"decode-{path.stem.rpartition('-')[2]}" for path in RESULTS.glob("*-decode-*.json")})


@pytest.mark.parametrize(("name", "page", "rows"), [*[(name, "speed", 10) for name in DECODE],
                                                    ("training", "training", 4)])
def test_the_tables_are_the_newest_benchmarks(name, page, rows):
    newest = max(RESULTS.glob(f"*-{name}.md"))
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = [line for line in newest.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(table) > rows and "\n".join(table) in text
    assert newest.name[:10] in text


def test_speed_says_what_the_shipped_model_was_measured_at():
    newest = max(RESULTS.glob("*-shipped.md")).read_text(encoding="utf-8")
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for speed, megabytes in (re.findall(r"\| (\d+) \| ([\d.]+) \|", newest)[row] for row in (0, 2)):
        assert f"{int(speed):,}" in text and f"{megabytes} MB" in text


def test_the_rule_is_the_same_everywhere():
    rule = re.search(r"iff\n\n +(\(rank.*\n +\(window.*)\n", (ROOT / "dcp_ref/policies.py").read_text()).group(1)
    running = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    for text in (running, (ROOT / "csrc/dcp.h").read_text().replace("*", "")):
        assert " ".join(rule.split()) in " ".join(text.split())


CHECK = """
import numpy as np
from dcp_ref import Engine, forward, load, policies
model, rule = load("tiny"), policies.parse("blocks:3,8")
ids = np.arange(40) * 7 % 400
engine = Engine(model, BACKEND, policy=rule)
sequence = engine.new_sequence()
live = forward(model.params, ids[None], model.config, policy=rule).interaction[:, 0]
for i, token in enumerate(ids.tolist()):
    engine.feed([sequence], [[token]])
    for layer in range(model.config.n_layer):
        assert engine.live_positions(sequence, layer).tolist() == np.flatnonzero(live[layer, i, : i + 1]).tolist()
assert live[0, 39].nonzero()[0].tolist() == [*range(32, 40)]
"""


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_adding_a_rule_needs_what_its_page_says(backend, tmp_path):
    """Its edits apply to a copy, which decodes by the new rule as the dense forward does."""
    if backend == "native" and not (native.available() and shutil.which("gcc")):
        pytest.skip("no compiler")
    for name in ("dcp_ref", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    for name in ("setup.py", "build_dcp.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    text = (ROOT / "docs" / "adding-a-rule.md").read_text(encoding="utf-8")
    diffs = re.findall(r"^```diff\n(.*?)^```$", text, re.M | re.S)
    assert len(diffs) == 2
    subprocess.run(["patch", "-p1", "--fuzz=0"], input="".join(diffs), text=True, cwd=tmp_path, check=True)
    if backend == "native":
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", CHECK.replace("BACKEND", repr(backend))], cwd=tmp_path, check=True)


def test_the_pictures_are_what_their_script_draws(tmp_path):
    folder = ROOT / "docs" / "pictures"
    subprocess.run([sys.executable, "-c", f"import runpy, sys; sys.argv = ['draw.py', {str(tmp_path)!r}]; "
                    f"runpy.run_path({str(folder / 'draw.py')!r}, run_name='__main__')"], cwd=ROOT, check=True)
    drawn = sorted(tmp_path.iterdir())
    assert [file.name for file in drawn] == sorted(file.name for file in folder.glob("*.svg"))
    for file in drawn:
        assert file.read_bytes() == (folder / file.name).read_bytes(), f"draw {file.name} again"


def test_draw_is_one_screen():
    assert len((Path(ROOT) / "docs/pictures/draw.py").read_text().splitlines()) <= 40
