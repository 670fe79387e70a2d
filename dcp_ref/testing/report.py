"""What came of the checks: a line for each, the counts, and each failure as its author needs it."""

from collections import Counter
from typing import Any, NamedTuple

COUNTED = ("examples", "steps", "drops", "reused slots", "pages crossed", "skipped decisions")
SHOWN = 5  # close decisions


class Result(NamedTuple):
    """One check. `status`: passed, failed, not supported, expected (to fail, and it did) or passed though expected.

    `errors`: the largest of attention, own and reference's. `message` says what failed, or why nothing ran.
    """

    check: str
    level: int
    status: str
    counts: Counter = Counter()  # noqa: RUF012 - never changed in place
    errors: tuple[float, float] = (0.0, 0.0)
    close: tuple[str, ...] = ()
    message: str = ""
    files: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status in ("passed", "not supported", "expected")


class Report(NamedTuple):
    """All results of one cache. `str` is what a terminal shows, `to_dict` what JSON holds."""

    name: str
    results: tuple[Result, ...]
    seed: int = 0
    specification: str = ""

    @property
    def ok(self) -> bool:
        """Whether the cache conforms in all that it supports: no check failed, and at least one passed."""
        return all(result.ok for result in self.results) and any(r.status == "passed" for r in self.results)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that are not as they should be, in order: the first names the fault."""
        return [result.check for result in self.results if not result.ok]

    @property
    def counts(self) -> Counter:
        """Sums over all checks."""
        return sum((result.counts for result in self.results), Counter())

    def __str__(self) -> str:
        lines = [f"{self.name}, specification {self.specification}, seed {self.seed}", "",
                 f"{'level':6}{'check':15}{'':15}{'examples':>9}{'drops':>8}  largest error: own, reference"]
        for r in self.results:
            numbers = f"{r.counts['examples']:9}{r.counts['drops']:8}" if r.counts else ""
            errors = f"  {r.errors[0]:.2g}, {r.errors[1]:.2g}" if any(r.errors) else ""
            lines.append(f"{r.level:<6}{r.check:15}{r.status:15}{numbers}{errors}".rstrip())
        lines += ["", ", ".join(f"{self.counts[name]:,} {name}" for name in COUNTED)]
        close = [line for r in self.results for line in r.close]
        if close:
            lines += ["Too close to the threshold to be judged; the cache's own decision was taken:",
                      *(f"  {line}" for line in close[:SHOWN]),
                      *[f"  ... and {len(close) - SHOWN} more"] * (len(close) > SHOWN)]
        for r in self.results:
            if r.message and r.status != "not supported":
                lines += ["", r.message, *(f"  written: {file}" for file in r.files)]
        lines += ["", f"{self.name} {'conforms' if self.ok else 'does not conform'}: {self.verdict()}"]
        return "\n".join(lines)

    def verdict(self) -> str:
        """One line: how many checks passed, failed and did not apply."""
        found = Counter(result.status for result in self.results)
        return ", ".join(f"{n} {status}" for status, n in found.items())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        results = [{**r._asdict(), "counts": dict(r.counts)} for r in self.results]
        return {"name": self.name, "conforms": self.ok, "specification": self.specification, "seed": self.seed,
                "counts": dict(self.counts), "results": results}
