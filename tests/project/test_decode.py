"""benchmarks/decode.py: what it asks for, what it writes, and that it runs; how long anything took is not tested."""

import datetime
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dcp_ref
from dcp_ref import native

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
ERROR = {"tokens": 0.0, "logits": 1e-6, "tolerance": 1e-3}
BANDWIDTH = {"before": {"best": 1e10}, "after": {"best": 1e10}}


def imported(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


rows, report, write_up, rivals = (imported(name) for name in ("rows", "report", "write_up", "rivals"))


def raw_of(seconds, errors=None, **fields):
    """A row as decode.py writes it: what ours and each rival took, in one round."""
    pairs = {rival: {"0% dropped": [0.1], "80% dropped": [0.05], "no scores": [0.1], rival: [each]}
             for rival, each in seconds.items()}
    fact = {"kv_bytes": 1e8, "share_dropped": 0.81}
    return {"batch": 8, "prompt": 880, "steps": 6, "weight_bytes": 5e8, "pairs": pairs, "same": list(seconds),
            "ours": {"0% dropped": fact, "80% dropped": fact}, "bandwidth": BANDWIDTH, "seconds": 90.0,
            "errors": {rival: ERROR for rival in seconds} | (errors or {})} | fields


def lines(name, raw, level="avx2", **others):
    return report.lines({"facts": {"simd": level}, "rows": {name: raw} | others}, name)


def test_rows_fit_the_context_and_need_what_is_timed():
    for each in rows.VERSUS.values():
        assert each.prompt + each.steps * (5 * each.repeat + 1) + 2 <= 1024  # 5 rounds, and one that does not count
        assert {need.ours for need in each.needs} <= set(each.ours) <= set(rows.OURS)


def test_each_instruction_set_has_its_bars():
    raw = raw_of({"OpenVINO f32, kv f32": 0.115}, batch=1, steps=0, ours={})
    needed = {level: [line[5:] for line in lines("prompt", raw, level)] for level in ("avx2", "avx512f", "baseline")}
    assert needed["avx2"] == [("1.05 x the rival", "yes"), ("1.2 x the rival", "yes")]
    assert needed["avx512f"] == [("1.2 x the rival", "**no**"), ("1.4 x the rival", "yes")]
    assert needed["baseline"] == [("", ""), ("", "")]


def test_each_need_has_its_rivals():
    """A rival that evicts is faster, but counts only where ours drops; transformers is nobody's rival at batch 8."""
    seconds = {"OpenVINO f32, kv f32": 0.15, "OpenVINO f32, kv f32, evicts all but 192": 0.09, "transformers f32": 0.01,
               "llama.cpp f32, kv f32": 0.2, "llama.cpp f32, kv f32, flash attention": 0.3}
    found = lines("batch8", raw_of(seconds))
    assert [line[0] for line in found] == [f"batch 8, ~900 tokens, {share}% dropped" for share in (0, 81, 81)]
    names = ["OpenVINO f32, kv f32", "OpenVINO f32, kv f32, evicts all but 192", "llama.cpp f32, kv f32"]
    assert [line[2].partition(" (")[2] for line in found] == [f"{name})" for name in names]
    assert [line[3] for line in found] == ["1.50", "1.80", "4.00"]
    assert lines("batch8", raw_of({})) == []


def test_a_rivals_error_is_beside_its_number():
    """It is no reason to leave the rival out, not in the table either."""
    error = {"tokens": 0.208, "logits": 0.136, "tolerance": 0.1}
    raw = raw_of({"ctranslate2 int8": 0.15, "llama.cpp q8_0, kv f16": 0.3}, {"ctranslate2 int8": error})
    [line] = lines("batch1-int8", raw)
    assert line[2].endswith("(ctranslate2 int8; error 0.14)") and line[3] == "1.50"
    said = write_up.everybody({"rows": {"batch1-int8": raw}})[-1]
    assert "ctranslate2 int8 320.0 (0.1)" in said and "llama.cpp q8_0, kv f16 160.0 (1e-06)" in said


def test_the_limit_is_the_longer_of_bytes_and_products():
    raw = raw_of({"OpenVINO f32, kv f32": 0.15})
    by_bytes, by_products = ([line[4] for line in lines("batch8", raw, linear={"calls": {"1": [9.0], "8": [seconds]}})]
                             for seconds in (0.001, 0.1))
    assert by_bytes == [f"{8 / 0.06:.1f}"] * 2 and by_products == ["80.0"] * 2


def test_products_are_beside_numpy():
    raw = {"bytes": 1e9, "bandwidth": BANDWIDTH, "flops": {"1": 1e9, "8": 8e9, "32": 32e9},
           "calls": {"1": [0.1], "8": [0.2], "32": [0.4], "numpy 32": [0.3]}}
    one, eight, many = report.linear(raw)
    assert one[1:5] == ("10.0 GB/s", "", "1.00", "10.0") and eight[1:] == ("40 GFLOP/s", "", "", "", "", "")
    assert many[1:] == ("80 GFLOP/s", "107 (NumPy's OpenBLAS)", "0.75", "", "1.0 x the rival", "**no**")


def test_results_are_resumed_for_two_days_and_by_level(tmp_path):
    today = datetime.date(2026, 3, 1)
    fresh = tmp_path / "2026-03-01-decode-avx2.json"
    assert write_up.file_of(today, "avx2", True, tmp_path) == fresh
    for name in ("2026-02-27-decode-avx2", "2026-02-28-decode-avx512f"):
        (tmp_path / f"{name}.json").touch()
    assert write_up.file_of(today, "avx2", True, tmp_path) == fresh
    assert write_up.file_of(today, "avx512f", True, tmp_path).name == "2026-02-28-decode-avx512f.json"
    assert write_up.file_of(today, "avx512f", False, tmp_path).name == "2026-03-01-decode-avx512f.json"


def test_a_page_gets_the_newest_table_of_each_level(tmp_path):
    for date in ("2026-01-01", "2026-01-02"):
        facts = {"date": date, "cpu": "a processor", "threads": 2, "rounds": 5}
        (tmp_path / f"{date}-decode-avx2.json").write_text(json.dumps({"facts": facts}))
        (tmp_path / f"{date}-decode-avx2.md").write_text(f"heading\n\n| row |\n| --- |\n| {date} |\n\n* more\n")
    page = "a\n<!-- avx2 -->\nold\n<!-- end -->\nb\n<!-- avx512f -->\nkept\n<!-- end -->\nc\n"
    new = write_up.with_tables(page, tmp_path)
    assert new.startswith("a\n<!-- avx2 -->\n2026-01-02, 2 threads of a processor, medians of 5 or more\n")
    assert "-avx2.md)).\n\n| row |\n| --- |\n| 2026-01-02 |\n<!-- end -->\nb\n" in new
    assert new.endswith("\n<!-- avx512f -->\nkept\n<!-- end -->\nc\n")
    assert write_up.with_tables(new, tmp_path) == new


class Guess(rivals.Rival):
    """Computes the reference's logits, plus an error; `calls` says what was asked of it."""

    name, vocabulary = "guess", 11

    def __init__(self, error):
        self.error = error

    def start(self, prompts):
        self.rows = [list(prompt) for prompt in prompts]
        self.take()

    def take(self):
        self.out = np.array([reference_logits(row)[-1] for row in self.rows]) + self.error
        self.last = self.out.argmax(1).tolist()

    def step(self):
        for row, token in zip(self.rows, self.last, strict=True):
            row.append(token)
        self.take()

    def logits(self):
        return self.out


def reference_logits(row):  # [T] -> [T, 11]
    return np.stack([np.random.default_rng(row[: i + 1]).standard_normal(11) for i in range(len(row))])


class Reference:
    def forward(self, tokens, cache, keep):
        found = np.stack([reference_logits(row)[-keep:] for row in tokens])
        return type("Tensor", (), {"numpy": lambda self: found})()


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_an_inexact_rival_is_measured_not_refused(error):
    found = rivals.check(Guess(error), Reference(), [[1, 2, 3], [4, 5, 6]], steps=4)
    assert found["tokens"] == 0 and found["tolerance"] == 1e-3
    assert found["logits"] == pytest.approx(error, rel=0.3, abs=1e-12)


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_a_process_is_busy_and_ends():
    with imported("contest").busy_process() as process:
        assert process.poll() is None
    assert process.poll() is not None


@pytest.fixture
def run(tmp_path):
    """Runs it on a tiny model; rivals that are not installed are left out."""
    environment = os.environ | {"PYTHONPATH": str(Path(dcp_ref.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, BENCHMARKS / "decode.py", "--tiny", "--rounds", "1", "--out", tmp_path / "x" / "t.json"]
    return lambda *words: subprocess.run([*command, *words], capture_output=True, text=True, check=True,
                                         env=environment)


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_it_runs_and_resumes(run, tmp_path):
    done = run("bytes", "rss")
    assert "cache bytes, batch 32" in done.stdout and "peak RSS" in done.stdout
    first = (tmp_path / "x" / "t.json").read_text()
    results = json.loads(first)
    assert set(results["rows"]) == {"bytes", "rss"} and results["facts"]["simd"] == native.simd_level()
    assert all(raw["seconds"] > 0 for raw in results["rows"].values())
    written = (tmp_path / "x" / "t.md").read_text()
    assert "peak RSS" in written and "Minutes: 0 in all; bytes 0." in written
    run("bytes", "rss", "--resume")
    assert (tmp_path / "x" / "t.json").read_text() == first
    with pytest.raises(subprocess.CalledProcessError):
        run("no-such-row")


def test_openvino_gives_a_token_a_step_and_takes_turns():
    """After a new start nothing is left of the old sequences, evicting or not, in all storage types."""
    pytest.importorskip("openvino_genai")
    OpenVINO = imported("rival_openvino").OpenVINO
    weights = rivals.random_weights(2, 128, 1000, 256)
    prompts = np.random.default_rng(1).integers(0, 1000, size=(3, 70)).tolist()
    reference = rivals.Transformers(weights, 2, 3, 128)
    for options in ({}, {"keep": 128}, {"weight_type": "int8"}, {"weight_type": "int8", "kv": "f16"}):
        rival = OpenVINO(weights, 2, 3, 128, **options)
        rival.start(prompts[::-1])
        rival.step()
        found = rivals.check(rival, reference, prompts)
        assert len(rival.last) == 3 and max(found["tokens"], found["logits"]) < found["tolerance"], options
        rival.close()


def test_openvino_evicts():
    """A context of 200 with room for 128 tokens: logits change, and its cache is as large as it says."""
    pytest.importorskip("openvino_genai")
    OpenVINO = imported("rival_openvino").OpenVINO
    weights = rivals.random_weights(2, 128, 1000, 256)
    prompts = np.random.default_rng(1).integers(0, 1000, size=(2, 200)).tolist()
    rival = OpenVINO(weights, 2, 2, 240, keep=128)
    rival.start(prompts)
    for _ in range(20):
        rival.step()
    pages = rival.pipe.get_metrics().cache_usage / 100 * rival.pages
    assert round(pages) == pytest.approx(pages, abs=0.01) and round(pages) == 2 * 128 // 32 + 2
    rival.close()
