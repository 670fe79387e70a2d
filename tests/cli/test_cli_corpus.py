"""`dcp-ref score` and `dcp-ref generate --input`: options, exit codes and what they print."""

import json

import pytest
from cli_tools import assert_refused, call, saved, stdin_of
from corpus_tools import contents, parts_of, write
from text_models import text_model

from dcp_ref import load

GOOD = [b'{"id": "a", "text": "the old man"}', b'{"id": 2, "text": "the sea was grey"}']
BAD = b'{"id": 3}'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(text_model(), tmp_path_factory)


def rows_in(out):
    return [json.loads(line) for file in parts_of(out) for line in file.read_bytes().splitlines()]


def test_score_prints_what_it_did_and_resumes(capsys, model, tmp_path):
    arguments = ["score", "--input", write(tmp_path / "rows", GOOD), "--out", str(tmp_path / "out"), "--model", model]
    assert call(capsys, *arguments) == (0, "2 rows, 0 with an error; parts: 1 made, 0 there\n", "")
    before = contents(tmp_path / "out")
    assert call(capsys, *arguments) == (0, "2 rows, 0 with an error; parts: 0 made, 1 there\n", "")
    assert contents(tmp_path / "out") == before
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["a", 2]
    assert_refused(call(capsys, *arguments, "--policy", "window:3"), "policy was 'learned' and now is 'window:3'")


@pytest.mark.parametrize("command", ["score", "generate"])
def test_a_job_obeys_the_share_to_keep(capsys, tmp_path, command):
    """It is the engine's as in other commands: kept stands for a threshold, which the manifest has."""
    out = tmp_path / "out"
    given = [command, "--input", write(tmp_path / "rows", GOOD), "--out", str(out), "--model", "tiny", "--kept", "0.1"]
    assert call(capsys, *given)[0] == 0
    expected = repr(float(load("tiny").config.threshold_for(0.1)))
    assert json.loads((out / "manifest.json").read_text())["threshold"] == expected != "0.0"


def test_bad_rows_are_exit_code_3_each_time(capsys, model, tmp_path):
    arguments = ["score", "--input", write(tmp_path / "rows", [BAD, *GOOD]), "--out", str(tmp_path / "out"), "--model",
                 model, "--part-rows", "2"]
    for made, there in ((2, 0), (0, 2)):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (3, f"3 rows, 1 with an error; parts: {made} made, {there} there\n")
        assert err == "dcp-ref score: some rows have an error: their column error says which one\n"
    assert [row["error"] for row in rows_in(tmp_path / "out")] == ["row 1: text must be a string", "", ""]


def test_standard_input_a_limit_and_a_shard(capsys, model, tmp_path, monkeypatch):
    stdin_of(monkeypatch, b"\n".join(GOOD * 5).replace(b'"text"', b'"body"').replace(b'"id"', b'"name"'))
    code, out, _ = call(capsys, "score", "--input", "-", "--out", str(tmp_path), "--model", model, "--limit", "7",
                        "--part-rows", "2", "--shard", "2/2", "--id", "name", "--text", "body")
    assert (code, out) == (0, "3 rows, 0 with an error; parts: 2 made, 0 there\n")
    assert [file.name[5:13] for file in parts_of(tmp_path)] == ["00000001", "00000003"]


def test_generate_continues_prompts(capsys, model, tmp_path):
    arguments = ["generate", "--input", write(tmp_path / "rows", [*GOOD, b'{"id": 4, "text": ""}']), "--model", model,
                 "--max-new-tokens", "6", "--seed", "3", "--stop", r"\n", "--out"]
    code, out, _ = call(capsys, *arguments, str(tmp_path / "a"))
    assert (code, out) == (3, "3 rows, 1 with an error; parts: 1 made, 0 there\n")
    a, _, c = rows_in(tmp_path / "a")
    assert list(a) == ["id", "text", "ids", "stop_reason", "error"] and len(a["ids"]) <= 6 and a["error"] == ""
    assert c == {"id": 4, "text": "", "ids": [], "stop_reason": "error", "error": "the text is empty"}
    assert_refused(call(capsys, *arguments, str(tmp_path / "a"), "--seed", "4"), "seed was 3 and now is 4")
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["stop"] == ["\n"]
    assert call(capsys, *arguments, str(tmp_path / "b"), "--batch", "1")[0] == 3
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(("arguments", "words"), [
    (["generate", "The sea", "--out", "x"], "--out goes with --input"),
    (["generate", "The sea", "--part-rows", "3"], "--part-rows goes with --input"),
    (["generate", "The sea", "--input", "rows", "--out", "x"], "leave out PROMPT"),
    (["generate", "--json", "--input", "rows", "--out", "x"], "leave out --json"),
    (["generate", "--input", "rows"], "--input needs --out DIR"),
    (["score", "--input", "-", "-", "--out", "x"], "standard input, -, is given twice"),
    (["score", "--input", "nowhere.jsonl", "--out", "x"], "nowhere.jsonl: cannot be read (No such file"),
    (["score", "--input", "rows", "--out", ""], "--out"),
    (["score", "--input", "rows", "--out", "x", "--limit", "0"], "--limit must be 1 or more"),
    (["score", "--input", "rows", "--out", "x", "--shard", "4/3"], "--shard 4/3: of n shards, give 1/n to n/n"),
    (["score", "--input", "rows", "--out", "x", "--context", "1"], "context"),
])
def test_refusals(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows", GOOD)
    assert_refused(call(capsys, *arguments), words)


def test_a_mistyped_shard_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        call(capsys, "score", "--input", "rows", "--out", "x", "--shard", "one")
    assert "give I/N, as in 1/3, not 'one'" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "package"), [(["--format", "parquet"], "pyarrow"), (["--ray"], "ray")])
def test_a_missing_package_is_named(capsys, monkeypatch, model, tmp_path, option, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    result = call(capsys, "score", "--input", write(tmp_path / "rows", GOOD), "--out", str(tmp_path / "out"),
                  "--model", model, *option)
    assert_refused(result, option[0], f"package {package}", "pip install")
