"""README by its own measures: words, sentences, the picture, the order, and what its numbers are taken from."""

import json
import re
from pathlib import Path

import mutants
from doc_tools import BLOCK
from test_house import PAPER

import dcp_ref
from dcp_ref.bench.decoding import Point
from dcp_ref.bench.sweep_summary import pays_from, point_at

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
ORDER = ["Install", "In ten lines", "Seven words", "With a plain GPT-2", "Speed and memory", "How we know it is right",
         "The tree", "Where it stands", "Questions", "Cite"]


def sentences(text):
    """The sentences of a page: not its code, tables, titles and pictures. An item of a list ends a sentence."""
    text = BLOCK.sub("\n\n", text)
    text = re.sub(r"<picture>.*?</picture>", "\n", text, flags=re.S)
    text = re.sub(r"^(\||#| {4}|!\[).*$", "\n", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    parts = re.split(r"\n\s*\n|^(?:\*|\d+\.) ", text, flags=re.M)
    return [s.strip() for part in parts for s in re.split(r"(?<=[.?!])[*)]*\s+(?=[A-Z0-9`*\[])", part) if s.strip()]


def test_sentences_are_found():
    text = "# A title\n\nOne. Two is [here](a b c d).\n* Three\n* **Four?** Five.\n\n| a | b c |\n\n```sh\nx\n```\nSix"
    assert sentences(text) == ["One.", "Two is [here].", "Three", "**Four?", "Five.", "Six"]


def test_it_can_be_read():
    assert len(README.split()) <= 1200
    lengths = {sentence: len(sentence.split()) for sentence in sentences(README)}
    assert {s: n for s, n in lengths.items() if n > 30} == {}
    assert 8 < sum(lengths.values()) / len(lengths) <= 20 and len(lengths) > 40


def test_its_first_picture_is_by_line_12_for_both_looks():
    top = "\n".join(README.splitlines()[:12])
    assert re.search(r'dark\)" srcset="docs/pictures/[\w-]+-dark\.svg"', top)
    assert re.search(r'<img src="docs/pictures/[\w-]+-light\.svg"\s+alt="', top)


def test_its_parts_are_in_order():
    assert re.findall(r"^## (.*)$", README, re.M) == ORDER


def test_the_example_is_ten_lines():
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_picture_shows_what_the_words_under_it_say():
    """The comma drops four of the seven tokens before it, the full stop most of the rest."""
    trace = dcp_ref.trace(dcp_ref.load("tiny"), re.search(r'trace\(model, "(.*?)"\)', README).group(1))
    by = trace.drops.dropped_by[trace.drops.layer == 2].tolist()
    comma, stop = trace.texts.index(","), len(trace.texts) - 1
    rest = len(by) - sum(i < stop for i in by)
    assert (by.count(comma), comma) == (4, 7)
    assert by.count(stop) == rest > (trace.live_counts[2, stop - 1]) / 2


def test_its_numbers_are_the_newest():
    rows = json.loads(max(RESULTS.glob("*-decode-avx512f.json")).read_text())["rows"]
    points = [Point(**point) for point in rows["lengths"]["points"]]
    pays = pays_from(points)
    assert (f"Dropping 80% pays from {pays['80%']['dense']} tokens of context on, "
            f"dropping 50% from {pays['50%']['dense']}." in README)
    longest = max(point.context for point in points)
    dense, pruned = point_at(points, longest, "dense"), point_at(points, longest, "learned", 0.8)
    said = (f"After {longest} of its 1,024 tokens, 80% dropped: {pruned.tokens_per_second:.0f} tokens/s against "
            f"{dense.tokens_per_second:.0f} unpruned, and {pruned.cache_bytes / 1e6:.0f} MB of cache against "
            f"{dense.cache_bytes / 1e6:,.0f}.")
    assert said in " ".join(README.split())
    table = max(RESULTS.glob("*-decode-avx512f.md")).read_text()
    alone = [re.search(rf"after 880 tokens, {share}% dropped \| ([\d.]+)", table).group(1) for share in (80, 0)]
    assert f"{alone[0]} tokens/s against {alone[1]}" in README


def test_it_says_what_the_card_says():
    card = (ROOT / "dcp_ref/models/tiny/README.md").read_text(encoding="utf-8")
    assert "| 65.52, 65.47, 65.64 |" in card and "| 65.92, 65.83, 66.00 |" in card
    assert "6.3, 6.2, 6.7%" in card
    assert "`tiny` drops 93.7% and has perplexity 65.5" in README and "dense twin has 65.9" in README


def test_it_counts_the_mutants():
    assert f"`make mutants` applies {len(mutants.MUTANTS)} small wrong edits" in README


def test_its_tree_is_the_tree():
    tree = re.search(r"## The tree\n\n(.*?)\n\n", README, re.S).group(1)
    assert tree.split()[1 : 1 + len(PAPER)] == PAPER
    rooms = {p.name for p in (ROOT / "dcp_ref").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == set(re.findall(r"(\w+)/", tree)) & rooms
    for name in re.findall(r"^    (\w+)/", tree, re.M) + re.findall(r"(\w+)/", tree.splitlines()[-1]):
        assert (ROOT / name).is_dir(), name


def test_the_reading_order_begins_with_the_paper():
    order = re.findall(r"^\| \[([^]]+)\]\(", (ROOT / "docs/reading.md").read_text(encoding="utf-8"), re.M)
    assert order[: len(PAPER)] == [f"dcp_ref/{name}.py" for name in PAPER] and len(order) > 20


def test_the_citation_is_that_of_this_version():
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'\nversion: "{dcp_ref.__version__}"\n' in cff and "2305.15805" in cff
    assert f"version = {{{dcp_ref.__version__}}}" in README
    title = re.search(r"title\s+= \{(Dynamic.*)\}", README).group(1)
    assert f'title: "{title}"' in cff


def test_the_algorithm_fits_in_700_lines_and_the_makefile_on_a_screen():  # csrc/: test_csrc.py
    def count(*files):
        return sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files)

    names = ("sigmoid", "layers", "interaction", "attention", "block", "model")
    assert count(*(f"dcp_ref/{name}.py" for name in names)) <= 700
    assert count("Makefile") <= 70
