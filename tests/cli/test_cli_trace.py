"""`dcp-ref trace`, and the trace that `dcp-ref generate` writes."""

import json
import types

import numpy as np
import pytest
from cli_tools import assert_refused, call, stdin_of

import dcp_ref
from dcp_ref import policies, tracing

TEXT = "The old man looked at the sea, and the sea looked back at him."
BOOK = "She said: “The sea!” " * 200  # more than n_positions tokens


@pytest.fixture
def pages(monkeypatch):
    fake = types.ModuleType("page")
    fake.page = json.dumps
    monkeypatch.setitem(__import__("sys").modules, "dcp_ref.tracing.page", fake)


def expected(text=TEXT, **options):
    return dcp_ref.trace(dcp_ref.load("tiny"), text, **options)


def picture(**options):
    return str(expected(**options)).replace("model, policy", "tiny, policy")


def test_a_picture(capsys):
    assert call(capsys, "trace", TEXT) == (0, picture() + "\n", "")
    code, out, _ = call(capsys, "trace", TEXT, "--policy", "window:3", "--backend", "numpy")
    assert (code, out) == (0, picture(policy=policies.window(3)) + "\n")
    assert call(capsys, "trace", TEXT, "--threshold", "1")[1] == picture(threshold=1.0) + "\n"


def test_json(capsys):
    code, out, _ = call(capsys, "trace", TEXT, "--json", "--scores", "--backend", "numpy")
    found = json.loads(out)
    trace = expected(scores=True, backend="numpy")
    trace.counterfactual()
    assert code == 0 and found == trace.to_dict() | {"model": "tiny"} and found["everything"]
    both = json.loads(call(capsys, "trace", TEXT, "--json", "--compare-policy", "window:3")[1])
    assert [one["policy"] for one in both["traces"]] == ["learned", "window:3"]


def test_why_and_what_if(capsys):
    code, out, _ = call(capsys, "trace", TEXT, "--why", "2", "3", "0")
    trace = expected()
    assert code == 0 and out == f"{trace.why(2, 3, 0)}\n\n{trace.counterfactual(2, 3, 0)}\n"
    assert call(capsys, "trace", TEXT, "--why", "2", "2", "0")[1] == f"{trace.why(2, 2, 0)}\n"


def test_compare(capsys):
    code, out, _ = call(capsys, "trace", TEXT, "--threshold", "0.5", "--compare-threshold", "1")
    found = expected(threshold=0.5).compare(expected(threshold=1.0))
    assert code == 0 and out == str(found).replace("model,", "tiny,") + "\n"


def test_files_that_are_written(capsys, tmp_path, pages):
    code, out, err = call(capsys, "trace", TEXT, "--html", f"{tmp_path}/a.html", "--save", f"{tmp_path}/a.trace")
    assert (code, out) == (0, "") and err.splitlines() == [f"dcp-ref: written: {tmp_path}/a.{end}"
                                                           for end in ("html", "trace")]
    assert json.loads((tmp_path / "a.html").read_text()) == [expected().to_dict() | {"model": "tiny"}]
    assert tracing.load(tmp_path / "a.trace").name == "tiny"
    call(capsys, "trace", TEXT, "--compare-threshold", "1", "--html", str(tmp_path / "two.html"))
    assert len(json.loads((tmp_path / "two.html").read_text())) == 2


def test_a_long_file_in_windows(capsys, tmp_path):
    (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")
    code, out, _ = call(capsys, "trace", "--file", str(tmp_path / "book.txt"), "--save", str(tmp_path / "t.trace"))
    ids = dcp_ref.load("tiny").tokenizer.encode(BOOK)
    ids.append(0)  # the end of the text
    n = -(-len(ids) // 512)
    assert code == 0 and out == "" and n > 2
    for k in range(n):
        assert tracing.load(tmp_path / f"t-{k + 1}.trace").ids.tolist()[:100] == ids[512 * k :][:100]


def test_a_summary(capsys, monkeypatch):
    arguments = ["trace", "--file", "-", "--summary", "--kind", "speech=[“”]", "--max-tokens", "700"]
    stdin_of(monkeypatch, BOOK.encode())
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and out.startswith("700 tokens in 2 texts or windows; kept: ") and "| speech " in out
    stdin_of(monkeypatch, BOOK.encode())
    found = json.loads(call(capsys, *arguments, "--json")[1])
    assert found["tokens"] == 700 and {row["kind"] for row in found["rows"]} >= {"speech", "function word"}


@pytest.mark.parametrize(("arguments", "word"), [
    ([], "give a text, or --file FILE, and not both"), (["a", "--file", "b"], "and not both"), ([""], "empty"),
    (["a", "--kind", "x=y"], "--kind goes with --summary"), (["a", "--summary", "--html", "x"], "--summary prints one"),
    (["a", "--summary", "--kind", "x"], "--kind x: give NAME=REGEX"),
    (["a", "--summary", "--json", "--scores"], "--scores"), (["a", "--why", "0", "1", "0", "--json"], "out --json"),
    (["a", "--summary", "--kind", "x=("], "x: '(' is not a regular expression"), (["a", "--max-tokens", "3"], "--file"),
    (["a", "--why", "0", "9", "0"], "i and j must be positions"), (["a", "--policy", "window"], "one of these forms"),
    (["a", "--policy", "dense", "--scores"], "scores: policy dense has none"), (["--file", "missing"], "missing"),
    (["a", "--policy", "window:3", "--compare-threshold", "1"], "threshold is 1.0"), (["a", "--model", "x"], "x"),
])
def test_what_cannot_be_asked_is_refused(capsys, arguments, word):
    assert_refused(call(capsys, "trace", *arguments), word)


@pytest.mark.parametrize("end", [".json", ".html", ".safetensors"])
def test_generated_text_is_traced(capsys, tmp_path, end, pages):
    path, new = tmp_path / f"t{end}", ["--max-new-tokens", "5", "--temperature", "0"]
    code, out, err = call(capsys, "generate", "The sea", *new, "--trace", str(path))
    assert code == 0 and f"written: {path}" in err and call(capsys, "generate", "The sea", *new)[1] == out
    found = tracing.load(path).to_dict() if end == ".safetensors" else json.loads(path.read_text())
    found = found[0] if end == ".html" else found
    [result] = dcp_ref.generate(dcp_ref.load("tiny"), ["The sea"], 5, temperature=0, trace=True)
    assert found["ids"] == result.trace.ids.tolist() and len(found["ids"]) == 6
    np.testing.assert_array_equal(found["lifetime"], result.trace.lifetime)
    assert found["model"] == "tiny" and found["prompt_tokens"] == 2 and found["interaction"]


def test_several_prompts_get_numbered_files(capsys, tmp_path):
    call(capsys, "generate", "The", "She", "--max-new-tokens", "3", "--trace", str(tmp_path / "t.json"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t-1.json", "t-2.json"]


def test_a_trace_of_an_unknown_form_is_refused_before_the_work(capsys):
    assert_refused(call(capsys, "generate", "The", "--trace", "x.txt"), "x.txt: the name of a trace must end in one of")
