"""What `stats` counts: drops by layer and reason, as traces do; and the most bytes that were owned."""

from collections import Counter

import numpy as np
import pytest
from models import moderate_model
from theorem_tools import BACKENDS

from dcp_ref import Engine, policies, trace
from dcp_ref.runtime.stats import REASONS, Stats
from dcp_ref.tracing import REASONS as TRACED

MODEL = moderate_model()
DEEP = moderate_model(propagate_in_depth=True, n_layer=3)
TEXT = np.random.default_rng(1).integers(0, 300, 120).tolist()
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def odd(i, positions, scores, attention):
    return i - positions > np.where(positions % 2, 30, 10)


RULES = [policies.dense, policies.learned, policies.budget(12), policies.sinks(2, 20), policies.heavy_hitters(5, 20),
         policies.Policy("both", learned=True, window=40), policies.Policy("all", learned=True, window=30, heavy=4),
         policies.rule("odd", odd)]


def traced(model, backend, policy, ids):
    """For each layer, how often each reason stands in a trace."""
    drops = trace(model, ids, backend=backend, policy=policy).drops
    found = [Counter() for _ in range(model.config.n_layer)]
    for layer, reason in zip(drops.layer.tolist(), drops.reason.tolist(), strict=True):
        found[layer][TRACED[reason]] += 1
    return found


@each_backend
@pytest.mark.parametrize("policy", RULES, ids=str)
@pytest.mark.parametrize("model", [MODEL, DEEP], ids=["alone", "in depth"])
def test_drops_are_counted_by_layer_and_reason(backend, policy, model):
    """Of two sequences, in one batch and after one is released."""
    engine, texts = Engine(model, backend, policy=policy), [TEXT, TEXT[40:100]]
    handles = [engine.new_sequence() for _ in texts]
    engine.feed(handles, [text[:50] for text in texts])
    for n in range(50, 60):
        engine.feed(handles, [text[n : n + 1] for text in texts])
    engine.release(handles[1])
    engine.feed(handles[:1], [TEXT[60:]])
    expected = [a + b for a, b in zip(*(traced(model, backend, policy, text) for text in texts), strict=True)]
    assert [dict(layer) for layer in expected] == list(engine.stats().dropped)
    assert policy.name == "dense" or all(engine.stats().dropped)
    if model is DEEP and policy is policies.learned:
        assert all("inherited" in layer for layer in engine.stats().dropped[1:])


def test_reasons_are_those_of_traces():
    assert REASONS is TRACED


@pytest.mark.skipif("native" not in BACKENDS, reason="the C extension is not built")
def test_reasons_are_those_of_c():
    from dcp_ref.native.extension import lib

    numbers = [getattr(lib, f"DCP_{name.upper()}") for name in REASONS[:-1]]  # C has no rule of one's own
    assert numbers == list(range(lib.DCP_REASONS))


@each_backend
def test_a_new_engine_has_dropped_nothing(backend):
    assert Engine(MODEL, backend).stats()[:7] == Stats(0, 0, 0, 0)[:7]
    assert Engine(MODEL, backend).stats().dropped == ({}, {})


@each_backend
def test_the_peak_stays(backend):
    engine = Engine(MODEL, backend, policy=policies.dense)
    sequence = engine.new_sequence()
    engine.feed([sequence], [TEXT])
    peak = engine.stats().bytes_owned
    engine.release(sequence)
    engine.trim()
    assert engine.stats().bytes_owned == 0 and engine.stats().bytes_peak == peak > 0
