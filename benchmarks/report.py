"""The lines of the table of decode.py, made from the JSON that it writes."""

import statistics

from rows import VERSUS

from dcp_ref.analysis.table import markdown

HEADER = ("row", "ours", "best rival", "ratio", "limit", "needed", "reached")


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


def products_of(results):
    """{rows: seconds} of a step's matrix products alone, in float32. At 1 row they wait for bytes, as all else does."""
    calls = results["rows"].get("linear", {}).get("calls", {})
    return {int(rows): median(seconds) for rows, seconds in calls.items() if rows.isdecimal() and rows != "1"}


def bound(raw, fact, products):
    """The most tokens a second: bytes at the measured bandwidth, or matrix products alone; None where neither is known.

    A step reads its weights, keys and values once. The two could overlap, so the longer one counts.
    """
    rows = raw["batch"] * (1 if raw["steps"] else raw["prompt"])
    read = (raw["weight_bytes"] + fact["kv_bytes"]) / bandwidth_of(raw) if fact else 0
    seconds = max(read, products.get(rows, 0))
    return rows / seconds if seconds else None


def versus(rows, raw, level, products):
    """A line for each need of `Rows` beside whose rivals it was timed."""
    found = ((need, rivals_of(need, raw)) for need in rows.needs)
    return [beside(rows.title, need, names, raw, level, products) for need, names in found if names]


def rivals_of(need, raw):
    return [name for name in raw["same"]
            if name.startswith(need.beside) and ("evicts" not in name or need.ours == "80% dropped")]


def beside(title, need, names, raw, level, products):
    """One of ours beside the rival that comes closest; the seconds of ours are those timed beside that rival."""
    ratios = {name: times_as_fast(raw["pairs"][name][need.ours], raw["pairs"][name][name]) for name in names}
    best, fact = min(ratios, key=ratios.get), raw["ours"].get(need.ours)
    mine, theirs = (speed(raw, median(raw["pairs"][best][name])) for name in (need.ours, best))
    limit, times = bound(raw, fact, products), need.times.get(level) if isinstance(need.times, dict) else need.times
    dropped = f"{fact['share_dropped']:.0%} dropped" if need.ours == "80% dropped" and fact else need.ours
    error = raw["errors"][best]
    far = f"; error {error['logits']:.2g}" if max(error["tokens"], error["logits"]) > error["tolerance"] else ""
    return row(f"{title}, {dropped}", f"{mine:.1f} tokens/s", f"{theirs:.1f} ({best}{far})", f"{ratios[best]:.2f}",
               f"{limit:.1f}" if limit else "", f"{times} x the rival" if times else "",
               ratios[best] >= times if times else None)


def pruning(raw):
    """The measured speed-up beside the one that the formula in alone.py predicts."""
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
    rate, best = raw["bytes"] / median(raw["calls"]["1"]), bandwidth_of(raw)
    lines = [row("linear alone, 1 row", f"{rate / 1e9:.1f} GB/s", ratio=f"{rate / best:.2f}",
                 limit=f"{best / 1e9:.1f}")]
    for rows, flops in raw["flops"].items():
        if rows != "1":
            beside_numpy = against_numpy(raw, rows, flops) if f"numpy {rows}" in raw["calls"] else {}
            rate = flops / median(raw["calls"][rows])
            lines.append(row(f"linear alone, {rows} rows", f"{rate / 1e9:.0f} GFLOP/s", **beside_numpy))
    return lines


def against_numpy(raw, rows, flops):
    theirs = raw["calls"][f"numpy {rows}"]
    ratio = times_as_fast(raw["calls"][rows], theirs)
    return {"rival": f"{flops / median(theirs) / 1e9:.0f} (NumPy's OpenBLAS)", "ratio": f"{ratio:.2f}",
            "needed": "1.0 x the rival", "reached": ratio >= 1}


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
    if name in VERSUS:
        return versus(VERSUS[name], raw, results["facts"]["simd"], products_of(results))
    return OTHERS[name](raw)


def table(results, *names):
    return markdown(HEADER, [line for name in names for line in lines(results, name)], left=3)
