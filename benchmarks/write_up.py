"""What decode.py writes: the JSON, the table and the plots beside it, and the tables of docs/speed.md.

    python benchmarks/write_up.py

puts the newest table of each instruction set into docs/speed.md.
"""

import datetime
import json
import re
from importlib.metadata import distributions
from pathlib import Path

from report import OTHERS, median, speed, table
from rows import VERSUS

from dcp_ref.bench.decoding import Point
from dcp_ref.bench.sweep_summary import pays_from, plot, scoring_share
from dcp_ref.checkpoints import pictures

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
PACKAGES = ("dcp-ref", "numpy", "torch", "transformers", "ctranslate2", "llama_cpp_python", "openvino-genai")
HEADING = ("`make bench`, or benchmarks/decode.py: random {model}, float32 unless said, {threads} threads of {cpu} "
           "({simd}{forced}), medians of {rounds} or more; {date}; {versions}.")
ERRORS = ("Tokens/s of all, ours with and without scores. In brackets: the rms error of a rival's logits on a small "
          "model and a short prompt, of which nothing is evicted, in standard deviations of the logits.")
SECTION = ("{date}, {threads} threads of {cpu}, medians of {rounds} or more\n"
           "([everything that was measured](../benchmarks/results/{name})).")


def versions():
    """The versions of those PACKAGES that are installed."""
    found = {package.metadata["name"]: package.version for package in distributions()}
    return ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)


def contenders(raw):
    """{name: tokens/s} of a row with rivals: medians, for ours over the calls beside all rivals."""
    calls = {}
    for pair in raw["pairs"].values():
        for name, timed in pair.items():
            calls.setdefault(name, []).extend(timed)
    return {name: speed(raw, median(timed)) for name, timed in calls.items()}


def everybody(results):
    """A line for each row with rivals: all contenders, including those that store numbers otherwise."""
    found = [f"* {VERSUS[name].title}: " + ", ".join(f"{who} {rate:.1f}{error_of(raw, who)}"
                                                     for who, rate in contenders(raw).items())
             for name, raw in results["rows"].items() if name in VERSUS]
    return ["", ERRORS, "", *found] if found else []


def error_of(raw, who):
    return f" ({raw['errors'][who]['logits']:.1g})" if who in raw["errors"] else ""


def duration(results):
    """How long the rows took."""
    minutes = {name: raw["seconds"] / 60 for name, raw in results["rows"].items()}
    return ["", f"Minutes: {sum(minutes.values()):.0f} in all; "
            + ", ".join(f"{name} {each:.1f}" for name, each in minutes.items()) + "."] if minutes else []


def lengths(results):
    points = [Point(**fields) for fields in results["rows"].get("lengths", {}).get("points", [])]
    if not points:
        return []
    costs = ", ".join(f"{scoring_share(points, n):.1%} at {n}" for n in sorted({p.context for p in points}))
    pays = ", ".join(f"{share} from {first['learned']} tokens on ({first['dense']} against a model without scores)"
                     for share, first in pays_from(points).items())
    return ["", f"Batch 32: the share of a step that scoring takes while nothing is dropped is {costs} tokens. "
            f"Dropping pays: {pays}."]


def write(results, path):
    """Write the JSON, and the table beside it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = [HEADING.format(**results["facts"]), "", table(results, *VERSUS, *OTHERS), *everybody(results),
            *lengths(results), *duration(results)]
    path.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


def plots(results, path):
    points = [Point(**fields) for fields in results["rows"].get("lengths", {}).get("points", [])]
    if points:
        plot(points, Path(f"{path.with_suffix('')}-lengths.png"))
    bars({name: contenders(results["rows"][name]) for name in VERSUS if name in results["rows"]},
         Path(f"{path.with_suffix('')}-rivals.png"))


def bars(rates, path):
    """A panel for each row; ours have another colour."""
    if not rates:
        return
    figure = pictures.new_figure(9, 1 + 2.2 * len(rates))
    for axes, (name, found) in zip(figure.subplots(len(rates), squeeze=False)[:, 0], rates.items(), strict=True):
        names = sorted(found, key=found.get)
        ours = [who.endswith(("scores", "dropped")) for who in names]
        labels = [f"ours, {who}" if own else who for who, own in zip(names, ours, strict=True)]
        axes.barh(labels, [found[who] for who in names], color=["tab:orange" if own else "tab:blue" for own in ours])
        axes.set_title(f"{VERSUS[name].title}, tokens/s", loc="left", fontsize=10)
    pictures.save(figure, path)


def file_of(today, level, resume, folder=RESULTS):
    """The JSON file of a run: today's or, to resume, yesterday's if that is the newest."""
    name = f"-decode-{level}.json"
    newest = max(folder.glob(f"*{name}"), default=None) if resume else None
    recent = newest is not None and newest.name >= str(today - datetime.timedelta(days=1))
    return newest if recent else folder / f"{today}{name}"


def section(path):
    """What a page says of results: when and where they were measured, and their table."""
    facts, written = json.loads(path.read_text(encoding="utf-8"))["facts"], path.with_suffix(".md")
    lines = [line for line in written.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return "\n".join([SECTION.format(**facts, name=written.name), "", *lines, ""])


def with_tables(page, results=RESULTS):
    """The text of a page with the newest table of each instruction set between `<!-- LEVEL -->` and `<!-- end -->`."""
    for level in re.findall(r"<!-- (\w+) -->\n", page):
        newest = max(results.glob(f"*-decode-{level}.json"), default=None)
        if newest is not None:
            before, rest = page.split(f"<!-- {level} -->\n")
            page = f"{before}<!-- {level} -->\n{section(newest)}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written to {PAGE}")
