"""csrc/decode.c beside the same walk in Python over the same kernels in C: the same bits, the same drops."""

import numpy as np
import pytest
from cache_tools import any_policies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import moderate_model, random_model, random_models

from dcp_ref import Config, Engine, native

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import kernels
from dcp_ref.native.cache import NativeCache
from dcp_ref.policies import for_model
from dcp_ref.runtime.decoder import Decoder
from dcp_ref.runtime.precision import MATRICES, STORAGES

MODEL = moderate_model()
BITS = np.testing.assert_array_equal


class Walks:
    """An engine, and the walk in Python over a NativeCache of its own: fed the same, they agree."""

    def __init__(self, model, policy=None, weights="float32", kv="float32"):
        policy = for_model(model.config, policy)
        self.engine = Engine(model, "native", policy=policy, weights=weights, kv=kv)
        self.cache = NativeCache(model.config, policy=policy, kv=kv)
        self.decoder = Decoder(model, kernels, self.cache, weights)

    def feed(self, handles, tokens, logits="all"):
        counts, drops = [len(row) for row in tokens], []
        ids, ends = np.concatenate(tokens).astype(np.int64), np.cumsum(counts)
        wanted = ends - 1 if logits == "last" else np.arange(len(ids))
        expected, left = self.decoder.walk(self.cache.reserve(handles, counts), ids, wanted)
        got = kernels.rows(len(wanted), self.engine.config.vocab_size)
        self.engine._decoder.feed(handles, counts, ids, wanted, got, drops)
        BITS(got, expected)
        for ours, theirs in zip(drops, left, strict=True):
            BITS(ours, theirs)
        BITS(self.engine.live_counts(handles), self.cache.live_counts(handles))

    def both(self, method, *arguments):
        [handle] = {getattr(each, method)(*arguments) for each in (self.engine, self.cache)}
        return handle


@settings(max_examples=60)
@given(st.data(), random_models(), any_policies(), st.sampled_from(STORAGES), st.sampled_from(STORAGES))
def test_any_model_and_history(data, model, policy, weights, kv):
    assume(model.config.int_n_embd is not None or not policy.learned)
    walks = Walks(model, policy, weights, kv)
    left = {walks.both("new_sequence"): model.config.n_positions for _ in range(3)}
    for _ in range(6):
        open_ones = sorted(handle for handle in left if left[handle])
        if not open_ones:
            break
        chosen = data.draw(st.lists(st.sampled_from(open_ones), min_size=1, unique=True))
        counts = [data.draw(st.integers(1, min(left[handle], 5))) for handle in chosen]
        tokens = [data.draw(st.lists(st.integers(0, 10), min_size=n, max_size=n)) for n in counts]
        walks.feed(chosen, tokens, data.draw(st.sampled_from(["last", "all"])))
        for handle, n in zip(chosen, counts, strict=True):
            left[handle] -= n
        what = data.draw(st.sampled_from(["fork", "release", "trim", "nothing"]))
        if what == "trim":
            walks.both("trim")
        elif what == "fork":
            left[walks.both("fork", chosen[0])] = left[chosen[0]]
        elif what == "release" and len(left) > 1:
            walks.both("release", chosen[0])
            del left[chosen[0]]


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("logits", ["last", "all"])
def test_prompts_of_several_rounds(propagate, logits):
    """Longer than a round of rows, and than a page; several of unequal length."""
    walks = Walks(moderate_model(propagate_in_depth=propagate))
    handles = [walks.both("new_sequence") for _ in range(3)]
    rng = np.random.default_rng(0)
    for counts in ([100, 1, 49], [1, 1, 1], [3, 70, 2]):
        walks.feed(handles, [rng.integers(0, 300, n) for n in counts], logits)


@pytest.mark.parametrize("weights", STORAGES)
def test_rows_that_stand_further_apart(weights):
    config = Config(vocab_size=1024, n_positions=16, n_embd=1024, n_layer=2, n_head=2, n_inner=2048, int_n_embd=4)
    walks = Walks(random_model(config, 0, 1.0), weights=weights)
    handles = [walks.both("new_sequence") for _ in range(3)]
    for tokens in ([[1], [2], [3]], [[4, 5, 6], [7], [8, 9]]):
        walks.feed(handles, tokens, "last")


def test_logits_do_not_depend_on_what_else_is_recorded():
    engine = Engine(MODEL, "native")
    a, b = engine.new_sequence(), engine.new_sequence()
    [plain] = engine.feed([a], [list(range(60))])
    out = kernels.rows(1, MODEL.config.vocab_size)
    engine._decoder.feed([b], [60], np.arange(60), np.array([59]), out, [])
    BITS(out[0], plain)


def test_a_sequence_in_the_middle_of_a_step_is_refused():
    engine = Engine(MODEL, "native")
    sequence, cache, row = engine.new_sequence(), engine._cache, np.ones((1, 96), np.float32)
    cache.step(0, cache.reserve([sequence], [1]), row, row, row, row[:, :16], row[:, :16])
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        engine.feed([sequence], [[1]])


def test_weights_stand_side_by_side():
    """As they are read: one after the other in as few large pages as may be."""
    weights = Engine(MODEL, "native")._decoder.weights
    panels = [weights.wte.panels, *(p[name].panels for p in weights.layers for name in MATRICES)]
    ends = [x.ctypes.data + x.nbytes for x in panels]
    gaps = [x.ctypes.data - end for x, end in zip(panels[1:], ends, strict=False)]
    assert all(0 <= gap < 64 + 128 * MODEL.config.n_embd * 4 for gap in gaps)  # in between: interaction, alignment
