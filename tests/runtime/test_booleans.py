"""True passes for 1 in Python: where a number or a path is asked for it is a mistake, and named."""

import dataclasses

import numpy as np
import pytest
from text_models import text_model

from dcp_ref import Config, Engine, generate, policies
from dcp_ref.analysis import perplexity, tasks
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.sampling import Sampling
from dcp_ref.training import TrainSettings

MODEL = text_model()
NEEDED = {"text": ("a",), "out": "b", "prune": True, "init": "i", "teacher": "t"}


def not_flags(cls):
    return [f.name for f in dataclasses.fields(cls) if f.type is not bool]


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", not_flags(TrainSettings))
def test_settings_of_training(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        TrainSettings(**NEEDED | {name: value})
    if name in ("text", "valid"):
        with pytest.raises(ValueError, match=f"^{name} must be a path, not {value}"):
            TrainSettings(**NEEDED | {name: (value,)})


@pytest.mark.parametrize("name", not_flags(Config))
def test_fields_of_a_config(name):
    with pytest.raises(ValueError, match=f"config: {name} "):
        Config(**{name: True})


@pytest.mark.parametrize("name", not_flags(Sampling))
def test_sampling(name):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Sampling(**{name: True})


@pytest.mark.parametrize("name", ["threshold", "threads", "max_cache_bytes"])
def test_options_of_an_engine(name):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Engine(MODEL, "numpy", **{name: True})


@pytest.mark.parametrize(("name", "call"), [
    ("max_new_tokens", lambda: generate(MODEL, ["the"], max_new_tokens=True)),
    ("seed", lambda: generate(MODEL, ["the"], 1, seed=True)),
    ("prompts", lambda: generate(MODEL, [[True, 2]], 1)),
    ("window", lambda: policies.window(True)),
    ("max_bytes", lambda: KVCache(MODEL.config, max_bytes=True)),
    ("stride", lambda: perplexity.check_windows(MODEL.config, np.arange(9), 4, True)),
    ("batch", lambda: perplexity.evaluate(Engine(MODEL, "numpy"), np.arange(9), 4, 4, batch=True)),
    ("limit", lambda: tasks.read_questions("piqa", "nowhere", True)),
])
def test_other_numbers(name, call):
    with pytest.raises(ValueError, match=f"{name}.* must be "):
        call()
