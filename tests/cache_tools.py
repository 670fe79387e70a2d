"""What the tests of both caches share: random inputs of a few layers, and how to feed them."""

import numpy as np
from hypothesis import strategies as st

from dcp_ref.config import Config
from dcp_ref.runtime import native
from dcp_ref.runtime.cache import KVCache

CACHES = [KVCache, native.NativeCache] if native.available() else [KVCache]


@st.composite
def configs(draw):
    return Config(
        vocab_size=1, n_positions=24, n_embd=4, n_head=2, n_layer=draw(st.integers(1, 3)),
        int_n_embd=draw(st.sampled_from([1, 4, 16, None])), propagate_in_depth=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()))


class Inputs:
    """q, k, v [L, T, C]; q_int, k_int [L, T, r], beta [L], small integers unless told: then every score is exact."""

    def __init__(self, config, rows, rng, integers=True):
        L, r = config.n_layer, config.int_n_embd or 0
        self.q, self.k, self.v = rng.normal(size=(3, L, rows, config.n_embd)).astype(np.float32)
        self.q_int, self.k_int = rng.normal(size=(2, L, rows, r)).astype(np.float32)
        self.beta = rng.uniform(0, 3, L)
        if integers:
            self.q_int, self.k_int = rng.integers(-2, 3, size=(2, L, rows, r)).astype(np.float32)
            self.beta = rng.integers(0, 6, L).astype(float)

    def rows(self, config, layer, start, stop):
        arrays = [x[layer, start:stop] for x in (self.q, self.k, self.v, self.q_int, self.k_int)]
        return [*arrays[:3], *((None, None) if config.int_n_embd is None else arrays[3:]), self.beta[layer]]


def walk_layers(cache, sequences, starts, counts, inputs, first=0):
    """Feed rows first, first + 1, ... of the inputs to every layer; returns the (out, dropped) of each."""
    config, inherited, results = cache.config, None, []
    cache.reserve(sequences, counts)
    for layer in range(config.n_layer):
        arguments = inputs.rows(config, layer, first, first + sum(counts))
        results.append(cache.step(layer, sequences, starts, counts, *arguments, inherited))
        inherited = results[-1][1] if config.propagate_in_depth else None
    return results
