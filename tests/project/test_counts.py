"""How much Python a prompt passes on its way to text, and one more token: few files and few calls."""

import importlib
import sys
from pathlib import Path

import pytest

import dcp_ref
from dcp_ref import Engine, load, native
from dcp_ref.runtime.generation import make_rows, step
from dcp_ref.runtime.sampling import Sampling

PACKAGE = Path(dcp_ref.__file__).parent
INLINED = ("<listcomp>", "<dictcomp>", "<setcomp>")  # no calls of their own in later Pythons
built = pytest.mark.skipif(not native.available(), reason="the C extension is not built")


def calls_of(work) -> list[tuple[str, str]]:
    """The calls of this package's Python functions that `work` makes: (file, function) each."""
    calls, before = [], sys.getprofile()

    def profile(frame, event, _):
        file, code = Path(frame.f_code.co_filename), frame.f_code
        if event == "call" and file.is_relative_to(PACKAGE) and code.co_name not in INLINED:
            calls.append((str(file.relative_to(PACKAGE)), code.co_qualname))

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


@built
def test_the_files_that_a_prompt_enters(capsys):
    main = importlib.import_module("dcp_ref.cli.command").main
    arguments = ["generate", "The old man", "--max-new-tokens", "3"]
    assert main(arguments) == 0  # all is imported then
    files = sorted({file for file, _ in calls_of(lambda: main(arguments))})
    assert len(files) <= 24, "\n".join(files)  # six read a checkpoint, four are the command, five are C's


@built
def test_the_calls_of_one_more_token():
    model, sampling = load("tiny"), Sampling(temperature=1.0, top_k=None, top_p=1.0)
    engine, rows = Engine(model, "native"), make_rows(model, ["The old man", "She"], 50, 0, ())
    for _ in range(3):
        step(engine, rows, sampling)
    calls = calls_of(lambda: step(engine, rows, sampling))
    assert len(calls) <= 30, "\n".join(map(" ".join, calls))


@built
def test_a_traced_token_takes_few_calls_more():
    model, sampling = load("tiny"), Sampling(temperature=1.0, top_k=None, top_p=1.0)
    found = []
    for traced in (False, True):
        engine, rows = Engine(model, "native"), make_rows(model, ["The old man", "She"], 50, 0, (), traced)
        for _ in range(3):
            step(engine, rows, sampling)
        found.append(len(calls_of(lambda engine=engine, rows=rows: step(engine, rows, sampling))))
    assert found[0] < found[1] <= found[0] + 4, found  # to record what was dropped, and to keep it
