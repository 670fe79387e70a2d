"""Whether memory comes back: the same history three times in one cache, everything released after each."""

from collections import Counter

import numpy as np

from dcp_ref.testing.cases import STEP, Case, calls
from dcp_ref.testing.check_list import Check
from dcp_ref.testing.drawing import draw
from dcp_ref.testing.running import Author, Walk


def check(author: Author, check: Check, examples: int, seed: int) -> tuple[str, Counter]:
    """What is wrong with bytes_owned, "" where nothing is; and counts."""
    rng, counts = np.random.default_rng(seed), Counter[str]()
    for _ in range(examples):
        case = draw(lambda low, high: int(rng.integers(low, high + 1)), check.name, check.focus, author.supports,
                    author.page)
        owned = _owned(author, case)
        counts += Counter(examples=1, steps=3 * sum(call.kind == STEP for call in calls(case)))
        if owned[2] > owned[0]:
            return (f"bytes_owned after a history, with all sequences released: {owned[0]:,}; after the same history "
                    f"twice more in this cache: {owned[2]:,}"), counts
    return "", counts


def _owned(author: Author, case: Case) -> list[int]:
    walk, owned = Walk(author, case), list[int]()
    for _ in range(3):
        for call in calls(case):
            walk.call(call)
        for handle in walk.handles.values():
            walk.cache.release(handle)
        walk.handles.clear()
        owned.append(int(walk.cache.bytes_owned()))
    return owned
