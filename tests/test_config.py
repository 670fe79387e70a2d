"""Config: the names it reads, and the scale of attention by hand."""

import pytest

from dcp_ref import Config


def test_sizes_under_the_other_names_that_transformers_reads():
    fields = {"hidden_size": 24, "max_position_embeddings": 9, "num_attention_heads": 2, "num_hidden_layers": 3}
    config = Config.from_dict(fields)
    assert (config.n_embd, config.n_positions, config.n_head, config.n_layer) == (24, 9, 2, 3)
    assert Config.from_dict(fields | {"n_head": 2}) == config
    with pytest.raises(ValueError, match="num_attention_heads is 2, but n_head is 4"):
        Config.from_dict(fields | {"n_head": 4})


def test_the_delay_is_0_unless_told():
    assert Config.from_dict({}).int_delay == 0
    assert Config.from_dict({"int_delay": 3}) == Config.from_dict(Config(int_delay=3).to_dict()) == Config(int_delay=3)


def test_the_scale_of_attention():
    sizes = {"n_embd": 32, "n_head": 2}
    assert [Config(**sizes).attention_scale(layer) for layer in (0, 3)] == [0.25, 0.25]
    assert Config(**sizes, scale_attn_weights=False).attention_scale(3) == 1
    by_layer = Config(**sizes, scale_attn_by_inverse_layer_idx=True)
    assert [by_layer.attention_scale(layer) for layer in (0, 3)] == [0.25, 0.0625]
