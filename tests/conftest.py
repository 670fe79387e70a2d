"""Hypothesis profiles, and the training run that several files compare with.

HYPOTHESIS_PROFILE chooses: `dev` explores, `ci` repeats the same examples.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from training_tools import result, run_settings, write_text

from dcp_ref.training import train

settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(  # one failure is enough: do not look for the smallest
    "mutants", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def unbroken(text, tmp_path_factory) -> tuple[bytes, bytes, list[dict]]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(run_settings(text, out), progress=False)
    return result(out)
