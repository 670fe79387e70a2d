"""Random models for tests: small, and with weights large enough for every part to matter."""

import dataclasses
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from dcp_ref import Config, Model
from dcp_ref.checkpoints import weights
from dcp_ref.config import ACTIVATIONS

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
DELAYS = st.sampled_from([0, 0, 1, 3, 2**40])
SMALL = Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=3, n_head=2, int_n_embd=4, eos_token_id=None)


def random_params(config, seed, dtype=np.float64):
    """Normal with deviation 0.4, so that gates are open as well as shut; layer norms' gains around 1."""
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape) * 0.4 for name, shape in weights.shapes(config).items()}
    gains = ("ln_1.weight", "ln_2.weight", "ln_f.weight")
    return {name: (x + name.endswith(gains)).astype(dtype) for name, x in params.items()}


class RandomModel(Model):
    """Shows how to make it again instead of all its numbers, which Hypothesis would not print."""

    seed = beta = None

    def __repr__(self):
        return f"random_model({self.config}, seed={self.seed}, beta={self.beta})"


def random_model(config, seed, beta):
    """A float32 model of random_params, with `beta` added to its biases of the scores."""
    params = random_params(config, seed, np.float32)
    for name in params:
        if name.endswith("int_bias"):
            params[name] += np.float32(beta)
    model = RandomModel(config, params, None)
    model.seed, model.beta = seed, beta
    return model


@st.composite
def random_models(draw):
    """float32 models over which the theorem ranges."""
    config = dataclasses.replace(
        SMALL,
        n_positions=16,
        n_layer=draw(st.integers(1, 3)),
        n_head=draw(st.sampled_from([1, 2, 4])),
        int_n_embd=draw(st.sampled_from([1, 3, 4, None])),
        propagate_in_depth=draw(st.booleans()),
        int_delay=draw(DELAYS),
        tie_word_embeddings=draw(st.booleans()),
        n_inner=draw(st.sampled_from([None, 5])),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 0.1])),
        scale_attn_weights=draw(st.booleans()),
        activation_function=draw(st.sampled_from(ACTIVATIONS)),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
    )
    return random_model(config, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 1.0, 2.0])))


def moderate_model(seed=0, beta=2.5, **changes):
    """Large enough for several threads and pages; of 120 tokens about a third stay, when beta is 2.5."""
    config = Config(vocab_size=300, n_positions=128, n_embd=96, n_layer=2, n_head=3, int_n_embd=16)
    config = dataclasses.replace(config, **changes)
    model = random_model(config, seed, beta)
    for name, x in model.params.items():
        if x.ndim == 2 and not name.startswith(("wte", "wpe")):
            np.multiply(x, np.sqrt(8 / config.n_embd), out=x, casting="unsafe")  # random_params is for 8 channels
    return model
