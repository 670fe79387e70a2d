"""A sweep's points are the evaluations that it says they are."""

import dataclasses

import numpy as np
import pytest
from models import moderate_model
from test_perplexity import MODEL, TOKENS

from dcp_ref import Engine, policies
from dcp_ref.analysis import calibration, sweep
from dcp_ref.analysis.perplexity import evaluate, rows_at
from dcp_ref.analysis.sweep import Sweep

OTHER = moderate_model(seed=1)
PLAIN = moderate_model(int_n_embd=None)
MODELS = {"one": MODEL, "two": OTHER, "plain": PLAIN}


def test_every_point():
    plan = Sweep(("one", MODEL), [("two", OTHER)], ("plain", PLAIN), thresholds=(1.5, -0.5))
    points = sweep.measure(plan, TOKENS, 400, 40, 30)
    assert [(p.rule, p.model, p.threshold) for p in points[:5]] == [
        ("dense", "plain", 0), ("learned", "one", -0.5), ("learned", "one", 0), ("learned", "one", 1.5),
        ("learned, by model", "two", 0)]
    assert {p.rule for p in points[5:]} == {"window", "strided", "sinks", "heavy_hitters"}
    assert all(p.model == "plain" for p in points[5:]) and len(points) == 5 + 16
    for p in points:
        engine = Engine(MODELS[p.model], policy=policies.parse(p.policy), threshold=p.threshold)
        found = evaluate(engine, TOKENS, 40, 30)
        assert (p.share_kept, p.nats_per_token) == (found.share_kept, pytest.approx(found.nats_per_token))
        assert p.bits_per_byte == pytest.approx(found.bits_per_byte(400))
    assert points[0].share_kept == 1 and points[1].share_kept > points[2].share_kept > points[3].share_kept


def test_thresholds_are_looked_for():
    runs = sweep.runs(Sweep(("one", MODEL), [], ("one", MODEL)), TOKENS, 100, 100)
    found = [run.threshold for run in runs if run.rule == "learned"]
    assert len(found) == len(sweep.LEARNED_SHARES) + 1 and 0.0 in found and found == sorted(found)
    kept = [evaluate(Engine(MODEL, threshold=t), TOKENS, 100).share_kept for t in found]
    assert kept[0] == 1 and kept == sorted(kept, reverse=True) and kept[-1] < 0.02


def test_each_rule_is_split_as_is_best_on_the_first_windows(monkeypatch):
    monkeypatch.setattr(sweep, "SPLIT_WINDOWS", 2)
    runs = sweep.runs(Sweep(None, [], ("plain", PLAIN)), TOKENS, 40, 40)
    rows = rows_at(len(TOKENS), 40, 40)
    for rule in ("strided", "sinks", "heavy_hitters"):
        [chosen] = {run.policy for run in runs if run.rule == rule} & set(made := calibration.sized(rule, 0.5, rows))
        found = {policy: evaluate(Engine(PLAIN, policy=policy), TOKENS[:81], 40).perplexity for policy in made}
        assert len(found) == 5 and found[chosen] == min(found.values()) < max(found.values())


def test_models_alone():
    runs = sweep.runs(Sweep(None, [("one", MODEL), ("two", OTHER)], ("one", MODEL)), TOKENS, 40, 40)
    found = [(run.name, run.policy.name) for run in runs[:3]]
    assert found == [("one", "dense"), ("one", "learned"), ("two", "learned")]


def test_a_short_text():
    runs = sweep.runs(Sweep(("one", MODEL), [], ("one", MODEL), (0,)), TOKENS[:3], 128, 128)
    assert len({(run.rule, run.policy) for run in runs}) == len(runs)
    sweep.measure(Sweep(("one", MODEL), [], ("one", MODEL)), TOKENS[:4], 0)


def test_the_table():
    points = [sweep.Point("dense", "m", "dense", 0.0, 1.0, 30.25, 3.4, None),
              sweep.Point("learned", "m", "learned", 0.5, 0.0312, 31.5, 3.45, 1.25),
              sweep.Point("learned", "m", "learned", 0.0, 0.2, 31.0, 3.43, 1.24)]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in sweep.report(points).splitlines()]
    assert lines[0] == ["rule", "model", "policy, or threshold", "kept", "perplexity", "bits a byte"]
    assert lines[2:] == [["dense", "m", "dense", "100.0%", "30.25", ""],
                         ["learned", "m", "0", "20.0%", "31.00", "1.2400"],
                         ["learned", "m", "0.5", "3.12%", "31.50", "1.2500"]]
    assert len({len(line) for line in sweep.report(points).splitlines()}) == 1


def test_refusals():
    with pytest.raises(ValueError, match="plain has no interaction weights, so no learned rule to sweep"):
        sweep.measure(Sweep(("plain", PLAIN), [], ("one", MODEL)), TOKENS, 9)
    short = dataclasses.replace(MODEL.config, n_positions=30)
    params = {name: np.array(x[:30] if name == "wpe.weight" else x) for name, x in MODEL.params.items()}
    with pytest.raises(ValueError, match="context is 128, but short has 30 positions: give a smaller --context"):
        sweep.measure(Sweep(None, [("short", MODEL._replace(config=short, params=params))], ("one", MODEL)), TOKENS, 9)
