"""The official code's state dicts: its names and layouts, there and back."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoint_tools import GOLDEN, PLAIN, assert_same, configs, model_of
from hypothesis import given
from hypothesis import strategies as st

from dcp_ref.checkpoints import official
from dcp_ref.checkpoints.weights import CheckpointError
from dcp_ref.config import Config


def official_state():
    with np.load(GOLDEN / "official_small.npz") as golden:
        return {name.removeprefix("param/"): golden[name] for name in golden.files if name.startswith("param/")}


def test_the_official_state_dict():
    state = official_state()
    with np.load(GOLDEN / "official_small.npz") as golden:
        n_layer, n_head, n_embd, int_n_embd, block_size, vocab_size = golden["config"].tolist()
    config, params, tokenizer = official.from_official(state, n_head, propagate_in_depth=True)
    assert config == Config(
        vocab_size=vocab_size, n_positions=block_size, n_embd=n_embd, n_layer=n_layer, n_head=n_head, n_inner=None,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, tie_word_embeddings=True, eos_token_id=None,
        int_n_embd=int_n_embd, propagate_in_depth=True,
    )
    assert tokenizer is None
    for name, array in params.items():
        original = state[f"transformer.{name}"]
        turned = name.startswith("h.") and array.ndim == 2
        np.testing.assert_array_equal(array, original.T if turned else original)
        assert array.dtype == np.float64 and array.flags.c_contiguous and array.flags.owndata
    back = official.to_official(params)
    assert_same(dict(sorted(back.items())), dict(sorted(state.items())))


def test_gradients_go_to_the_official_names_and_layouts():
    params = official.from_official(official_state(), 2, False).params
    state = official.to_official({name: 2 * array for name, array in params.items()})
    with np.load(GOLDEN / "official_small.npz") as golden:
        prefix = "depth0/alpha2.0/grad/"
        expected = {n.removeprefix(prefix): golden[n].shape for n in golden.files if n.startswith(prefix)}
    assert {name: array.shape for name, array in state.items()} == expected


official_configs = configs.filter(
    lambda c: c.tie_word_embeddings).map(
    lambda c: replace(c, activation_function="gelu_new", layer_norm_epsilon=1e-5, scale_attn_weights=True,
                      scale_attn_by_inverse_layer_idx=False, eos_token_id=None))


@given(official_configs, st.integers(0, 2**32), st.sampled_from([np.float16, np.float32, np.float64]))
def test_official_round_trip(config, seed, dtype):
    model = model_of(config, seed, dtype)
    state = official.to_official(model.params)
    for name, array in state.items():
        assert not np.shares_memory(array, model.params[name.removeprefix("transformer.")])
    back = official.from_official(state, config.n_head, config.propagate_in_depth, config.int_delay)
    assert replace(back.config, n_inner=config.n_inner) == config
    assert back.config.inner_dim == config.inner_dim
    assert_same(back.params, model.params)


def test_official_buffers_tied_heads_and_lists_are_understood():
    state = official_state()
    expected = official.from_official(state, 2, False).params
    state["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 16, 16)))
    state["transformer.h.0.attn.bias_int"] = np.tril(np.ones((1, 1, 16, 16)), -1)
    state["lm_head.weight"] = state["transformer.wte.weight"].copy()
    listed = {name: array.tolist() for name, array in state.items()}
    assert_same(official.from_official(listed, 2, False).params, expected)


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.pop("transformer.wte.weight"), "wte.weight is missing"),
    (lambda s: s.pop("transformer.wpe.weight"), "wpe.weight is missing"),
    (lambda s: s.pop("transformer.h.0.mlp.c_fc.weight"), "h.0.mlp.c_fc.weight is missing"),
    (lambda s: s.pop("transformer.h.1.attn.int_bias"), "h.1.attn.int_bias is missing"),
    (lambda s: s.pop("transformer.h.0.attn.q_int.weight"), "h.0.attn.q_int.weight is missing"),
    (lambda s: s.pop("transformer.h.1.ln_1.weight"), "h.1.attn.c_attn.bias is unexpected"),
    (lambda s: s.update({"transformer.wpe.weight": np.zeros(3)}), "wpe.weight is missing or is not a matrix"),
    (lambda s: s.update({"lm_head.weight": 1 + s["transformer.wte.weight"]}), "lm_head.weight differs"),
    (lambda s: s.update({"transformer.x": np.zeros(3)}), "x is unexpected"),
    (lambda s: s.update({"transformer.ln_f.bias": np.full(16, np.inf)}), "ln_f.bias holds"),
    (lambda s: s.update({"transformer.ln_f.bias": np.zeros(16, int)}), "ln_f.bias has dtype int64"),
    (lambda s: s.update({"transformer.h.0.attn.c_attn.weight": np.zeros((16, 48))}), "c_attn.weight has shape"),
])
def test_a_bad_official_state_is_refused(change, words):
    state = official_state()
    change(state)
    with pytest.raises(CheckpointError) as caught:
        official.from_official(state, 2, False)
    assert str(caught.value).startswith("state: ") and words in str(caught.value)


def test_a_number_of_heads_that_does_not_divide():
    with pytest.raises(CheckpointError, match=r"n_embd \(16\) must be a multiple of n_head \(3\)"):
        official.from_official(official_state(), 3, False)


def test_the_official_code_has_no_untied_head():
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        official.to_official(model_of(replace(PLAIN, tie_word_embeddings=False)).params)
