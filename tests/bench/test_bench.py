"""`dcp-ref bench`: what is timed is what it says; how long it took is not tested."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from cli_tools import assert_refused, call

from dcp_ref import Config, Engine, native, policies
from dcp_ref.bench.decoding import Decoding, Point, calibrated, random_model, random_prompt
from dcp_ref.bench.parts import Attention, Linears, kv_bytes, packed, peak_rss
from dcp_ref.bench.sweep_summary import break_even, pays_from, scoring_share
from dcp_ref.bench.timing import interleaved
from dcp_ref.cli import bench

CONFIG = Config(vocab_size=97, n_positions=160, n_embd=32, n_layer=3, n_head=2, int_n_embd=16, eos_token_id=None)
MODEL = random_model(CONFIG)
built = pytest.mark.skipif(not native.available(), reason="the C extension is not built")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.9, 0.999])
def test_calibration_drops_that_share_of_its_own_prompt(share):
    decoding = Decoding(calibrated(MODEL, share, 128, seed=3), 2, 128, seed=3)
    assert decoding.share_dropped == pytest.approx(share, abs=1 / 128)
    assert decoding.cache_bytes == decoding.engine.stats().bytes_owned > 0


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_calibration_drops_about_that_share_of_other_prompts_early(share):
    engine = Engine(calibrated(MODEL, share, 128))
    live = np.zeros(128)
    for seed in range(1, 7):
        sequence = engine.new_sequence()
        for i, token in enumerate(random_prompt(CONFIG, 128, seed)):
            engine.feed([sequence], [[token]])
            live[i] += engine.stats().live_tokens / CONFIG.n_layer / 6
        engine.release(sequence)
    assert live[-1] / 128 == pytest.approx(1 - share, abs=0.05)
    assert live[: 64].max() > 0.5 * (1 - share) * 128
    assert live.max() < 1.5 * (1 - share) * 128 + 4


def test_calibration_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="share_dropped must be in"):
        calibrated(MODEL, 1.0, 16)
    with pytest.raises(ValueError, match="interaction weights"):
        calibrated(MODEL._replace(config=dataclasses.replace(CONFIG, int_delay=1)), 0.5, 16)
    with pytest.raises(ValueError, match="interaction weights"):
        calibrated(random_model(Config(vocab_size=9, n_positions=9, n_embd=8, n_layer=1, n_head=1)), 0.5, 8)


def test_steps_feed_every_sequence():
    decoding = Decoding(MODEL, 3, 16, policy=policies.dense)
    decoding.steps(4)()
    assert decoding.share_dropped == 0 and decoding.seen == 20
    assert decoding.engine.stats().live_tokens == 3 * 20 * CONFIG.n_layer


def test_one_round_is_enough():
    """quantiles of a single call are that call."""
    timing = interleaved({"nothing": lambda: None}, rounds=1, pause=0)["nothing"]
    assert len(timing.calls) == 1 and timing.low == timing.median == timing.high == timing.calls[0]


@built
def test_the_parts_count_what_they_read():
    linears = Linears(packed(MODEL), 5)
    linears.step()
    matrices = 3 * 12 * 32 * 32 + 32 * 97
    assert linears.flops == 2 * 5 * matrices
    assert linears.bytes_read == 4 * (matrices - 32 * 97 + 32 * 128)  # whole panels
    attention = Attention(CONFIG, 2, 16, 3)
    attention.step()
    assert attention.bytes_read == kv_bytes(CONFIG, 2 * 18) == 3 * 2 * 18 * 2 * 32 * 4
    assert attention.cache.stats().live_tokens == 3 * 2 * 17


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_rss():
    assert 10e6 < peak_rss(MODEL, 16) < 1e9


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "random_model", lambda: MODEL)
    monkeypatch.setattr(bench, "QUICK_CONTEXTS", (16, 64))


def test_json(capsys, small):
    code, out, _ = call(capsys, "bench", "--quick", "--json", "--batch", "2", "--threads", "1", "--kv", "float16")
    result = json.loads(out)
    assert code == 0 and result["facts"]["kv"] == "float16" and result["facts"]["batch"] == 2
    assert [(p["context"], p["rule"], p["share_wanted"]) for p in result["points"]] == [
        (context, *column) for context in (16, 64) for column in (("dense", 0), ("learned", 0), ("learned", 0.8))]
    assert all(p["tokens_per_second"] > 0 and p["cache_bytes"] > 0 for p in result["points"])
    assert set(result["scoring_share"]) == {"16", "64"}
    assert set(result["pays_from"]) == {"80%"} and set(result["pays_from"]["80%"]) == {"learned", "dense"}
    assert all(rate > 0 for rate in result["parts"].values())


def test_the_table_and_the_files(capsys, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = call(capsys, "bench", "--quick", "--out", str(tmp_path / "a" / "b"))
    tables = [line.split(" | ") for line in out.splitlines() if line.startswith("|")]
    assert code == 0 and len(tables) == 3 * 4 and {len(row) for row in tables} == {4}
    assert tables[0] == ["| tokens/s at", "no scores", "0% dropped", "80% dropped |"]
    assert "Scoring, while nothing is dropped, takes " in out and "A step with 80% dropped is faster " in out
    assert "no plot: matplotlib cannot be imported (" in err and '): pip install "dcp-ref[plot]"' in err
    assert (tmp_path / "a" / "b" / "bench.md").read_text(encoding="utf-8") == out
    assert bench.report(json.loads((tmp_path / "a" / "b" / "bench.json").read_text())) + "\n" == out


def test_refusals(capsys, small, tmp_path):
    assert_refused(call(capsys, "bench", "--batch", "0"), "--batch must be 1 or more")
    assert_refused(call(capsys, "bench", "--quick", "--threads", "0"), "threads must be a positive integer")
    (tmp_path / "file").touch()
    assert_refused(call(capsys, "bench", "--out", str(tmp_path / "file")), "file", code=1)


def test_where_pruning_pays():
    def points(*seconds):
        rules = (("dense", 0.0), ("learned", 0.0), ("learned", 0.8))
        return [Point(context, rule, share, share, s, 1 / s, 1, 1.0)
                for context, *row in seconds for (rule, share), s in zip(rules, row, strict=True)]

    found = points((1, 8, 10, 7), (2, 8, 10, 9), (3, 8, 10, 7))
    assert pays_from(found) == {"80%": {"learned": 1, "dense": 3}}
    assert break_even({"50%": {"learned": 64, "dense": None}, "80%": {"learned": 64, "dense": 256}}) == (
        "On this machine pruning pays at no length measured with 50% dropped, from 256 tokens on with 80% dropped.")
    assert pays_from(points((1, 8, 10, 7), (2, 8, 10, 11))) == {"80%": {"learned": None, "dense": None}}
    assert scoring_share(found, 2) == pytest.approx(0.2)
