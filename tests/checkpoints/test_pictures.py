"""Pictures, and a matplotlib that may be missing or broken."""

import sys

import pytest

from dcp_ref.checkpoints import pictures


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert pictures.unavailable() is None
    pictures.save(pictures.new_figure(2, 1), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("part", ["matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"])
def test_a_matplotlib_that_does_not_work(monkeypatch, part):
    monkeypatch.setitem(sys.modules, part, None)
    problem = pictures.unavailable()
    assert problem.startswith("matplotlib cannot be imported (") and problem.endswith('): pip install "dcp-ref[plot]"')
