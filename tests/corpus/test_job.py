"""One result, byte for byte: whatever the batch, shards, workers, restarts and kills."""

import contextlib
import json
import random
import signal
import time
from pathlib import Path

import pytest
from corpus_tools import LONG, contents, corpus, ended, killed_after, parts_of, process, rows_of, saved_model, write
from text_models import text_model

from dcp_ref import native
from dcp_ref.checkpoints import replacing
from dcp_ref.corpus import Continuer, Scorer, job, manifest, part_files
from dcp_ref.corpus.job import Job

pytestmark = pytest.mark.skipif(not native.available(), reason="the C extension is not built")
DOCUMENTS, PART_ROWS = (2000, 100) if LONG else (120, 10)
KILLS = 50 if LONG else 3
GENERATE = {"max_new_tokens": 8, "temperature": 0.8}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"), text_model())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rows") / "corpus.jsonl", corpus(DOCUMENTS))


@pytest.fixture(scope="module")
def scores(model, rows, tmp_path_factory):
    """The directory of an unbroken run in one process."""
    out = tmp_path_factory.mktemp("scores")
    totals = job.run(described(rows, out), Scorer(model))
    assert totals.rows == DOCUMENTS and totals.made == DOCUMENTS // PART_ROWS and totals.kept == 0
    return out


def described(rows, out, **more):
    return Job((rows,), out, "1", **{"part_rows": PART_ROWS} | more)


def test_every_row_comes_back_once_in_its_order(scores, rows):
    found = [json.loads(line) for part in parts_of(scores) for line in part.read_bytes().splitlines()]
    lines = [line for line in Path(rows).read_bytes().splitlines() if line]
    assert len(found) == len(lines) == DOCUMENTS
    good = 0
    for line, row in zip(lines, found, strict=True):
        assert list(row) == ["id", *Scorer.columns]
        with contextlib.suppress(ValueError, AttributeError):
            fields = json.loads(line.decode())
            if isinstance(fields.get("text"), str) and isinstance(fields.get("id"), (str, int)):
                assert row["id"] is None or row["id"] == fields["id"]
        good += not row["error"]
        assert (row["log_probability"] is None) == bool(row["error"])
    assert DOCUMENTS * 0.9 < good < DOCUMENTS
    done = manifest.read(scores)
    assert done["complete"] == {"parts": DOCUMENTS // PART_ROWS, "rows": DOCUMENTS}
    assert not [file for file in scores.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("more", [{"batch": 1}, {"batch": 5}, {"threads": 1}])
def test_batches_and_threads_change_no_byte(model, rows, scores, tmp_path, more):
    job.run(described(rows, tmp_path), Scorer(model, **more))
    assert contents(tmp_path) == contents(scores)


def test_shards_in_one_directory_or_in_three(model, rows, scores, tmp_path):
    scorer, together = Scorer(model), tmp_path / "together"
    totals = [job.run(described(rows, out, shard=(i, 3)), scorer)
              for i in (3, 1, 2) for out in (together, tmp_path / str(i))]
    assert contents(together) == contents(scores)
    apart = {name: data for i in (1, 2, 3) for name, data in contents(tmp_path / str(i)).items()}
    assert {name: data for name, data in apart.items() if name != manifest.NAME} == {
        file.name: file.read_bytes() for file in parts_of(scores)}
    assert "complete" not in manifest.read(tmp_path / "1")
    assert sum(each.rows for each in totals) == 2 * DOCUMENTS


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_no_byte(model, rows, scores, tmp_path, workers):
    job.run(described(rows, tmp_path, workers=workers), Scorer(model))
    assert contents(tmp_path) == contents(scores)


def test_the_size_of_parts_and_the_order_of_rows_change_no_row(model, rows, scores, tmp_path):
    job.run(described(rows, tmp_path / "a", part_rows=37), Scorer(model))
    assert rows_of(tmp_path / "a") == rows_of(scores)
    lines = Path(rows).read_bytes().splitlines()
    good = [line for line in lines if b'"more"' in line]  # an error tells its row's number
    random.Random(0).shuffle(good)
    job.run(described(write(tmp_path / "turned", good), tmp_path / "b"), Scorer(model))
    assert rows_of(tmp_path / "b") == [row for row in rows_of(scores) if b"row " not in row and b"utf8" not in row
                                       and b"half" not in row and b"udce9" not in row]


def test_continuations_have_one_result_too(model, tmp_path):
    rows, results = write(tmp_path / "prompts", corpus(DOCUMENTS, most=4)), []
    for n, more in enumerate([{}, {"workers": 2}, {"part_rows": 37}]):
        totals = job.run(described(rows, tmp_path / str(n), **more), Continuer(model, batch=n or None, **GENERATE))
        results.append(rows_of(tmp_path / str(n)))
    assert results[0] == results[1] == results[2] and 0 < totals.errors < DOCUMENTS / 2 and totals.tokens > 0
    assert contents(tmp_path / "0") == contents(tmp_path / "1")


def test_a_run_makes_what_is_missing_and_leaves_the_rest(model, rows, scores, tmp_path):
    scorer = Scorer(model)
    first = job.run(described(rows, tmp_path), scorer)
    removed = parts_of(tmp_path)[1::2]
    kept = {file.name: file.stat().st_mtime_ns for file in parts_of(tmp_path)[::2]}
    for file in removed:
        file.unlink()
    (tmp_path / ".writing-x").write_bytes(b"half")  # of a killed run
    again = job.run(described(rows, tmp_path), scorer)
    assert (again.made, again.kept) == (len(removed), len(kept))
    assert (again.rows, again.errors) == (first.rows, first.errors)
    assert contents(tmp_path) == contents(scores)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    assert job.run(described(rows, tmp_path), scorer).tokens == 0


@pytest.mark.parametrize(("more", "field"), [
    ({"policy": "window:9"}, "policy"), ({"threshold": 1.0}, "threshold"), ({"kv": "int8"}, "kv"),
    ({"weights": "float16"}, "weights"), ({"stride": 9}, "stride"), ({"backend": "numpy"}, "backend"),
    ({"part_rows": 3}, "part_rows"), ({"limit": 3}, "limit"), ({"version": "2"}, "version")])
def test_other_settings_are_refused_by_name(model, rows, scores, more, field):
    before = contents(scores)
    own = {name: value for name, value in more.items() if name in ("part_rows", "limit")}
    task = described(rows, scores, **own)
    task = Job(**vars(task) | {"version": more.get("version", "1")})
    with pytest.raises(ValueError, match=f"manifest.json: {field} was"):
        job.run(task, Scorer(model, **{name: value for name, value in more.items() if name not in {*own, "version"}}))
    assert contents(scores) == before


def test_another_model_and_another_task_are_refused_by_name(model, rows, scores, tmp_path):
    with pytest.raises(ValueError, match="weights_sha256 was"):
        job.run(described(rows, scores), Scorer(saved_model(tmp_path, text_model(seed=1))))
    with pytest.raises(ValueError, match="task was 'Scorer' and now is 'Continuer'"):
        job.run(described(rows, scores), Continuer(model))


def test_another_input_is_refused(model, rows, tmp_path):
    lines, scorer = Path(rows).read_bytes().splitlines(), Scorer(model)
    out = tmp_path / "out"
    job.run(described(write(tmp_path / "a", lines[:50]), out, part_rows=10), scorer)
    with pytest.raises(ValueError, match="made from other rows than part 0 has now: the input has changed"):
        job.run(described(write(tmp_path / "b", lines[1:50]), out, part_rows=10), scorer)
    with pytest.raises(ValueError, match="has part 4, but the input has 4 parts"):
        job.run(described(write(tmp_path / "c", lines[:40]), out, part_rows=10), scorer)
    (out / "part-00000000-0123456789abcdef.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="part 0 is there twice"):
        job.run(described(write(tmp_path / "a", lines[:50]), out, part_rows=10), scorer)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 3000])
def test_a_damaged_manifest_is_refused(model, rows, tmp_path, text):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: (cannot be read|must hold)"):
        job.run(described(rows, tmp_path), Scorer(model))


def test_a_manifest_is_claimed_once(tmp_path, monkeypatch):
    manifest.claim(tmp_path, {"a": 1})
    monkeypatch.setattr("pathlib.Path.exists", lambda self: False)  # another process's came in between
    with pytest.raises(ValueError, match="a was 1 and now is 2"):
        manifest.claim(tmp_path, {"a": 2})
    monkeypatch.undo()
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError()))  # a disk without links
    manifest.claim(tmp_path / "other", {"a": 2})
    assert manifest.read(tmp_path / "other") == {"a": 2} and len(list((tmp_path / "other").iterdir())) == 1


def test_an_empty_input_is_a_result(model, tmp_path):
    totals = job.run(described(write(tmp_path / "none", []), tmp_path / "out"), Scorer(model))
    assert (totals.rows, totals.made) == (0, 0) and manifest.read(tmp_path / "out")["complete"]["parts"] == 0


@pytest.mark.parametrize("words", ["shard 0/3", "shard 4/3", "limit", "part-rows", "workers"])
def test_impossible_jobs_are_refused(tmp_path, words):
    more = {"shard": (int(words[6]), 3)} if "shard" in words else {words.replace("-", "_"): 0}
    with pytest.raises(ValueError, match=f"--{words}"):
        described("rows", tmp_path, **more)


def test_a_disk_that_is_full_leaves_no_half_a_part(model, rows, tmp_path, monkeypatch):
    fsync, calls = replacing.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(replacing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        job.run(described(rows, tmp_path), Scorer(model))
    monkeypatch.undo()
    there = contents(tmp_path)
    assert 0 < len(there) < 5 and not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    job.run(described(rows, tmp_path), Scorer(model))
    assert there.items() - {manifest.NAME: 0}.items() <= contents(tmp_path).items() | there.items()


def test_parquet_holds_what_jsonl_holds(model, rows, scores, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    scorer = Scorer(model)
    totals = job.run(described(rows, tmp_path, form="parquet"), scorer)
    again = job.run(described(rows, tmp_path, form="parquet"), scorer)
    assert (again.errors, again.made) == (totals.errors, 0)
    for file, lines in zip(parts_of(tmp_path), parts_of(scores), strict=True):
        expected = [json.loads(line) for line in lines.read_bytes().splitlines()]
        for row in expected:
            row["id"] = None if row["id"] is None else part_files.valid(row["id"])
        assert parquet.read_table(file).to_pylist() == expected
    job.run(described(rows, tmp_path / "2", form="parquet"), Continuer(model, **GENERATE))
    assert parquet.read_table(parts_of(tmp_path / "2")[0]).column_names == ["id", *Continuer.columns]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_and_begun_again(model, rows, scores, tmp_path, workers):
    """By SIGKILL, at random moments; of each run a little more is left."""
    out_of, whole_of = tmp_path / "killed", tmp_path / "whole"
    arguments = ["score", "--input", rows, "--model", model, "--part-rows", PART_ROWS, "--workers", workers, "--out"]
    draw, began = random.Random(workers), time.monotonic()
    assert ended(*arguments, whole_of)[0] == 3
    took = time.monotonic() - began
    for _ in range(KILLS):
        killed_after(draw.uniform(0, took), *arguments, out_of)
    code, out, err = ended(*arguments, out_of)
    assert code == 3, err
    assert contents(out_of) == contents(whole_of)
    assert {file.name: file.read_bytes() for file in parts_of(out_of)} == {
        file.name: file.read_bytes() for file in parts_of(scores)}
    assert out.startswith(f"{DOCUMENTS} rows")


def test_workers_end_with_a_killed_parent(model, tmp_path):
    """No orphan goes on: its standard output, which is the parent's, is closed."""
    rows = write(tmp_path / "rows", corpus(4000))
    run = process("score", "--input", rows, "--out", tmp_path / "out", "--model", model, "--part-rows", 10,
                  "--workers", 2)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)  # would wait for orphans
    made = len(list((tmp_path / "out").glob("part-*")))
    assert 0 < made < 400
