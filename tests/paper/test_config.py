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
