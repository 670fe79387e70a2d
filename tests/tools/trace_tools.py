"""What the tests of tracing share."""

import numpy as np
from cache_tools import any_policies
from hypothesis import assume
from hypothesis import strategies as st
from models import random_models
from theorem_tools import THRESHOLDS

from dcp_ref.policies import for_model


@st.composite
def traced_models(draw, thresholds=tuple(THRESHOLDS)):
    """A random model, a policy that it can have, a threshold and token ids."""
    m, policy = draw(random_models()), draw(st.none() | any_policies())
    assume(policy is None or not policy.learned or m.config.int_n_embd is not None)
    threshold = draw(st.sampled_from(thresholds)) if for_model(m.config, policy).learned else 0.0
    ids = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 11, draw(st.integers(1, 16)))
    return m, policy, threshold, ids
