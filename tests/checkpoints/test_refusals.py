"""Tensors, configs and tokenizers that do not fit: what is refused, and in which words."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoint_tools import PLAIN, PRUNED, assert_refuses, directory_of, edit_config, model_of

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer


@pytest.mark.parametrize("name", weights.shapes(PRUNED))
def test_a_missing_tensor(tmp_path, name):
    tensors = model_of(PRUNED).params
    del tensors[name]
    assert_refuses(directory_of(tmp_path, PRUNED, tensors), "model.safetensors", f"{name} is missing")


@pytest.mark.parametrize("name", ["h.2.ln_1.weight", "h.0.attn.rotary", "transformer.wte", "score.weight"])
def test_an_extra_tensor(tmp_path, name):
    tensors = model_of(PLAIN).params | {name: np.zeros(3, np.float32)}
    shown = name.removeprefix("transformer.")
    assert_refuses(directory_of(tmp_path, PLAIN, tensors), "model.safetensors", f"{shown} is unexpected", "n_layer 2")


@pytest.mark.parametrize("name", weights.shapes(PRUNED))
def test_a_misshapen_tensor(tmp_path, name):
    tensors = model_of(PRUNED).params
    shape = [*tensors[name].shape[:-1], tensors[name].shape[-1] + 1]
    tensors[name] = np.zeros(shape, np.float32)
    words = f"{name} has shape {shape}", f"the config says {list(weights.shapes(PRUNED)[name])}"
    assert_refuses(directory_of(tmp_path, PRUNED, tensors), "model.safetensors", *words)


def test_a_transposed_tensor(tmp_path):
    tensors = model_of(PLAIN).params
    tensors["h.1.attn.c_attn.weight"] = np.ascontiguousarray(tensors["h.1.attn.c_attn.weight"].T)
    assert_refuses(directory_of(tmp_path, PLAIN, tensors), "h.1.attn.c_attn.weight has shape [12, 4]", "[4, 12]")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite(tmp_path, value, dtype):
    tensors = model_of(PLAIN, dtype=dtype).params
    tensors["h.1.mlp.c_fc.bias"][-1] = value
    directory_of(tmp_path, PLAIN, tensors)
    assert_refuses(tmp_path, "model.safetensors", "h.1.mlp.c_fc.bias", "NaN or an infinity")


def test_a_head_that_differs_though_tied(tmp_path):
    params = model_of(PLAIN).params
    directory_of(tmp_path, PLAIN, params | {"lm_head.weight": params["wte.weight"] + 1})
    assert_refuses(tmp_path, "model.safetensors", "lm_head.weight differs from wte.weight", "tie_word_embeddings")


def test_an_untied_head_that_is_missing(tmp_path):
    directory_of(tmp_path, replace(PLAIN, tie_word_embeddings=False), model_of(PLAIN).params)
    assert_refuses(tmp_path, "model.safetensors", "lm_head.weight is missing", "tie_word_embeddings")


def test_interaction_weights_that_the_config_does_not_mention(tmp_path):
    directory_of(tmp_path, PLAIN, model_of(PRUNED).params)
    assert_refuses(tmp_path, "model.safetensors", "h.0.attn.int_bias is unexpected", "int_n_embd is None")


def test_interaction_weights_that_only_the_config_mentions(tmp_path):
    directory_of(tmp_path, PRUNED, model_of(PLAIN).params)
    assert_refuses(tmp_path, "model.safetensors", "h.0.attn.int_bias is missing", "int_n_embd is 2")


@pytest.mark.parametrize("n_layer", [1, 3, 10**12])
def test_another_number_of_layers(tmp_path, n_layer):
    directory_of(tmp_path)
    edit_config(tmp_path, n_layer=n_layer)
    assert_refuses(tmp_path, "model.safetensors", f"n_layer {n_layer})", f"h.{max(1, n_layer - 1)}.")


@pytest.mark.parametrize(("field", "value"), [
    ("model_type", "llama"), ("model_type", None), ("activation_function", "silu"), ("activation_function", ["relu"]),
    ("n_layer", 0), ("n_layer", "2"), ("n_layer", 2.0), ("n_layer", True), ("n_head", 3), ("n_embd", -4),
    ("vocab_size", None), ("n_positions", [6]), ("n_inner", 0), ("int_n_embd", 0), ("layer_norm_epsilon", 0),
    ("layer_norm_epsilon", "1e-5"), ("layer_norm_epsilon", float("nan")), ("scale_attn_weights", 1),
    ("tie_word_embeddings", "yes"), ("propagate_in_depth", None), ("eos_token_id", "x"),
    ("scale_attn_by_inverse_layer_idx", 0), ("int_delay", -1), ("int_delay", None), ("int_delay", 1.0),
    ("int_delay", True), ("int_delay", "1"),
])
def test_an_impossible_config(tmp_path, field, value):
    directory_of(tmp_path)
    edit_config(tmp_path, **{field: value})
    assert_refuses(tmp_path, "config.json", field)


def test_a_corrupt_tokenizer(tmp_path):
    directory_of(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert_refuses(tmp_path, "tokenizer.json", "download it again")


def test_half_a_tokenizer(tmp_path):
    directory_of(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    assert_refuses(tmp_path, "merges.txt: missing")


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path):
    Tokenizer.train(["ab"], 258).save(directory_of(tmp_path))
    assert_refuses(tmp_path, str(tmp_path), "258 ids", "vocab_size is 11")


@pytest.mark.parametrize(("dtype", "shown"), [(np.int8, "I8"), (np.int64, "I64"), (np.bool_, "BOOL")])
def test_weights_that_are_no_floats(tmp_path, dtype, shown):
    tensors = model_of(PLAIN).params
    tensors["wpe.weight"] = tensors["wpe.weight"].astype(dtype)
    directory_of(tmp_path, PLAIN, tensors)
    assert_refuses(tmp_path, "model.safetensors", f"wpe.weight is stored as {shown}", "F32")


def test_a_tensor_with_and_without_prefix(tmp_path):
    tensors = model_of(PLAIN).params
    tensors["transformer.ln_f.bias"] = tensors["ln_f.bias"]
    assert_refuses(directory_of(tmp_path, PLAIN, tensors), "model.safetensors", "ln_f.bias is there twice")
