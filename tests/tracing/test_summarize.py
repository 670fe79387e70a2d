"""Sums over whole texts, beside a count token by token; and two traces of one text."""

import numpy as np
import pytest
from hypothesis import given
from models import moderate_model
from trace_tools import traced_models

import dcp_ref
from dcp_ref import policies
from dcp_ref.tracing import summary
from dcp_ref.tracing.kinds import KINDS

TEXT = "The old man looked at the sea, and the sea looked back at him. In 1886 Mr. Utterson, the lawyer, had said: no."


def test_a_summary_counts_what_a_reader_would():
    model = dcp_ref.load("tiny")
    traces = [dcp_ref.trace(model, TEXT), dcp_ref.trace(model, "She looked at the sea, the sea, the sea.")]
    found = summary(traces, {"sea": r"\bsea\b"})
    names = ("sea", *KINDS)
    assert (found.traces, found.tokens) == (2, sum(len(trace.ids) for trace in traces))
    seen = set()
    for row in found.rows:
        lives, survive, by = [], 0, []
        for trace in traces:
            kind = [names.index("sea") if "sea" in text else KINDS.index(KINDS[k]) + 1
                    for text, k in zip(trace.texts, trace.kinds, strict=True)]
            for j, k in enumerate(kind):
                if names[k] == row.kind:
                    life = int(trace.lifetime[row.layer, j])
                    lives.append((trace.texts[j], life))
                    survive += j + life == len(kind)
                    by += [names[k] for k in kind[j + life : j + life + 1]]
        numbers = [life for _, life in lives]
        assert (row.tokens, row.dropped) == (len(lives), len(by))
        assert row.lifetime == pytest.approx(np.mean(numbers)) and row.survive == pytest.approx(survive / len(lives))
        assert row.by_dropper == max(map(by.count, by), default=0)
        assert row.dropper is None if not by else by.count(row.dropper) == row.by_dropper
        for one in row.longest:
            of = [life for text, life in lives if text == one.text]
            assert (one.lifetime, one.occurrences) == (pytest.approx(np.mean(of)), len(of))
        seen.add((row.layer, row.kind))
    assert len(seen) == len(found.rows) and {kind for _, kind in seen} >= {"sea", "function word", "punctuation"}
    pairs = [len(trace.ids) * (len(trace.ids) - 1) / 2 for trace in traces]
    np.testing.assert_allclose(found.kept, np.average([trace.share_kept for trace in traces], 0, pairs))
    text = str(found)
    assert "layer 3: " in text and "| sea " in text and max(map(len, text.splitlines())) <= 120


def test_a_kind_that_is_rare_does_not_hide_what_comes_often():
    trace = dcp_ref.trace(dcp_ref.load("tiny"), "the sea " * 20 + "a")
    [row] = [row for row in summary([trace]).rows if (row.layer, row.kind) == (0, "function word")]
    assert all(one.occurrences >= 3 for one in row.longest)


def test_what_cannot_be_summed_up():
    one = dcp_ref.trace(moderate_model(), [1, 2])
    for traces in ([], [one, dcp_ref.trace(moderate_model(n_layer=3), [1, 2])]):
        with pytest.raises(ValueError, match="traces: give at least one, all of models with the same number of layers"):
            summary(traces)
    assert summary([dcp_ref.trace(moderate_model(), [1])]).kept == (1.0, 1.0)


@given(traced_models())
def test_a_difference_is_what_only_one_drops(case):
    m, policy, threshold, ids = case
    a, b = dcp_ref.trace(m, ids, policy, threshold), dcp_ref.trace(m, ids, policies.window(3))
    found = a.compare(b)
    of_a, of_b = ({*zip(*(x.tolist() for x in trace.drops[:3]), strict=True)} for trace in (a, b))
    assert {*map(tuple, found.only_a.tolist())} == of_a - of_b and {*map(tuple, found.only_b.tolist())} == of_b - of_a
    np.testing.assert_array_equal(found.lifetime, b.lifetime - a.lifetime)
    np.testing.assert_array_equal((found.kept_a, found.kept_b), (a.share_kept, b.share_kept))
    same = a.compare(a)
    assert len(same.only_a) == len(same.only_b) == 0 and not same.lifetime.any() and "differ most" not in str(same)
    assert str(found).startswith(f"a: {a.title}\nb: model, policy window:3\n")


def test_traces_that_do_not_compare():
    one = dcp_ref.trace(moderate_model(), [1, 2])
    with pytest.raises(ValueError, match="other: it is a trace of other tokens"):
        one.compare(dcp_ref.trace(moderate_model(), [1, 3]))
    with pytest.raises(ValueError, match="other: its model has 3 layers, and this one's 2"):
        one.compare(dcp_ref.trace(moderate_model(n_layer=3), [1, 2]))
