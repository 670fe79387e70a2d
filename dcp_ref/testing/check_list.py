"""The list of checks: what each one's cases look like, and which points of docs/specification.md it stands for.

They are in an order in which the first that fails names the fault: each rests on those before it.
"""

from typing import Any, NamedTuple

from dcp_ref.testing.cases import Focus


class Check(NamedTuple):
    """One check. `needs`: what a cache must support, or it is left out. `share` of the examples is what it gets."""

    name: str
    level: int
    points: str
    fault: str  # what is wrong with a cache that this one refuses, most likely
    focus: Focus = Focus()
    needs: tuple[str, ...] = ("decode",)
    share: float = 0.25  # 0: FEWEST, as each is long
    must: tuple[str, ...] = ("drops",)  # counts that must not be 0: else the check showed nothing


FEWEST, LEAST = 3, 20  # examples of a check
ALL = ("drops", "reused slots", "pages crossed")
_MANY: dict[str, Any] = {"calls": 10, "sequences": 3, "rows": 4}
CHECKS = [
    Check("alpha_sigmoid", 0, "22", "the gate is not the alpha-sigmoid", needs=(), must=()),
    Check("mask", 1, "4, 5, 6, 7, 8", "the mask is not what the scores say", needs=(), must=()),
    Check("self_stays", 2, "7", "a token is judged by its own score: it must never drop itself", Focus("own"), must=()),
    Check("positions", 2, "10", "positions are renumbered after a drop: they are absolute", Focus("low")),
    Check("scores", 2, "4, 8", "s is not q_int . k_int / sqrt(r) + beta, or something else than s decides",
          share=0.5),
    Check("ties_drop", 2, "5", "the comparison is >= where it must be >: a score that equals the threshold drops",
          Focus("ties")),
    Check("nan_drops", 2, "5", "a score that is no finite number decides wrongly: NaN and -inf drop (so write s > "
          "threshold, not `not s <= threshold`), +inf stays", Focus("special")),
    Check("delay", 2, "6", "int_delay is off by one: token i may drop token j only where i - j > int_delay",
          Focus(delay=True), ("decode", "int_delay")),
    Check("softmax", 2, "9, 18", "attention is wrong before anything was dropped: scale, heads, empty slots, or a "
          "softmax that does not take the maximum off before exp", Focus("high", outputs="all", large=True), must=()),
    Check("slots_reused", 2, "9, 18", "a slot, or a moved token, has keys and values that do not belong together",
          Focus("alternate", outputs="quiet", calls=14), share=1.0, must=ALL[:2]),
    Check("attention", 2, "3, 9", "a token attends to one that it has just dropped",
          Focus(outputs="all")),
    Check("real_scores", 2, "4, 21", "scores are less exact than float arithmetic of the declared type",
          Focus("real", outputs="all")),
    Check("pages", 3, "18", "a page that was given back, or a new page, is not empty",
          Focus(outputs="all", calls=14, long=True, pages=3), share=1.0, must=ALL),
    Check("prompts", 3, "13", "several tokens in one step differ from the same tokens one by one",
          Focus("ties", outputs="all", rows=5, pages=3), ("decode", "prompts")),
    Check("layers", 3, "2, 8", "a layer decides by another layer's beta, scores or tokens",
          Focus(outputs="all", layers=3, calls=8)),
    Check("ragged", 3, "14", "rows of one sequence reach another: a step's rows are those of its sequences in order",
          Focus(outputs="all", **_MANY), ("decode", "ragged"), share=0.5),
    Check("release", 3, "17", "a sequence inherits from one that was released: its length, its tokens or its slots",
          Focus(outputs="all", release=True, **_MANY), ("decode", "release")),
    Check("fork", 3, "16", "a fork and its parent share what one of them writes",
          Focus(outputs="all", fork=True, release=True, **_MANY), ("decode", "fork"), share=1.0),
    Check("save", 3, "23", "what is restored is not what was saved, or shares what one of the two writes",
          Focus(outputs="all", saved=True, release=True, **_MANY), ("decode", "save")),
    Check("depth", 3, "3, 15", "what one layer drops is not handed on to the next",
          Focus(outputs="all", layers=3, depth=True, **_MANY), ("decode", "propagate_in_depth")),
    Check("float16", 3, "19", "keys and values in float16 are not rounded to nearest, or k_int is rounded too",
          Focus(outputs="all", kv="float16", rows=4, large=True), ("decode", "float16")),
    Check("int8", 3, "19", "keys and values in int8 have other scales than max |x| / 127 of a token's head (0 where "
          "all are 0), or k_int is rounded too",
          Focus(outputs="all", kv="int8", rows=4, large=True), ("decode", "int8")),
    Check("budget", 3, "25", "more judged tokens stay than the budget, or not those with the highest scores (the later "
          "of equals)",
          Focus("ties", outputs="all", delay=True, budget=True, long=True, **_MANY), ("decode", "budget")),
    Check("pins", 3, "24", "a pinned token was dropped, or is counted by the rule that leaves it out",
          Focus("ties", outputs="all", layers=2, depth=True, delay=True, pins=True, budget=True, long=True, **_MANY),
          ("decode", "pins"), share=0.5),
    Check("long", 3, "10, 21", "a long history goes wrong: too few bits for positions, or attention gets less exact",
          Focus(outputs="all", many=280, calls=8, rows=300), share=0.0),
    Check("histories", 3, "1 to 25", "what no simpler check shows: something in how calls follow each other",
          Focus("ties", outputs="all", calls=16, layers=2, sequences=4, rows=5, delay=True, depth=True,
                fork=True, release=True, saved=True, pins=True, budget=True, long=True,
                pages=3), share=1.0, must=ALL),
    Check("memory", 3, "20", "memory is not given back: bytes_owned grows though all sequences were released",
          Focus(layers=2, fork=True, release=True, long=True, pages=3, **_MANY),
          ("decode", "release"), must=()),
    Check("tiny", 4, "22", "with the shipped model, logits or live tokens differ from the dense forward's"),
]
BY_NAME = {check.name: check for check in CHECKS}
