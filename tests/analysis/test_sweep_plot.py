"""The plot of a sweep: every line that has points, and a picture."""

import pytest

from dcp_ref.analysis import sweep_plot
from dcp_ref.analysis.sweep import Point

POINTS = [Point(rule, "m", rule, 0.0, share, 30.0 + n, 3.4, None) for n, (rule, share) in enumerate([
    ("dense", 1.0), ("learned", 0.5), ("learned", 0.02), ("learned", 0.0), ("learned, by model", 0.1), ("window", 0.05),
    ("strided", 0.05), ("sinks", 0.05), ("heavy_hitters", 0.05)])]


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for n, points in enumerate([POINTS, POINTS[:1]]):
        sweep_plot.plot(points, tmp_path / f"{n}.png", "title")
        assert (tmp_path / f"{n}.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_leaves_the_older_picture(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    sweep_plot.plot(POINTS, tmp_path / "curve.png", "title")
    before = (tmp_path / "curve.png").read_bytes()

    def half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("no room")

    monkeypatch.setattr(figure.Figure, "savefig", half)
    with pytest.raises(OSError, match="no room"):
        sweep_plot.plot(POINTS[:1], tmp_path / "curve.png", "title")
    assert (tmp_path / "curve.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_every_rule_has_a_line():
    assert {p.rule for p in POINTS} == {"dense", *sweep_plot.STYLES}
