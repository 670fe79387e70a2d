"""A counterfactual is a run with that pair kept: one of these is written here, token by token, with no mask."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import moderate_model
from trace_tools import traced_models

import dcp_ref
from dcp_ref import forward, policies
from dcp_ref.layers import activation, layer_norm, log_softmax
from dcp_ref.policies import for_model

DELTA = {"rtol": 1e-2, "atol": 2e-4}  # a difference of two float32 log-probabilities of size 5
TEXT = "The old man looked at the sea, and the sea looked back at him."


def decode(m, ids, policy, threshold, kept):  # -> logits [T, V], dropped {(layer, j): i}
    """Token by token and layer by layer, with lists of live tokens; `kept` holds triples (layer, i, j)."""
    c, p = m.config, {name: x.astype(np.float64) for name, x in m.params.items()}
    live = [[] for _ in range(c.n_layer)]
    k, v, k_int, got = ([{} for _ in range(c.n_layer)] for _ in range(4))
    gone, logits = {}, []
    for i, token in enumerate(ids):
        x = p["wte.weight"][token] + p["wpe.weight"][i]
        for layer in range(c.n_layer):
            h = f"h.{layer}."
            n = layer_norm(x, p[h + "ln_1.weight"], p[h + "ln_1.bias"], c.layer_norm_epsilon)[0]
            q, k[layer][i], v[layer][i] = np.split(n @ p[h + "attn.c_attn.weight"] + p[h + "attn.c_attn.bias"], 3)
            leaving = {j for j in live[layer] if c.propagate_in_depth and any((e, j) in gone for e in range(layer))}
            scores = {}
            if policy.learned:
                k_int[layer][i] = n @ p[h + "attn.k_int.weight"]
                q_int, beta = n @ p[h + "attn.q_int.weight"], p[h + "attn.int_bias"][0]
                for j in live[layer]:
                    s = q_int @ k_int[layer][j] / math.sqrt(len(q_int)) + beta
                    scores[j] = s
                    margins.append(abs(s - threshold))
                    if not s > threshold and i - j > c.int_delay and (layer, i, j) not in kept:
                        leaving.add(j)
            if policy.budget:
                old = [j for j in live[layer] if j not in leaving and (layer, i, j) not in kept and i - j > c.int_delay]
                old.sort(key=lambda j: (scores[j], j))
                margins.extend(scores[b] - scores[a] for a, b in itertools.pairwise(old))
                leaving |= set(old[: max(len(old) - policy.budget, 0)])
            if policy.window is not None:
                old = [j for j in live[layer] if j not in leaving and (layer, i, j) not in kept
                       and not policy.stays(i, j)]
                old.sort(key=lambda j: (got[layer][j], j))
                margins.extend(10 * abs(got[layer][a] - got[layer][b]) for a, b in itertools.pairwise(old))
                leaving |= set(old[: max(len(old) - (policy.heavy or 0), 0)])
            gone |= {(layer, j): i for j in leaving}
            live[layer] = [j for j in live[layer] if j not in leaving] + [i]
            D, y = c.head_dim, []
            for head in range(c.n_head):
                at = slice(head * D, (head + 1) * D)
                e = np.exp([q[at] @ k[layer][j][at] * c.attention_scale(layer) for j in live[layer]])
                for j, weight in zip(live[layer], e / e.sum(), strict=True):
                    got[layer][j] = got[layer].get(j, 0) + weight
                y.append(sum(weight * v[layer][j][at] for j, weight in zip(live[layer], e / e.sum(), strict=True)))
            x = x + np.concatenate(y) @ p[h + "attn.c_proj.weight"] + p[h + "attn.c_proj.bias"]
            n = layer_norm(x, p[h + "ln_2.weight"], p[h + "ln_2.bias"], c.layer_norm_epsilon)[0]
            hidden, _ = activation(n @ p[h + "mlp.c_fc.weight"] + p[h + "mlp.c_fc.bias"], c.activation_function)
            x = x + hidden @ p[h + "mlp.c_proj.weight"] + p[h + "mlp.c_proj.bias"]
        x = layer_norm(x, p["ln_f.weight"], p["ln_f.bias"], c.layer_norm_epsilon)[0]
        logits.append((p["wte.weight"] if c.tie_word_embeddings else p["lm_head.weight"]) @ x)
    return np.array(logits), gone


margins = []


@settings(max_examples=150)
@given(traced_models(), st.data())
def test_a_counterfactual_is_a_run_with_that_pair_kept(case, data):
    m, policy, threshold, ids = case
    policy = for_model(m.config, policy)
    trace = dcp_ref.trace(m, ids, policy, threshold)
    drops = trace.drops
    own = np.flatnonzero(drops.reason != 1)  # not inherited
    assume(len(own))
    n = data.draw(st.sampled_from(own.tolist()))
    layer, i, j = int(drops.layer[n]), int(drops.dropped_by[n]), int(drops.position[n])
    margins.clear()
    plain, gone = decode(m, ids, policy, threshold, ())
    changed, otherwise = decode(m, ids, policy, threshold, {(layer, i, j)})
    assume(min(margins, default=1) > 1e-4)
    assert gone == {(a, b): c for a, b, c in zip(*drops[:3], strict=True)}
    assert otherwise.get((layer, j), len(ids)) > i
    found = trace.counterfactual(layer, i, j)
    expected = (log_softmax(changed) - log_softmax(plain))[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(expected[:i], 0, atol=1e-12)
    assert found.first == i and len(found.texts) == len(found.delta) == len(ids) - 1 - i
    np.testing.assert_allclose(found.delta, expected[i:], **DELTA)


@given(traced_models())
def test_had_nothing_been_dropped(case):
    m, policy, threshold, ids = case
    found = dcp_ref.trace(m, ids, policy, threshold).counterfactual()
    dense, _ = decode(m, ids, policies.dense, 0.0, ())
    now = forward(m.params, ids[None], m.config, policy=policy, threshold=threshold).logits[0]
    expected = (log_softmax(dense) - log_softmax(now))[np.arange(len(ids) - 1), ids[1:]]
    assert found[:4] == (None, None, None, 0) and len(found.texts) == len(ids) - 1
    np.testing.assert_allclose(found.delta, expected, **DELTA)


def test_those_that_were_asked_for_are_in_the_json():
    trace = dcp_ref.trace(dcp_ref.load("tiny"), TEXT)
    assert trace.to_dict()["counterfactuals"] == [] and trace.to_dict()["everything"] is None
    one, everything = trace.counterfactual(2, 3, 0), trace.counterfactual()
    as_dict = trace.to_dict()
    [found] = as_dict["counterfactuals"]
    assert (found["layer"], found["i"], found["j"], found["first"]) == (2, 3, 0, 3)
    np.testing.assert_array_equal(np.array(found["delta"], np.float32), one.delta)
    np.testing.assert_array_equal(np.array(as_dict["everything"], np.float32), everything.delta)
    assert str(one).startswith("Had token 3 kept token 0 in layer 2, the log-probability of the text after token 3")
    assert str(everything).startswith("Had nothing been dropped, ") and "nats" in str(everything)


def test_what_cannot_be_asked():
    m = dcp_ref.load("tiny")
    trace = dcp_ref.trace(m, TEXT)
    for arguments, words in [((2, 4, 0), "in layer 2, token 4 did not drop token 0: token 3 did"),
                             ((0, 4, 0), "in layer 0, token 4 did not drop token 0: no token did"),
                             ((2, 3), "layer, i and j must be given together"), ((9, 3, 0), "layer must be")]:
        with pytest.raises(ValueError, match=words):
            trace.counterfactual(*arguments)
    [result] = dcp_ref.generate(m, [TEXT], 3, kv="int8", trace=True)
    with pytest.raises(ValueError, match="kv is int8, but what would have been is computed in float32"):
        result.trace.counterfactual()


def test_an_inherited_drop_is_asked_for_where_it_was_decided():
    m = moderate_model(propagate_in_depth=True)
    trace = dcp_ref.trace(m, np.arange(40))
    n = np.flatnonzero(trace.drops.reason == 1)[0]
    layer, j, i = (int(x[n]) for x in trace.drops[:3])
    with pytest.raises(ValueError, match=f"layer {layer} inherited this drop: ask for layer 0, which decided it"):
        trace.counterfactual(layer, i, j)


def test_the_last_token_has_none_to_follow():
    trace = dcp_ref.trace(dcp_ref.load("tiny"), TEXT)
    n = np.flatnonzero(trace.drops.dropped_by == 15)[0]
    found = trace.counterfactual(int(trace.drops.layer[n]), 15, int(trace.drops.position[n]))
    assert found.delta.shape == (0,) and str(found).endswith("no token follows.")
