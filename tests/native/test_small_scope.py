"""All of a small scope, through C beside a list: every subset dropped at every step, forks and releases at every point.

A state is what decides the future: how many tokens a sequence has seen, and which slot each live one is in. States that
histories share are visited once; from each, every subset of its live tokens is dropped by the next token.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from cache_tools import poison
from tolerances import CACHE_ATTENTION

from dcp_ref import native
from dcp_ref.config import Config
from dcp_ref.native.cache import NativeCache
from dcp_ref.runtime.live_tokens import attend

ONE, TWO = 6, 4  # tokens of a single sequence, of each of two
STATES = {1: (170, 484), 2: (188, 484), 3: (182, 529)}  # by slots in a page: of one sequence, of two
CONFIG = Config(vocab_size=1, n_positions=8, n_embd=4, n_layer=1, n_head=1, int_n_embd=16)
Q, K, V = np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)
K_INT = np.eye(8, 16, dtype=np.float32)
EXPECTED: dict[tuple[int, ...], np.ndarray] = {}  # attention of the last of these positions to all of them

pytestmark = pytest.mark.skipif(not native.available(), reason="the C extension is not built")


def subsets(positions):
    return itertools.chain.from_iterable(itertools.combinations(positions, n) for n in range(len(positions) + 1))


def feed(cache, steps):
    """One step: for each (handle, token i, positions that leave). Their scores are -1/4, all others 1/4."""
    rows = [i for _, i, _ in steps]
    q_int = np.ones((len(steps), 16), np.float32)
    for row, (_, _, gone) in enumerate(steps):
        q_int[row, list(gone)] = -1
    batch = cache.reserve([handle for handle, _, _ in steps], [1] * len(steps))
    return cache.step(0, batch, Q[rows], K[rows], V[rows], q_int, K_INT[rows])


def fed(cache, handle, history):
    for i, gone in enumerate(history):
        feed(cache, [(handle, i, gone)])
    return handle


def after(history):
    """The live positions: the list that C must equal."""
    live = ()
    for i, gone in enumerate(history):
        live = (*(j for j in live if j not in gone), i)
    return live


def attention(live):
    if live not in EXPECTED:
        j = list(live)
        EXPECTED[live] = attend(Q[live[-1]], K[j], V[j], 1, CONFIG.attention_scale(0))[0]
    return EXPECTED[live]


def check(cache, handle, history, out=None):
    """Live tokens, attention, and no more slots than the live tokens and a page. Returns the state."""
    live, table = after(history), cache.slot_table(handle, 0)
    assert sorted(table[table >= 0]) == list(live) and table.size < len(live) + cache.page_slots
    if out is not None:
        np.testing.assert_allclose(out, attention(live), **CACHE_ATTENTION)
    return len(history), table.tobytes()


def single_states(page_slots, tokens, visit):
    """One history for each state of up to this number of tokens; `visit` makes each step, and returns its state."""
    cache = NativeCache(CONFIG, page_slots)
    found, frontier = {(0, b""): ()}, [()]
    while frontier:
        histories, frontier = frontier, []
        for history in histories:
            for gone in subsets(after(history)) if len(history) < tokens else ():
                longer = (*history, gone)
                state = visit(cache, longer)
                if state not in found:
                    found[state] = longer
                    frontier.append(longer)
    assert cache.stats().slots == 0
    return found


def every_way(cache, history):
    """The last step of a history: of a sequence alone, of a fork, of a parent with a fork, and after its release."""
    *before, gone = history
    i = len(before)
    alone = fed(cache, cache.new_sequence(), before)
    child, other = cache.fork(alone), cache.fork(alone)
    for handle in (child, alone):  # `other` shares its pages with both, and must not change
        out, _ = feed(cache, [(handle, i, gone)])
        state = check(cache, handle, history, out[0])
        check(cache, other, before)
    cache.release(alone)
    cache.release(child)
    out, dropped = feed(cache, [(other, i, gone)])  # now it owns its pages
    assert dropped.tolist() == [[0, j] for j in gone]
    assert check(cache, other, history, out[0]) == state
    poison(cache)
    out, _ = feed(cache, [(other, i + 1, ())])
    check(cache, other, (*history, ()), out[0])
    cache.release(other)
    return state


@pytest.mark.parametrize("page_slots", STATES)
def test_one_sequence(page_slots):
    assert len(single_states(page_slots, ONE, every_way)) == STATES[page_slots][0]


def plain(cache, history):
    handle = fed(cache, cache.new_sequence(), history)
    state = check(cache, handle, history)
    cache.release(handle)
    return state


@pytest.mark.parametrize("page_slots", STATES)
def test_two_sequences(page_slots):
    """Each pair of states; then one more token for both in one step, and each subset dropped of each."""
    histories = list(single_states(page_slots, TWO, plain).values())
    cache = NativeCache(CONFIG, page_slots)
    for a, b in itertools.product(histories, histories):
        first, second = fed(cache, cache.new_sequence(), a), fed(cache, cache.new_sequence(), b)
        for gone in itertools.product(subsets(after(a)), subsets(after(b))):
            pair = [cache.fork(first), cache.fork(second)]
            out, _ = feed(cache, [(pair[0], len(a), gone[0]), (pair[1], len(b), gone[1])])
            for n, before in enumerate((a, b)):
                check(cache, pair[n], (*before, gone[n]), out[n])
                cache.release(pair[n])
        check(cache, first, a)
        check(cache, second, b)
        cache.release(first)
        cache.release(second)
    assert cache.stats().slots == 0
    assert len(histories) ** 2 == STATES[page_slots][1]


def test_the_readme_counts_them():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for n in range(2):
        first, second, third = (counts[n] for counts in STATES.values())
        assert re.search(f"{first}, {second} and {third}[ ,]", text)
