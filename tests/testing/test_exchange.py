"""Cases as files, and answers of a program that is not Python."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dcp_ref.testing import export_cases, import_answers

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "check_a_c_kernel" / "kernel.c"
STRICT = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
FAULTS = [  # an edit of the example, and the check that is to refuse it
    ("if (!(s > threshold)", "if (!(s >= threshold)", "ties_drop"),
    ("if (!(s > threshold)", "if (s <= threshold", "nan_drops"),
    ("> size[DELAY]", ">= size[DELAY]", "delay"), (" / sqrtf((float)r) + beta", " + beta", "scores"),
    ("l > 0 && size[DEPTH]", "l > 9 && size[DEPTH]", "depth"),
    ("        memcpy(t->v, parent->v, P * C * 4);\n", "", "fork")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "cases"
    assert export_cases(directory, examples=16) == 16 * 18 + 3 + 1
    return directory


def answered(exported, source, directory):
    """The cases, with the answers of the program."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    cases = shutil.copytree(exported, directory / "cases")
    (directory / "kernel.c").write_text(source)
    subprocess.run(["cc", *STRICT, directory / "kernel.c", "-lm", "-o", directory / "kernel"], check=True)
    subprocess.run([directory / "kernel", *sorted(cases.glob("case-*.bin"))], check=True)
    return cases


def test_the_example_in_c_conforms(exported, tmp_path):
    report = import_answers(answered(exported, EXAMPLE.read_text(), tmp_path))
    assert report.ok, report
    assert {"tiny", "histories", "fork"} <= {result.check for result in report.results}


@pytest.mark.parametrize(("old", "new", "meant"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_a_fault_in_c_is_refused(exported, tmp_path, old, new, meant):
    source = EXAMPLE.read_text()
    assert source.count(old) == 1
    report = import_answers(answered(exported, source.replace(old, new), tmp_path))
    assert report.failed[0] == meant, report
    assert "in answer-" in str(report)


def test_the_two_forms_of_a_case_are_one(exported):
    from safetensors.numpy import load_file

    names = json.loads((exported / "manifest.json").read_text())["case_arrays"]
    tensors, raw = load_file(exported / "case-0007.safetensors"), (exported / "case-0007.bin").read_bytes()
    for name in names:
        n = int(np.frombuffer(raw, np.int32, 1)[0])
        np.testing.assert_array_equal(np.frombuffer(raw, tensors[name].dtype, n, 4), tensors[name].ravel())
        raw = raw[4 + 4 * n :]
    assert raw == b""


def test_answers_that_are_missing_or_cut_off(exported, tmp_path):
    cases = shutil.copytree(exported, tmp_path / "cases")
    assert "there is neither answer-0000.safetensors nor answer-0000.bin" in str(import_answers(cases))
    (cases / "answer-0000.bin").write_bytes(np.array([10, 1], np.int32).tobytes())
    report = import_answers(cases)
    assert not report.ok and "it ends within out, which should have 10 elements" in report.results[0].message


def test_cases_that_are_not_the_exported_ones(exported, tmp_path):
    with pytest.raises(ValueError, match="no manifest of exported cases"):
        import_answers(tmp_path)
    with pytest.raises(ValueError, match=r"has a manifest\.json already: name a new directory"):
        export_cases(exported)
    with pytest.raises(ValueError, match="exported cases have the learned rule alone: leave budget out"):
        export_cases(tmp_path / "other", supports=("decode", "budget"))
    cases = shutil.copytree(exported, tmp_path / "cases")
    with open(cases / "case-0003.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"case-0003\.bin is not the case that was exported"):
        import_answers(cases)
    manifest = json.loads((cases / "manifest.json").read_text())
    assert manifest["license"] == "MIT"
    (cases / "manifest.json").write_text(json.dumps(manifest | {"specification": "9.0"}))
    with pytest.raises(ValueError, match=r"has cases of specification 9\.0"):
        import_answers(cases)
