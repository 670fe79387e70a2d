"""The table and the plots of decode.py, made from the JSON that it writes."""

import json
import statistics
from importlib.metadata import distributions
from pathlib import Path

from dcp_ref.analysis.table import markdown
from dcp_ref.bench.decoding import Point
from dcp_ref.bench.sweep_summary import pays_from, plot, scoring_share
from dcp_ref.checkpoints import pictures

PACKAGES = ("dcp-ref", "numpy", "torch", "transformers", "ctranslate2", "llama_cpp_python")
HEADER = ("row", "ours", "best rival", "ratio", "limit", "needed", "reached")
HEADING = ("`make bench`, or benchmarks/decode.py: random {model}, float32 unless said, {threads} threads of {cpu} "
           "({simd}), medians of {rounds} or more; {date}; {versions}.")
# row: (title, {ours: what it must reach: this many times the best rival, or this share of the limit})
VERSUS = {
    "batch1-64": ("batch 1, after 64 tokens", {"0% dropped": (1.1, 0.92)}),
    "batch1-880": ("batch 1, after 880 tokens", {"0% dropped": (1.1, 0.9), "80% dropped": (1.3, 0.9)}),
    "batch1-float16": ("batch 1, float16 weights, after 64 tokens", {"no scores": (1.0, None)}),
    "batch1-int8": ("batch 1, int8 weights, after 64 tokens", {"no scores": (1.0, None)}),
    "batch8": ("batch 8, ~900 tokens", {"0% dropped": (2.5, None), "80% dropped": (4, None)}),
    "batch32": ("batch 32, ~900 tokens", {"0% dropped": (2.5, None), "80% dropped": (5, None)}),
    "prompt": ("prompt of 880 tokens", {"0% dropped": (1.3, None), "80% dropped": (1.5, None)}),
}


def versions():
    """The versions of those PACKAGES that are installed."""
    found = {package.metadata["name"]: package.version for package in distributions()}
    return ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)


def median(calls):
    return statistics.median(calls)


def times_as_fast(calls, others):
    """The median ratio over the rounds: whatever slows a round down slows both."""
    return median([other / one for one, other in zip(calls, others, strict=True)])


def bandwidth_of(raw):
    """The mean of the bandwidth before and after a row."""
    return (raw["bandwidth"]["before"]["best"] + raw["bandwidth"]["after"]["best"]) / 2


def row(title, ours, rival="", ratio="", limit="", needed="", reached=None):
    """The cells of a line of the table, under HEADER."""
    return title, ours, rival, ratio, limit, needed, "" if reached is None else "yes" if reached else "**no**"


def speed(raw, seconds):
    """Tokens a second of all sequences together: tokens decoded, or tokens of the prompt."""
    return raw["batch"] * (raw["steps"] or raw["prompt"]) / seconds


def versus(title, needs, raw):
    """A line for each of ours beside the best rival and, where it was timed, beside llama.cpp with flash attention."""
    flash = [name for name in raw["pairs"] if name.endswith("flash attention")]  # slow: rival_llama.py
    return [beside(title, ours, *need, names, note, raw)
            for names, note in ((raw["same"], ""), (flash, "; llama.cpp with flash attention")) if names
            for ours, need in needs.items()]


def beside(title, ours, times, share, names, note, raw):
    """One of ours beside the rival that comes closest; the seconds of ours are those timed beside that rival."""
    ratios = {name: times_as_fast(raw["pairs"][name][ours], raw["pairs"][name][name]) for name in names}
    best = min(ratios, key=ratios.get)
    pair, fact = raw["pairs"][best], raw["ours"].get(ours)
    mine, theirs = (speed(raw, median(pair[name])) for name in (ours, best))
    limit, needed, reached = "", f"{times} x the rival", ratios[best] >= times
    if fact is not None:  # a step, not a prompt
        bound = raw["batch"] * bandwidth_of(raw) / (raw["weight_bytes"] + fact["kv_bytes"])
        limit = f"{bound:.1f}"
    if share is not None:
        needed += f", or {share} x the limit"
        reached = reached or mine >= share * bound
    dropped = f"{fact['share_dropped']:.0%} dropped" if ours == "80% dropped" and fact is not None else ours
    return row(f"{title}, {dropped}{note}", f"{mine:.1f} tokens/s", f"{theirs:.1f} ({best})", f"{ratios[best]:.2f}",
               limit, needed, reached)


def pruning(raw):
    """The measured speed-up beside the one that decode.py's formula predicts."""
    batch, rate, seconds = raw["batch"], bandwidth_of(raw), {name: median(c) for name, c in raw["calls"].items()}
    # Matrix products alone, at the measured rate for so many rows: t = FLOPs / (FLOPs / seconds).
    products = max(raw["weight_bytes"] / rate, seconds["linear"])
    nothing, most = (products + raw["ours"][name]["kv_bytes"] / rate for name in ("0% dropped", "80% dropped"))
    measured, predicted = seconds["0% dropped"] / seconds["80% dropped"], nothing / most
    title = f"batch {batch}, {raw['ours']['80% dropped']['share_dropped']:.0%} dropped against 0%"
    return [row(title, f"{measured:.2f} x as fast", ratio=f"{measured / predicted:.2f}",
                limit=f"{predicted:.2f} x predicted", needed="0.85 x the prediction",
                reached=measured >= 0.85 * predicted)]


def attention(raw):
    """Attention alone, beside the memory reader with the best median."""
    rates = {name: one["bytes"] / median(one["calls"]) for name, one in raw["readers"].items()}
    best, lines = raw["readers"][max(rates, key=rates.get)], []
    for live, one in raw["live"].items():
        share = one["bytes"] / best["bytes"] * times_as_fast(one["calls"], best["calls"])
        lines.append(row(f"attention alone, batch 32, {live} live tokens",
                         f"{one['bytes'] / median(one['calls']) / 1e9:.1f} GB/s", ratio=f"{share:.2f}",
                         limit=f"{max(rates.values()) / 1e9:.1f}", needed="0.8 x the bandwidth", reached=share >= 0.8))
    return lines


def linear(raw):
    rate, bound = raw["bytes"] / median(raw["calls"]["1"]), bandwidth_of(raw)
    lines = [row("linear alone, 1 row", f"{rate / 1e9:.1f} GB/s", ratio=f"{rate / bound:.2f}",
                 limit=f"{bound / 1e9:.1f}")]
    for rows, flops in raw["flops"].items():
        if rows != "1":
            lines.append(row(f"linear alone, {rows} rows", f"{flops / median(raw['calls'][rows]) / 1e9:.0f} GFLOP/s"))
    return lines


def scoring(raw):
    cost = median(raw["calls"]["0% dropped"]) / median(raw["calls"]["no scores"]) - 1
    return [row("all pruning work while nothing is dropped, batch 32, ~900 tokens", f"{cost:.1%} of a step",
                needed="at most 8%", reached=cost <= 0.08)]


def cache_bytes(raw):
    ours, dense = raw["bytes"]["80% dropped"], raw["bytes"]["no scores"]
    return [row(f"cache bytes, batch 32, 900 tokens, {raw['share_dropped']:.0%} dropped", f"{ours / 1e6:.0f} MB",
                ratio=f"{ours / dense:.3f}", limit=f"dense: {dense / 1e6:.0f} MB", needed="at most 0.25 x dense",
                reached=ours <= 0.25 * dense)]


def rss(raw):
    most = 1.15 * raw["weight_bytes"] + 150e6
    return [row("peak RSS, model loaded and 1 sequence", f"{raw['rss'] / 1e6:.0f} MB",
                ratio=f"{raw['rss'] / raw['weight_bytes']:.2f}", limit=f"weights: {raw['weight_bytes'] / 1e6:.0f} MB",
                needed=f"at most {most / 1e6:.0f} MB", reached=raw["rss"] <= most)]


OTHERS = {"pruning32": pruning, "pruning64": pruning, "attention": attention, "scoring": scoring, "bytes": cache_bytes,
          "rss": rss, "linear": linear}


def lines(results, name):
    """The lines of the table for one row of the results."""
    raw = results["rows"].get(name)
    if raw is None or name == "lengths":
        return []
    return versus(*VERSUS[name], raw) if name in VERSUS else OTHERS[name](raw)


def table(results, *names):
    return markdown(HEADER, [line for name in names for line in lines(results, name)], left=3)


def contenders(raw):
    """{name: tokens/s} of a row with rivals: medians, for ours over the calls beside all rivals."""
    calls = {}
    for pair in raw["pairs"].values():
        for name, timed in pair.items():
            calls.setdefault(name, []).extend(timed)
    return {name: speed(raw, median(timed)) for name, timed in calls.items()}


def everybody(results):
    """A line for each row with rivals: all contenders, including those that store numbers otherwise."""
    found = [f"* {VERSUS[name][0]}: " + ", ".join(f"{who} {rate:.1f}" for who, rate in contenders(raw).items())
             for name, raw in results["rows"].items() if name in VERSUS]
    return ["", "Tokens/s of all, ours with and without scores:", "", *found] if found else []


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
            *lengths(results)]
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
    figure = pictures.new_figure(9, 1 + 1.7 * len(rates))
    for axes, (name, found) in zip(figure.subplots(len(rates), squeeze=False)[:, 0], rates.items(), strict=True):
        names = sorted(found, key=found.get)
        ours = [who.endswith(("scores", "dropped")) for who in names]
        labels = [f"ours, {who}" if own else who for who, own in zip(names, ours, strict=True)]
        axes.barh(labels, [found[who] for who in names], color=["tab:orange" if own else "tab:blue" for own in ours])
        axes.set_title(f"{VERSUS[name][0]}, tokens/s", loc="left", fontsize=10)
    pictures.save(figure, path)
