"""The suite for other people's caches: good ones pass, and each broken one is refused by the check meant for it."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dcp_ref import native, testing
from dcp_ref.testing import broken, check_cache, functions, running
from dcp_ref.testing.check_list import BY_NAME, CHECKS
from dcp_ref.testing.own import OwnNative, OwnNumpy
from dcp_ref.testing.report import Report, Result
from dcp_ref.testing.slot_cache import SlotCache
from dcp_ref.testing.suite import with_counts

FEW = 20  # examples of every check
NumpyCache = importlib.import_module("dcp_ref.testing.skeleton_numpy").MyCache


def skeleton(name):
    return importlib.import_module(f"dcp_ref.testing.skeleton_{name}").MyCache


def check_good(cls):
    report = check_cache(cls, FEW, failures=None)
    assert report.ok, report
    assert all(report.counts[name] > 50 for name in ("examples", "steps", "drops", "reused slots", "pages crossed"))
    assert {"histories", "tiny"} <= {result.check for result in report.results if result.status == "passed"}
    return report


@pytest.mark.parametrize("cls", [OwnNumpy, SlotCache, NumpyCache], ids=["KVCache", "slots", "compacts at every drop"])
def test_a_good_cache_passes(cls):
    check_good(cls)


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_the_cache_in_c_passes():
    report = check_good(OwnNative)
    assert [result.check for result in report.results if result.status != "passed"] == ["alpha_sigmoid", "mask"]


def test_a_boolean_mask_in_torch_passes():
    pytest.importorskip("torch")
    check_good(skeleton("torch"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_function_in_c_passes():
    check_good(skeleton("ctypes"))


@pytest.mark.parametrize("cls", broken.BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_cache_is_refused_by_the_check_meant_for_it(cls, tmp_path, monkeypatch):
    """It is the first that fails, its message names the fault, and its script fails by itself.

    Of the checks before it, the last three are run, or all with DCP_LONG.
    """
    monkeypatch.setattr(testing.suite, "SHRINKS", 40)  # a case that is small enough
    names = [check.name for check in CHECKS]
    before = names[: names.index(cls.meant) + 1][0 if os.environ.get("DCP_LONG") else -4 :]
    report = check_cache(cls, 100, level=3, failures=tmp_path, first=True, checks=before)
    assert report.failed == [cls.meant], report
    [result] = [result for result in report.results if not result.ok]
    assert BY_NAME[cls.meant].fault in result.message and f"points {BY_NAME[cls.meant].points}" in result.message
    if cls.meant == "memory":
        return
    assert [str(tmp_path / f"{cls.meant}.{end}") for end in ("safetensors", "py")] == list(result.files)
    script = (tmp_path / f"{cls.meant}.py").read_text()
    assert "dcp_ref.testing.suite" not in script and "hypothesis" not in script
    done = subprocess.run([sys.executable, tmp_path / f"{cls.meant}.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "AssertionError" in done.stderr, done.stderr


def test_there_are_enough_broken_ones():
    assert len(broken.BROKEN) >= 30
    checks = {check.name for check in CHECKS if 2 <= check.level <= 3}
    assert {cls.meant for cls in broken.BROKEN} == checks - {"histories"}


class TakesTies(NumpyCache):
    supports = frozenset({"decode"})
    expected_failures = {"ties_drop": "our hardware has >= only"}  # noqa: RUF012

    def drops(self, tokens, q_int, beta):
        s = tokens["k_int"] @ q_int / np.sqrt(np.float32(len(q_int))) + np.float32(beta)
        return s < self.threshold


def test_what_is_expected_to_fail_must_fail():
    report = check_cache(TakesTies, FEW, failures=None, checks=["scores", "ties_drop", "delay"])
    assert report.ok and [result.status for result in report.results] == ["passed", "expected", "not supported"]
    assert "our hardware has >= only" in report.results[1].message

    class Passes(NumpyCache):
        expected_failures = {"scores": "who knows"}  # noqa: RUF012

    report = check_cache(Passes, FEW, failures=None, checks=["scores"])
    assert not report.ok and report.results[0].status == "passed though expected"


@pytest.mark.parametrize(("fields", "message"), [
    ({"supports": {"decode", "magic"}}, "magic is not one of decode, prompts"),
    ({"supports": {"decode", "save"}, "save": None}, "supports save, and has no save and no restore"),
    ({"supports": {"decode", "fork"}, "fork": None}, "supports fork, and has no fork: add it, or take fork out"),
    ({"supports": {"fork"}}, "offers nothing to check"),
    ({"dtype": "bfloat16"}, "give float32, float16 or float64, not 'bfloat16'"),
    ({"page_slots": 0.5}, "page_slots is the number of tokens in a page"),
    ({"expected_failures": {"tie": "?"}}, "tie is no check: give some of alpha_sigmoid"),
])
def test_a_class_that_cannot_be_checked_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        check_cache(type("Mine", (NumpyCache,), fields), FEW, failures=None)


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="ties is no check: give some of"):
        check_cache(NumpyCache, checks=["ties"])
    with pytest.raises(ValueError, match="examples must be 1 or more and level 0 to 4, not 0 and 4"):
        check_cache(NumpyCache, 0)
    with pytest.raises(ValueError, match="skeleton 'rust' is not one of numpy, torch, ctypes"):
        testing.skeleton("rust")


def test_a_check_that_showed_nothing_fails():
    result = with_counts(Result("pages", 3, "passed", testing.suite.Counter(drops=1)), BY_NAME["pages"])
    assert result.status == "failed" and "no reused slots and no pages crossed: give more examples" in result.message
    assert not Report("nothing", ()).ok


@pytest.mark.parametrize(("answer", "message"), [
    (lambda out, dropped: (out[:, :1], dropped), r"step must return `out` of shape \[1, 8\], not \[1, 1\]"),
    (lambda out, dropped: (out, [[5, 0]]), r"`dropped` names rows \[5\], and the step has 1"),
    (lambda out, dropped: (out, [[0.5, 0]]), "`dropped` must be integers"),
    (lambda out, dropped: out.no_such_name, "raised AttributeError"),
    (lambda out, dropped: (out * np.nan, dropped), "attention of token 0 is off by nan"),
    (lambda out, dropped: (out, [[0, 0], [0, 0]]), "token 0 was reported"),
])
def test_answers_of_no_use(answer, message):
    class Mine(NumpyCache):
        def step(self, *arguments):
            return answer(*super().step(*arguments))

    report = check_cache(Mine, FEW, failures=None, first=True, checks=["attention"])
    assert report.failed == ["attention"]
    assert re.search(message, report.results[0].message), report


class Functions:
    @staticmethod
    def alpha_sigmoid(s, alpha):
        from dcp_ref import alpha_sigmoid

        return alpha_sigmoid(s, alpha)

    @staticmethod
    def mask(s, threshold, delay):
        return functions.mask(s, threshold, delay)


def test_functions_alone_can_be_checked():
    report = check_cache(Functions, FEW)
    assert report.ok and [result.check for result in report.results if result.status == "passed"] == [
        "alpha_sigmoid", "mask"]

    class Wrong(Functions):
        @staticmethod
        def alpha_sigmoid(s, alpha):
            return (s >= 0).astype(float) if alpha == np.inf else Functions.alpha_sigmoid(s, alpha)

        @staticmethod
        def mask(s, threshold, delay):
            T = np.arange(len(s))
            return (s > threshold) | (T[:, None] - T <= delay)  # a dropped token comes back

    report = check_cache(Wrong, FEW)
    assert report.failed == ["alpha_sigmoid", "mask"]
    assert "alpha_sigmoid(s = 0, alpha = inf) is 0, not 1" in str(report) and "is gone, with int_delay" in str(report)


def test_a_decision_that_rounding_takes_is_counted_and_shown():
    class InHalf(NumpyCache):
        """All arithmetic in float16, and says so: scores next to the threshold go either way."""

        dtype = "float16"

        def drops(self, tokens, q_int, beta):
            s = (tokens["k_int"] @ q_int / np.sqrt(np.float32(len(q_int)))).astype(np.float16) + np.float16(beta)
            safe = tokens["seen"] - tokens["position"] <= self.config.int_delay
            return ~(s > self.threshold) & ~safe

    report = check_cache(InHalf, FEW, failures=None, checks=["scores", "ties_drop", "real_scores"])
    assert report.ok, report
    assert report.counts["skipped decisions"] > 0
    assert "Too close to the threshold to be judged" in str(report) and "real_scores: layer 0" in str(report)


def test_arrays_of_other_libraries():
    class Capsule:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **options):
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    x = np.arange(3)
    assert running.as_numpy(Capsule(x)).tolist() == running.as_numpy(x.tolist()).tolist() == [0, 1, 2]


@testing.parametrize_with_checks(NumpyCache, examples=FEW, level=2)
def test_pytest_gets_every_check(check):
    check()


def test_pytest_shows_what_failed():
    mark = testing.parametrize_with_checks(TakesTies, FEW, level=2)
    ids = [parameter.id for parameter in mark.args[1]]
    assert mark.args[0] == "check" and ids == [check.name for check in CHECKS if check.level <= 2]
    assert [parameter.id for parameter in mark.args[1] if parameter.marks] == ["alpha_sigmoid", "mask", "delay"]
    mark = testing.parametrize_with_checks(broken.KeepsTies, FEW, level=2)
    with pytest.raises(AssertionError, match="the comparison is >= where it must be >"):
        mark.args[1][ids.index("ties_drop")].values[0]()
    with pytest.raises(pytest.xfail.Exception):
        testing.parametrize_with_checks(TakesTies, FEW).args[1][ids.index("ties_drop")].values[0]()


@pytest.mark.parametrize(("hidden", "code", "message"), [
    ("pytest", 0, ""), ("hypothesis", 1, 'dcp_ref.testing needs Hypothesis: pip install "dcp-ref[test]"')])
def test_what_the_import_needs(hidden, code, message):
    program = f"import sys; sys.modules['{hidden}'] = None; import dcp_ref.testing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code and message in done.stderr


def test_the_report_is_json():
    report = check_cache(broken.KeepsTies, FEW, failures=None, checks=["scores", "ties_drop"])
    fields = json.loads(json.dumps(report.to_dict()))
    assert not fields["conforms"] and [one["status"] for one in fields["results"]] == ["passed", "failed"]
    assert fields["counts"]["drops"] > 0
