"""What a job costs: memory that the input's length does not change, and the time of `evaluate`. They take minutes."""

import json
import os
import time

import numpy as np
import pytest
from corpus_tools import LONG, contents, corpus, parts_of, process

from dcp_ref import Engine, load
from dcp_ref.analysis import perplexity, texts
from dcp_ref.corpus import Scorer
from dcp_ref.corpus.reading import documents, read_parts

pytestmark = pytest.mark.skipif(not LONG, reason="takes minutes: make ray")
MEGABYTE = 1 << 20


def streamed(megabytes, out):
    """Peak memory in bytes and the results' rows of a job whose rows are made on the fly; one in 500 is scored."""
    long = json.dumps({"id": 1, "body": "The sea. " * 220}).encode() + b"\n"
    good = json.dumps({"id": 2, "text": "The old man looked at the sea."}).encode() + b"\n"
    block, n = long * 499 + good, 0
    with process("score", "--input", "-", "--out", out, stdin=-1) as run:
        while n < megabytes * MEGABYTE:
            run.stdin.write(block)
            n += len(block)
        run.stdin.close()
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 3, run.stderr.read()
    rows = sum(file.read_bytes().count(b"\n") for file in parts_of(out))
    assert rows == n // len(block) * 500
    return usage.ru_maxrss * 1024, rows


def test_a_gigabyte_is_streamed(tmp_path):
    short, _ = streamed(40, tmp_path / "short")
    long, rows = streamed(1024, tmp_path / "long")
    print(f"peak memory: {short / MEGABYTE:.0f} MB for 40 MB, {long / MEGABYTE:.0f} MB for 1 GB, {rows} rows")
    assert long < short + 30 * MEGABYTE
    assert json.loads(contents(tmp_path / "long")["manifest.json"])["complete"]["rows"] == rows


def test_a_corpus_is_scored_as_fast_as_one_text_is_measured(tmp_path):
    """Documents of very different lengths against one text of all of them, by turns."""
    (tmp_path / "rows").write_bytes(b"\n".join(corpus(1500, seed=3, most=150)))
    [part] = read_parts([str(tmp_path / "rows")], "id", "text", 10**6)
    found = [one.text for one in documents(part, "id", "text") if not one.error]
    found = [text for text in found if text.isprintable() and text]  # no half characters
    model, scorer, seconds = load("tiny"), Scorer("tiny"), {"evaluate": [], "score": []}
    engine, tokens = Engine(model), texts.tokens_of(model, found)
    for _ in range(3):
        began = time.perf_counter()
        evaluated = perplexity.evaluate(engine, texts.tokens_of(model, found)).tokens.sum()
        seconds["evaluate"].append((time.perf_counter() - began) / evaluated)
        began = time.perf_counter()
        scored = scorer({"id": np.arange(len(found)), "text": found})["tokens"].sum()
        seconds["score"].append((time.perf_counter() - began) / scored)
    evaluate, score = (1 / min(seconds[name]) for name in ("evaluate", "score"))
    print(f"{len(tokens)} tokens in {len(found)} rows: evaluate {evaluate:.0f} tokens/s, score {score:.0f} tokens/s")
    assert score > 0.9 * evaluate
