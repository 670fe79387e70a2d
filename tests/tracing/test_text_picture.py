"""The picture for a terminal: its numbers are the record's, in 80 columns."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcp_ref
from dcp_ref import policies
from dcp_ref.tracing.text_picture import _columns

MODEL = dcp_ref.load("tiny")
TEXT = "The old man looked at the sea, and the sea looked back at him. "


@pytest.mark.parametrize("policy", [None, policies.window(3), policies.dense], ids=str)
def test_the_numbers_are_the_records(policy):
    trace = dcp_ref.trace(MODEL, TEXT * 6, policy)
    text = str(trace)
    assert max(map(len, text.splitlines())) <= 80
    rows = {name: re.findall(rf"^{name} (.*)$", text.split("to the end.")[-1], re.M)
            for name in ("token   ", "layer 0 ", "layer 1 ", "layer 2 ", "layer 3 ")}
    tokens, *layers = (" ".join(found).split() for found in rows.values())
    assert tokens == list(map(str, range(len(trace.ids))))
    left = np.arange(len(trace.ids)) + trace.lifetime
    for layer, found in enumerate(layers):
        assert found == [str(by) if by < len(trace.ids) else "·" for by in left[layer]]


def test_a_long_text_is_cut():
    text = str(dcp_ref.trace(MODEL, TEXT * 20))
    assert text.endswith("tokens more: trace.to_html() shows all") and len(text.splitlines()) < 150


def test_generated_tokens_and_the_threshold_are_named():
    [result] = dcp_ref.generate(MODEL, ["The sea"], 5, threshold=0.5, trace=True)
    assert str(result.trace).startswith("model, policy learned at threshold 0.5: 6 tokens, 4 of them generated\n")
    assert repr(result.trace) == "<Trace of 6 tokens, model, policy learned at threshold 0.5>"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_text_keeps_its_lines(text):
    for line in str(dcp_ref.trace(MODEL, text)).split("\n"):
        assert _columns(line) <= 80 and all(c.isprintable() for c in line)


def test_a_token_wider_than_the_line_is_cut():
    ids = [i for token, i in MODEL.tokenizer.vocabulary.items() if len(token) > 9][:3]
    assert "token" in str(dcp_ref.trace(MODEL, ids))
