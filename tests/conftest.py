"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: `dev` explores, `ci` repeats the same examples."""

import os

from hypothesis import HealthCheck, Phase, settings

settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(  # one failure is enough: do not look for the smallest
    "mutants", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
