"""Config: the names it reads, and the scale of attention by hand."""

import json
import math

import numpy as np
import pytest

from dcp_ref import Config, layers


def test_sizes_under_the_other_names_that_transformers_reads():
    fields = {"hidden_size": 24, "max_position_embeddings": 9, "num_attention_heads": 2, "num_hidden_layers": 3}
    config = Config.from_dict(fields)
    assert (config.n_embd, config.n_positions, config.n_head, config.n_layer) == (24, 9, 2, 3)
    assert Config.from_dict(fields | {"n_head": 2}) == config
    with pytest.raises(ValueError, match="num_attention_heads is 2, but n_head is 4"):
        Config.from_dict(fields | {"n_head": 4})


@pytest.mark.parametrize(("name", "ours"), [
    ("gelu_pytorch_tanh", "gelu_new"), ("gelu_fast", "gelu_new"), ("gelu_accurate", "gelu_new"),
    ("gelu_python_tanh", "gelu_new"), ("gelu_python", "gelu"), ("gelu", "gelu"), ("relu", "relu"),
])
def test_activations_that_are_the_same(name, ours):
    config = Config.from_dict({"activation_function": name})
    assert config == Config(activation_function=name) == Config(activation_function=ours)
    assert config.to_dict()["activation_function"] == ours
    x = np.linspace(-9, 9, 1001)
    formula = {"gelu_fast": lambda: 0.5 * x * (1 + np.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
               "gelu_python": lambda: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
               "relu": lambda: np.maximum(x, 0)}
    if name in formula:  # as transformers writes it
        np.testing.assert_allclose(layers.activation(x, config.activation_function)[0], formula[name](), atol=1e-9)


@pytest.mark.parametrize("name", ["quick_gelu", "gelu_10", "silu", "gelu_", None, [], 3])
def test_other_activations_are_refused(name):
    with pytest.raises(ValueError, match="activation_function"):
        Config.from_dict({"activation_function": name})


def test_what_ends_a_text_may_be_several_ids():
    assert [Config(eos_token_id=eos).ends for eos in (None, 3, (3, 4), [3, 4], [])] == [(), (3,), (3, 4), (3, 4), ()]
    config = Config.from_dict({"eos_token_id": [3, 4]})
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config and hash(config)
    assert (config.to_dict()["bos_token_id"], Config(eos_token_id=None).to_dict()["bos_token_id"]) == (3, None)


def test_the_delay_is_0_unless_told():
    assert Config.from_dict({}).int_delay == 0
    assert Config.from_dict({"int_delay": 3}) == Config.from_dict(Config(int_delay=3).to_dict()) == Config(int_delay=3)


def test_the_scale_of_attention():
    sizes = {"n_embd": 32, "n_head": 2}
    assert [Config(**sizes).attention_scale(layer) for layer in (0, 3)] == [0.25, 0.25]
    assert Config(**sizes, scale_attn_weights=False).attention_scale(3) == 1
    by_layer = Config(**sizes, scale_attn_by_inverse_layer_idx=True)
    assert [by_layer.attention_scale(layer) for layer in (0, 3)] == [0.25, 0.0625]


CARD = Config(kept_thresholds=((0.5, -2), (0.1, 0.25), (0.2, -0.5)))


def test_a_share_that_was_measured_has_its_threshold():
    assert CARD.kept_thresholds == ((0.1, 0.25), (0.2, -0.5), (0.5, -2.0))
    assert [CARD.threshold_for(share) for share, _ in CARD.kept_thresholds] == [0.25, -0.5, -2]
    assert CARD.threshold_for(np.float64(0.2)) == -0.5


def test_between_two_shares_the_threshold_is_linear_in_the_logarithm_of_the_share():
    assert CARD.threshold_for(math.sqrt(0.1 * 0.2)) == pytest.approx(-0.125)
    assert CARD.threshold_for(0.2**0.25 * 0.5**0.75) == pytest.approx(-0.5 * 0.25 - 2 * 0.75)
    shares = np.geomspace(0.1, 0.5, 50)
    assert (np.diff([CARD.threshold_for(share) for share in shares]) < 0).all()


@pytest.mark.parametrize("share", [0.099, 0.51, 0, -0.2, 1, math.nan, math.inf, True, "0.2", None])
def test_a_share_that_the_config_has_no_threshold_for(share):
    with pytest.raises(ValueError, match=r"kept must be from 0\.1 to 0\.5, .* not .*: dcp-ref calibrate"):
        CARD.threshold_for(share)


def test_a_config_without_thresholds_says_how_to_get_them():
    with pytest.raises(ValueError, match=r"kept is 0\.2, but .* has no kept_thresholds: .* dcp-ref calibrate"):
        Config().threshold_for(0.2)


def test_thresholds_there_and_back():
    fields = json.loads(json.dumps(CARD.to_dict()))
    assert fields["kept_thresholds"] == [[0.1, 0.25], [0.2, -0.5], [0.5, -2.0]]
    assert Config.from_dict(fields) == CARD and hash(CARD) == hash(Config.from_dict(fields))
    assert Config.from_dict({}).kept_thresholds == () == Config.from_dict(Config().to_dict()).kept_thresholds


@pytest.mark.parametrize("pairs", [
    None, 3, "pairs", {"0.2": 1}, [0.2, 1], [[0.2]], [[0.2, 1, 2]], [["0.2", 1]], [[0.2, None]], [[True, 1]],
    [[0.2, math.nan]], [[0.2, math.inf]], [[0, 1]], [[-0.1, 1]], [[1.1, 0]], [[math.nan, 0]], [[0.2, 10**400]],
    [[0.2, 1], [0.2, 0]], [[0.2, 1], [0.5, 2]],
])
def test_pairs_that_are_no_thresholds(pairs):
    with pytest.raises(ValueError, match="config: kept_thresholds"):
        Config.from_dict({"kept_thresholds": pairs})
