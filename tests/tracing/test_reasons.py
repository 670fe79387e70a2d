"""A score taken apart adds up to the score, in each of the three ways."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from models import moderate_model
from trace_tools import traced_models

import dcp_ref
from dcp_ref import block, policies
from dcp_ref.policies import for_model

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums of a few dozen numbers of size 1
TEXT = "The old man looked at the sea, and the sea looked back at him."


@given(traced_models(), st.data())
def test_why_adds_up(case, data):
    m, policy, threshold, ids = case
    assume(for_model(m.config, policy).learned and len(ids) > 1)
    trace = dcp_ref.trace(m, ids, policy, threshold, "numpy")
    layer = data.draw(st.integers(0, m.config.n_layer - 1))
    i = data.draw(st.integers(1, len(ids) - 1))
    j = data.draw(st.integers(0, i - 1))
    why = trace.why(layer, i, j)
    expected = dense_scores(m, trace, layer)[:, j]
    np.testing.assert_allclose(why.score, expected[i], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(why.terms.sum() + why.beta, why.score, **ROUNDING)
    np.testing.assert_allclose(why.query_parts.sum() + why.beta, why.score, **ROUNDING)
    np.testing.assert_allclose(why.key_parts.sum() + why.beta, why.score, **ROUNDING)
    np.testing.assert_allclose(why.history, expected[j + 1 : i + 1], rtol=1e-3, atol=1e-4)
    assert why.parts == ("embedding", "position", *(f"h.{n}.{part}" for n in range(layer) for part in ("attn", "mlp")),
                         "ln_1.bias")
    assert len(why.parts) == len(why.query_parts) == len(why.key_parts) and len(why.terms) == m.config.int_n_embd
    left = j + trace.lifetime[layer, j]
    assert why.dropped_by == (left if left < len(ids) else None)


def dense_scores(m, trace, layer):
    """The scores of the model's own layers, under the masks of the trace."""
    found, plain = [], block.scores

    def scores(*args):
        s, saved = plain(*args)
        found.append(s[0].copy())  # the threshold is subtracted in place
        return s, saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "scores", scores)
        dcp_ref.forward(m.params, trace.ids[None], m.config, policy=trace.policy, threshold=trace.threshold)
    return found[layer * len(found) // m.config.n_layer]  # a budget asks for them once more


def test_the_embedding_alone_decides_in_a_layer_of_embeddings():
    """Position embeddings and ln_1's bias of 0: all of layer 0's score is the embedding's."""
    m = moderate_model()
    params = dict(m.params) | {"wpe.weight": np.zeros_like(m.params["wpe.weight"]),
                               "h.0.ln_1.bias": np.zeros_like(m.params["h.0.ln_1.bias"])}
    why = dcp_ref.trace(m._replace(params=params), np.arange(20)).why(0, 9, 3)
    assert (why.query_parts[1:] == 0).all() and (why.key_parts[1:] == 0).all()
    np.testing.assert_allclose(why.query_parts[0], why.score - why.beta, **ROUNDING)


def test_the_parts_of_all_drops_are_those_of_why():
    trace = dcp_ref.trace(dcp_ref.load("tiny"), TEXT, threshold=0.5)
    assert len(trace.drops.layer) > 20
    for n, (layer, j, i, score, *_) in enumerate(zip(*trace.drops, strict=True)):
        why = trace.why(layer, i, j)
        assert why.score == score and why.dropped_by == i
        for row, parts in ((trace.parts.query[n], why.query_parts), (trace.parts.key[n], why.key_parts)):
            there = ~np.isnan(row)
            assert there.nonzero()[0].tolist() == [*range(2 + 2 * layer), 2 * len(trace.lifetime)]
            np.testing.assert_allclose(row[there], parts, **ROUNDING)


def test_a_trace_of_fewer_bits_takes_apart_what_was_computed_with_these():
    m = dcp_ref.load("tiny")
    [result] = dcp_ref.generate(m, [TEXT], 20, weights="int8", kv="int8", trace=True)
    drops = result.trace.drops
    assert (drops.score <= 2e-5).all()  # TINY_MARGIN
    whole = dcp_ref.trace(m, result.trace.ids)
    assert np.abs(result.trace.interaction.q - whole.interaction.q).max() > 1e-3  # the bits do matter


@pytest.mark.parametrize(("layer", "i", "j", "words"), [
    (4, 2, 1, "layer must be 0"), (-1, 2, 1, "layer must be 0"), (0, 2, 2, "j < i < 16"), (0, 16, 2, "j < i < 16"),
    (0, 1, -1, "j < i < 16"), (0, 1.0, 0, "i and j must be integers"), (0, True, 0, "i and j must be integers")])
def test_a_pair_that_is_none(layer, i, j, words):
    trace = dcp_ref.trace(dcp_ref.load("tiny"), TEXT)
    with pytest.raises(ValueError, match=words):
        trace.why(layer, i, j)


def test_no_score_no_reason():
    with pytest.raises(ValueError, match="policy window:3: no score decides what is dropped; trace with a learned"):
        dcp_ref.trace(dcp_ref.load("tiny"), TEXT, policies.window(3)).why(0, 2, 1)


def test_the_text_says_who_and_why():
    trace = dcp_ref.trace(dcp_ref.load("tiny"), TEXT)
    text = str(trace.why(2, 3, 0))
    assert "Layer 2: ' looked' (3) gives 'The' (0) the score -" in text and "Here the token was dropped." in text
    assert "Token 3 dropped it, before that." in str(trace.why(2, 5, 0))
    assert "Token 3 dropped it, later." in str(trace.why(2, 1, 0))
    assert "held the token to the end" in str(trace.why(0, 9, 0))
    assert max(map(len, text.splitlines())) <= 100 and "h.1.mlp" in text
