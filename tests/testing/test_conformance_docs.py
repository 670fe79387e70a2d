"""The specification and the manual say what the checks do."""

import re
from pathlib import Path

from dcp_ref.testing import SPECIFICATION, running
from dcp_ref.testing.broken import BROKEN
from dcp_ref.testing.check_list import BY_NAME, CHECKS

DOCS = Path(__file__).resolve().parents[2] / "docs"
SPECIFIED, MANUAL = ((DOCS / name).read_text(encoding="utf-8") for name in ("specification.md", "testing.md"))


def test_checks_cite_points_that_exist_and_every_point_is_cited():
    points = [int(n) for n in re.findall(r"^(\d+)\. ", SPECIFIED, re.M)]
    assert points == list(range(1, 26)) and f"Specification {SPECIFICATION} " in SPECIFIED
    cited = {int(n) for check in CHECKS if check.name != "histories" for n in check.points.split(", ")}
    assert cited <= set(points) and {3, 4, 5, 6, 7, 9, 10, *range(13, 26)} <= cited


def test_the_manual_shows_every_failure():
    for cls in BROKEN:
        assert f"**{cls.__name__}**" in MANUAL
        assert f"{cls.meant}: {BY_NAME[cls.meant].fault}" in MANUAL


def test_the_manual_names_what_can_be_supported():
    assert all(f"`{name}`" in MANUAL or f'"{name}"' in MANUAL for name in running.FEATURES)


def test_links_lead_somewhere():
    for text in (SPECIFIED, MANUAL):
        assert all((DOCS / link).exists() for link in re.findall(r"\]\(([^)]+)\)", text))
