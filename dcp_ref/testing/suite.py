"""Running the checks: Hypothesis looks for a history that a cache gets wrong, then for the smallest one."""

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, strategies

from dcp_ref.testing import functions, given_back, shipped
from dcp_ref.testing.cases import Case
from dcp_ref.testing.check_list import BY_NAME, CHECKS, FEWEST, LEAST, Check
from dcp_ref.testing.drawing import draw
from dcp_ref.testing.failures import describe, save
from dcp_ref.testing.judging import Answers, Failure, Verdict, judge
from dcp_ref.testing.report import Report, Result
from dcp_ref.testing.running import Author

SPECIFICATION = "1.1"  # of docs/specification.md: the first number changes when an answer that was right no longer is
FAILURES = "conformance-failures"
SHRINKS = 200  # cases tried to make a failing one smaller


def check_cache(cls: Any, examples: int = 200, seed: int = 0, level: int = 4, failures: str | Path | None = FAILURES,
                checks: list[str] | None = None, first: bool = False) -> Report:
    """Run all checks up to a level on an author's class; nothing is raised for a cache that is wrong.

    `examples` is the number of histories of the largest check; others get a quarter. `failures` is a directory for the
    files of those that fail, made only then; None writes none. `checks` names the ones to run. `first`: end with the
    first that fails, which names the fault.
    Raises ValueError for a class that cannot be run at all, or a name that is no check; OSError.
    """
    author, names = Author(cls), list(BY_NAME) if checks is None else checks
    if unknown := [name for name in [*names, *author.expected] if name not in BY_NAME]:
        raise ValueError(f"{unknown[0]} is no check: give some of {', '.join(BY_NAME)}")
    if examples < 1 or not 0 <= level <= 4:
        raise ValueError(f"examples must be 1 or more and level 0 to 4, not {examples} and {level}")
    chosen = [check for check in CHECKS if check.level <= level and check.name in names]
    results = list[Result]()
    for check in chosen:
        results.append(run_check(author, check, examples, seed, failures))
        if first and not results[-1].ok:
            break
    return Report(author.name, tuple(results), seed, SPECIFICATION)


def run_check(author: Author, check: Check, examples: int, seed: int, failures: str | Path | None) -> Result:
    """One check of a cache. Raises OSError where its files cannot be written."""
    if reason := unsupported(author, check):
        return Result(check.name, check.level, "not supported", message=reason)
    n = max(LEAST, round(examples * check.share)) if check.share else FEWEST
    if np.finfo(author.dtype).bits <= 16:  # of such arithmetic no more is asked than it can do
        check = check._replace(focus=check.focus._replace(large=False))
    if check.name in ("alpha_sigmoid", "mask", "memory", "tiny"):
        result = _special(author, check, n, seed)
    else:
        result = _search(author, check, n, seed, failures)
    return _as_expected(author, result)


def unsupported(author: Author, check: Check) -> str:
    """Why a check does not apply; "" where it does."""
    if check.name in ("alpha_sigmoid", "mask"):
        return "" if callable(getattr(author.cls, check.name, None)) else f"there is no function {check.name}"
    if check.name == "memory" and not callable(getattr(author.cls, "bytes_owned", None)):
        return "there is no method bytes_owned"
    missing = [name for name in check.needs if name not in author.supports]
    return f"`supports` does not name {', '.join(missing)}" if missing else ""


def _special(author: Author, check: Check, n: int, seed: int) -> Result:
    """The checks that are no search for a history."""
    try:
        if check.name == "tiny":
            return shipped.check(author, check)
        wrong, counts = {"alpha_sigmoid": lambda: functions.check_alpha_sigmoid(author.cls, n, seed, author.dtype),
                         "mask": lambda: functions.check_mask(author.cls, n, seed),
                         "memory": lambda: given_back.check(author, check, n, seed)}[check.name]()
    except Exception as raised:  # whatever an author's code may raise
        wrong, counts = f"raised {type(raised).__name__}: {raised}", Counter[str]()
    message = describe(check, _nothing(check), Failure(wrong, -1)) if wrong else ""
    return Result(check.name, check.level, "failed" if wrong else "passed", counts, message=message)


class _Enough(BaseException):
    """Ends Hypothesis's search for a smaller case: it would catch any other exception."""


def _search(author: Author, check: Check, n: int, seed: int, failures: str | Path | None) -> Result:
    counts, errors, close = Counter[str](), (0.0, 0.0), list[str]()
    known: dict[tuple[int, ...], bool] = {}  # by what a case was made from: whether it fails
    worst: list[tuple[Case, Answers, Verdict]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=n, database=None, deadline=None, derandomize=False, print_blob=False,
                         report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
                         phases=(Phase.generate, Phase.shrink))
    @hypothesis.given(strategies.data())
    def histories(data: Any) -> None:
        case = draw(lambda low, high: data.draw(strategies.integers(low, high)), check.name, check.focus,
                    author.supports, author.page)
        if case.draws not in known:
            if worst and len(known) >= tried + (SHRINKS if check.share else SHRINKS // 10):
                raise _Enough
            known[case.draws] = refuses(case)
        if known[case.draws]:
            raise AssertionError(check.name)

    tried = 0  # cases before the first that failed

    def refuses(case: Case) -> bool:
        nonlocal counts, errors, tried
        answers = author.run(case)
        verdict = judge(case, answers, check.focus.outputs, author.page, author.dtype)
        if verdict.failure is not None:
            tried = tried or len(known)
            worst.append((case, answers, verdict))
        elif not worst:
            counts += verdict.counts
            errors = (max(errors[0], verdict.errors[0]), max(errors[1], verdict.errors[1]))
            close.extend(verdict.close)
        return verdict.failure is not None

    try:
        histories()
    except (AssertionError, _Enough):
        assert worst
    return _result(author, check, counts, errors, close, worst, failures)


def _result(author: Author, check: Check, counts: Counter, errors: tuple[float, float], close: list[str],
            worst: list[tuple[Case, Answers, Verdict]], failures: str | Path | None) -> Result:
    if not worst:
        return with_counts(Result(check.name, check.level, "passed", counts, errors, tuple(close)), check)
    case, answers, verdict = min(worst, key=lambda found: (len(found[0].q[0]), len(found[0].ops), found[0].draws))
    assert verdict.failure is not None
    files = save(Path(failures), check, case, answers, verdict.failure, author.cls) if failures is not None else []
    return Result(check.name, check.level, "failed", counts, errors, tuple(close),
                  describe(check, case, verdict.failure), tuple(map(str, files)))


def with_counts(result: Result, check: Check) -> Result:
    """Failed instead of passed where what the check is for has never happened."""
    missing = [name for name in check.must if not result.counts[name]]
    if not missing:
        return result
    return result._replace(status="failed", message=f"{check.name}: shows nothing, as there were no "
                           f"{' and no '.join(missing)}: give more examples, or a smaller page_slots")


def _as_expected(author: Author, result: Result) -> Result:
    if result.check not in author.expected:
        return result
    reason = author.expected[result.check]
    if result.status == "failed":
        return result._replace(status="expected", message=f"{result.check} fails, as is known: {reason}", files=())
    return result._replace(status="passed though expected", message=f"{result.check} is in expected_failures "
                           f"({reason}), and passes: take it out")


def _nothing(check: Check) -> Case:
    return draw(lambda low, high: low, check.name, check.focus, frozenset({"decode"}), 4)


def parametrize_with_checks(cls: Any, examples: int = 200, seed: int = 0, level: int = 4) -> Any:
    """A pytest decorator: the test gets `check`, a function without arguments that raises AssertionError.

        @parametrize_with_checks(MyCache)
        def test_my_cache(check):
            check()

    What the class does not support is skipped; what it expects to fail must fail.
    """
    import pytest

    author = Author(cls)

    def one(check: Check) -> Any:
        def run() -> None:
            result = run_check(author, check, examples, seed, None)
            if not result.ok:
                raise AssertionError(result.message)
            if result.status == "expected":
                pytest.xfail(result.message)

        reason = unsupported(author, check)
        return pytest.param(run, id=check.name, marks=[pytest.mark.skip(reason=reason)] if reason else [])

    return pytest.mark.parametrize("check", [one(check) for check in CHECKS if check.level <= level])
