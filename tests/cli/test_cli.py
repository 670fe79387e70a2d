"""`dcp-ref generate` as people type it: what it prints where, and how it ends."""

import dataclasses
import functools
import io
import json
import re
import signal
import subprocess
import sys

import pytest
from cli_tools import assert_refused, call, process_of, saved, stdin_of
from text_models import CONFIG, TOKENIZER, text_model
from training_tools import failing

from dcp_ref import generate, native
from dcp_ref.cli import generate as cli_generate
from dcp_ref.cli import main
from dcp_ref.native import extension

MODEL = text_model(dataclasses.replace(CONFIG, eos_token_id=None))
SETTINGS = {"max_new_tokens": 20, "temperature": 0.8, "top_p": 0.95}
FACTS = (
    r"dcp-ref: \d+ tokens, [\d.]+ tokens/s; "
    r"live \d+ of \d+ tokens seen \(\d+%, 3 layers together\); cache \d+ bytes\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(MODEL, tmp_path_factory)


@pytest.fixture
def run(model, capsys):
    """Runs `dcp-ref generate` with the small model: (exit code, stdout, stderr)."""
    return functools.partial(call, capsys, "generate", "--model", model, "--max-new-tokens", "20")


def test_one_prompt(run):
    code, out, err = run("the old man")
    [expected] = generate(MODEL, ["the old man"], **SETTINGS)
    assert (code, out) == (0, f"the old man{expected.text}\n")
    assert re.fullmatch(FACTS, err)


def test_several_prompts_from_arguments_files_and_standard_input(run, tmp_path, monkeypatch):
    (tmp_path / "one").write_text("señor\n")
    (tmp_path / "two").write_bytes(b"the grey\nsea\r\n")
    stdin_of(monkeypatch, "海\n".encode())
    prompts = ["the", "the sea", "señor", "the grey\nsea", "海"]
    files = ["--file", f"{tmp_path}/one", f"{tmp_path}/two", "--file", "-"]
    texts = [r.text for r in generate(MODEL, prompts, seed=5, top_k=9, **SETTINGS)]
    code, out, _ = run("the", "the sea", *files, "--seed", "5", "--top-k", "9")
    assert (code, out) == (0, "".join(f"--- {n + 1} of 5\n{prompts[n]}{texts[n]}\n" for n in range(5)))


def test_standard_input_when_there_is_no_prompt(run, monkeypatch):
    stdin_of(monkeypatch, b"the old man\n")
    assert run()[1] == run("the old man")[1]


def test_settings_reach_the_model(run):
    [free] = generate(MODEL, ["the"], max_new_tokens=9, temperature=0, top_p=1.0)
    stop = next(c for c in free.text if c.isascii())
    _, out, _ = run("the", "--max-new-tokens", "9", "--temperature", "0", "--stop", "never", "--stop", stop)
    assert out == f"the{free.text[: free.text.index(stop)]}\n"


@pytest.mark.parametrize(("typed", "meant"), [
    (r"\n", "\n"), (r"a\tb\r", "a\tb\r"), (r"\\n", r"\n"), (r"\d\\", "\\d\\"), ("\n", "\n"), ("\\", "\\"),
])
def test_a_stop_text_can_be_typed(run, monkeypatch, typed, meant):
    made, make_rows = [], cli_generate.make_rows
    monkeypatch.setattr(cli_generate, "make_rows", lambda *arguments: made.extend(make_rows(*arguments)) or made)
    assert run("the", "--stop", typed, "--stop", "x")[0] == 0
    assert [row.stop for row in made] == [[meant, "x"]]


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_a_prompt(run, tmp_path, monkeypatch):
    data = b"\xef\xbb\xbfthe grey\r\nsea\r\n"
    (tmp_path / "file").write_bytes(data)
    expected = run("the grey\nsea")
    assert run("--file", f"{tmp_path}/file")[:2] == expected[:2]
    stdin_of(monkeypatch, data)
    assert run()[:2] == expected[:2]


@pytest.mark.parametrize("backend", ["numpy", *["native"] * native.available()])
def test_a_threshold(run, backend):
    def live(*arguments):
        result = json.loads(run("the", "--json", "--temperature", "0", "--backend", backend, *arguments)[1])
        return result["generations"], result["live_tokens"], result["kept"]

    assert live("--threshold", "0") == live()
    assert live("--threshold=-1e9") == live("--policy", "dense") and live("--threshold=-1e9")[2] == 1
    assert live("--threshold", "inf")[1] == CONFIG.n_layer == live("--threshold", "1e9")[1]  # each token sees itself


@pytest.mark.parametrize("backend", ["numpy", *["native"] * native.available()])
def test_json(run, backend):
    code, out, err = run("the", "señor", "--json", "--backend", backend)
    result = json.loads(out)
    expected = generate(MODEL, ["the", "señor"], **SETTINGS)
    assert (code, err) == (0, "")
    assert result.pop("generations") == [
        {"prompt": prompt, "text": r.text, "ids": r.ids, "stop_reason": r.stop_reason}
        for prompt, r in zip(["the", "señor"], expected, strict=True)
    ]
    seen = CONFIG.n_layer * (len(TOKENIZER.encode("the") + TOKENIZER.encode("señor")) + 2 * 19)  # the last is not fed
    assert (result["backend"], result["new_tokens"], result["seen_tokens"]) == (backend, 40, seen)
    assert 2 * CONFIG.n_layer <= result["live_tokens"] < seen
    assert result["kept"] == round(result["live_tokens"] / seen, 4) and result["cache_bytes"] > 0


def test_text_is_printed_as_it_comes(run, monkeypatch):
    """Before each step all that is settled has been written; the second text waits for the first to end."""
    raw, prompts, both_run = io.BytesIO(), ["a" * 40, "the"], []

    def watched(engine, rows, sampling, step=cli_generate.step):
        both_run.append(rows[0].stop_reason is None)
        expected = f"--- 1 of 2\n{prompts[0]}{rows[0].settled()}"
        if not both_run[-1]:
            expected += f"\n--- 2 of 2\n{prompts[1]}{rows[1].settled()}" + "\n" * (rows[1].stop_reason is not None)
        assert raw.getvalue().decode() == expected
        return step(engine, rows, sampling)

    monkeypatch.setattr(cli_generate, "step", watched)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    assert run(*prompts)[0] == 0
    assert both_run == [True] * 9 + [False] * 12  # 48 positions; the last call finds nothing to do


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted(run, monkeypatch, as_json):
    monkeypatch.setattr(cli_generate, "step", failing(cli_generate.step, 9, KeyboardInterrupt(), after=False))
    code, out, err = run("the sea", "the", *["--json"] * as_json)
    results = generate(MODEL, ["the sea", "the"], **SETTINGS | {"max_new_tokens": 8})
    texts = [r.text.removesuffix("\ufffd") for r in results]
    assert code == 130 and err.endswith("dcp-ref generate: interrupted\n")
    if as_json:
        result = json.loads(out)
        assert [(r["text"], r["stop_reason"]) for r in result["generations"]] == [(t, "interrupted") for t in texts]
        assert result["new_tokens"] == 16
    else:
        assert out == f"--- 1 of 2\nthe sea{texts[0]}\n--- 2 of 2\nthe{texts[1]}\n"
        assert err.startswith("dcp-ref: 16 tokens, ") and err.count("\n") == 2


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    return saved(text_model(dataclasses.replace(CONFIG, n_positions=20_000, eos_token_id=None)), tmp_path_factory)


def started(model):
    """A process that has written its prompt and has far to go."""
    arguments = "generate", "the old man", "--model", model, "--max-new-tokens", "19000", "--backend", "numpy"
    process = process_of(*arguments, stdout=subprocess.PIPE)
    assert process.stdout.read(12).startswith(b"the old man")
    return process


def test_control_c(long_model):
    process = started(long_model)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n") and err.count(b"\n") == 2
    assert err.startswith(b"dcp-ref: ") and err.endswith(b"dcp-ref generate: interrupted\n")


def test_a_reader_that_goes_away(long_model):
    process = started(long_model)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), err) == (1, b"")


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("two\nlines")])
def test_a_failure_under_way_keeps_what_was_written(run, monkeypatch, error):
    monkeypatch.setattr(cli_generate, "step", failing(cli_generate.step, 4, error, after=False))
    code, out, err = run("the sea")
    assert code == 1 and out.startswith("the sea") and out.endswith("\n")
    assert err.count("\n") == 2 and err.startswith("dcp-ref: 3 tokens, ")
    said = str(error).replace("\n", "\\n") or "MemoryError"
    assert err.endswith(f"dcp-ref generate: {said}\n")


def test_no_new_tokens(run):
    code, out, err = run("the", "--max-new-tokens", "0")
    assert (code, out) == (0, "the\n") and err.startswith("dcp-ref: 0 tokens, 0.0 tokens/s")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_text_is_utf8_wherever_it_goes(run, monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert run("señor 海", "--max-new-tokens", "1")[0] == 0
    assert raw.getvalue().decode("utf-8").startswith("señor 海")


@pytest.mark.filterwarnings("default")
def test_without_the_extension(run, monkeypatch, capsys):
    expected = run("the", "--backend", "numpy")[1]
    monkeypatch.setattr(extension, "lib", None)
    code, out, err = run("the")
    assert (code, out) == (0, expected)
    assert err.startswith("dcp-ref generate: using the NumPy kernels, which are slow: the C extension is not built")
    assert err.count("\n") == 2
    assert_refused(run("the", "--backend", "native"), "not built", code=1)
    assert json.loads(call(capsys, "info", "--json")[1])["backend"] == "numpy"


def test_a_single_token_takes_memory_and_a_full_context_is_said(run):
    code, out, _ = run("the", "--max-new-tokens", "1", "--json")
    assert code == 0 and json.loads(out)["cache_bytes"] > 0
    code, _, err = run("the", "--max-new-tokens", "9999")
    assert code == 0 and err.endswith("dcp-ref: a text ended because the model has no position left\n")


@pytest.mark.parametrize(("arguments", "meant"), [
    (["generat", "the"], "generate"), (["generate", "the", "--treshold", "1"], "--threshold"),
    (["evaluate", "--txt=book.txt"], "--text"), (["generate", "the", "--xyzzy"], None)])
def test_a_mistyped_word_is_answered_with_the_one_that_was_meant(capsys, arguments, meant):
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.rstrip().endswith(f"did you mean {meant}?" if meant else "--xyzzy")
