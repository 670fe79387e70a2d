"""Checkpoints: fresh ones, what is read, what is written."""

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from checkpoint_tools import GOLDEN, PLAIN, PRUNED, assert_same, configs, directory_of, model_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.checkpoints.weights import CheckpointError, Model
from dcp_ref.config import Config


def test_init_is_gpt2s_and_the_papers():
    config = Config(vocab_size=500, n_positions=64, n_embd=64, n_layer=8, n_head=4, int_n_embd=16)
    params = weights.init_params(config, 3)
    assert {n: a.shape for n, a in params.items()} == weights.shapes(config)
    assert {a.dtype for a in params.values()} == {np.dtype(np.float32)}
    for name, array in params.items():
        if name.endswith("int_bias"):
            assert array == 2
        elif array.ndim == 1:
            assert (array == name.endswith("weight")).all(), name
        else:
            std = 64**-0.5 if "_int." in name else 0.02 / 4 if "c_proj" in name else 0.02
            assert abs(array.std() / std - 1) < 0.1 and abs(array.mean()) < 0.1 * std, name


def test_init_repeats_itself_and_obeys_the_seed():
    first, again, other = (weights.init_params(PRUNED, seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not np.array_equal(first["wte.weight"], other["wte.weight"])


def test_a_directory_that_transformers_wrote():
    config, params, tokenizer = weights.load(GOLDEN / "hf_tiny")
    assert (config.n_layer, config.n_head, config.n_positions, config.vocab_size) == (2, 2, 32, 61)
    assert (config.eos_token_id, config.int_n_embd, tokenizer) == (0, None, None)
    stored = load_file(GOLDEN / "hf_tiny" / "model.safetensors")
    assert_same(params, {name: stored[f"transformer.{name}"] for name in params})
    assert len(stored) == len(params)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("config", [PLAIN, PRUNED])
def test_prefix_buffers_and_order_do_not_matter(tmp_path, prefix, config):
    expected = model_of(config).params
    tensors = {prefix + name: expected[name] for name in reversed(expected)}
    for layer in range(2):
        tensors[f"{prefix}h.{layer}.attn.bias"] = np.ones((1, 1, 6, 6), np.bool_)
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-np.inf, np.float32)
    loaded = weights.load(directory_of(tmp_path, config, tensors))
    assert_same(loaded.params, expected)
    assert loaded.config == config


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
def test_activations(tmp_path, activation):
    config = replace(PLAIN, activation_function=activation, n_inner=7)
    assert weights.load(directory_of(tmp_path, config)).config == config


def test_unknown_fields_are_ignored_and_absent_ones_are_gpt2s(tmp_path):
    directory_of(tmp_path)
    fields = {name: getattr(PLAIN, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"resid_pdrop": 0.1, "task_specific_params": {}}))
    assert weights.load(tmp_path).config == replace(PLAIN, eos_token_id=50256)


def test_an_untied_head_is_used(tmp_path):
    config = replace(PLAIN, tie_word_embeddings=False)
    model = model_of(config)
    assert_same(weights.load(directory_of(tmp_path, config)).params, model.params)
    assert not np.array_equal(model.params["lm_head.weight"], model.params["wte.weight"])


def test_a_tied_copy_of_the_head_is_dropped(tmp_path):
    params = model_of(PLAIN).params
    directory_of(tmp_path, PLAIN, params | {"lm_head.weight": params["wte.weight"]})
    assert_same(weights.load(tmp_path).params, params)


def test_the_tokenizer_is_read(tmp_path):
    tokenizer = Tokenizer.train(["ab"], 258)
    config = replace(PLAIN, vocab_size=258)
    directory_of(tmp_path, config)
    tokenizer.save(tmp_path)
    loaded = weights.load(tmp_path).tokenizer
    assert loaded is not None and loaded.encode("ab c") == tokenizer.encode("ab c")


@given(configs, st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_what_is_saved_is_loaded(tmp_path_factory, config, seed, dtype):
    directory = tmp_path_factory.mktemp("saved")
    model = model_of(config, seed, dtype)
    weights.save(model, directory)
    loaded = weights.load(directory)
    assert (loaded.config, loaded.tokenizer) == (config, None)
    assert_same(loaded.params, model.params)


@pytest.mark.parametrize("tied", [True, False])
def test_the_layout_is_that_of_transformers(tmp_path, tied):
    model = weights.load(GOLDEN / "hf_tiny")
    config = replace(model.config, tie_word_embeddings=tied)
    params = model.params if tied else model.params | {"lm_head.weight": model.params["wte.weight"] + 1}
    weights.save(Model(config, params, None), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        names = {f"transformer.{name}" for name in model.params} | (set() if tied else {"lm_head.weight"})
        assert set(file.keys()) == names
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["model_type"], fields["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
    if tied:
        original = GOLDEN / "hf_tiny" / "model.safetensors"
        assert_same(load_file(tmp_path / "model.safetensors"), load_file(original))


def test_save_makes_directories_writes_the_tokenizer_and_leaves_nothing_else(tmp_path):
    model = model_of(replace(PLAIN, vocab_size=258), tokenizer=Tokenizer.train(["ab"], 258))
    target = tmp_path / "a" / "b"
    for _ in range(2):
        weights.save(model, str(target))
    assert sorted(os.listdir(target)) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert len({stat.S_IMODE(file.stat().st_mode) for file in target.iterdir()}) == 1
    loaded = weights.load(target)
    assert loaded.tokenizer is not None and loaded.tokenizer.encode("abc") == model.tokenizer.encode("abc")
    weights.save(loaded._replace(tokenizer=None), target)
    assert weights.load(target).tokenizer is not None  # stays


def test_save_accepts_arrays_in_any_memory_order(tmp_path):
    model = model_of(PRUNED)
    weights.save(model._replace(params={name: np.asfortranarray(a) for name, a in model.params.items()}), tmp_path)
    assert_same(weights.load(tmp_path).params, model.params)


@pytest.mark.parametrize(("change", "words"), [
    (lambda p: p.pop("ln_f.bias"), "ln_f.bias is missing"),
    (lambda p: p.update(extra=p["ln_f.bias"]), "extra is unexpected"),
    (lambda p: p.update({"ln_f.bias": p["ln_f.bias"][:2]}), "ln_f.bias has shape [2]"),
    (lambda p: p.update({"ln_f.bias": p["ln_f.bias"].astype(int)}), "ln_f.bias has dtype int64"),
    (lambda p: p.update({"ln_f.bias": p["ln_f.bias"] * np.nan}), "ln_f.bias holds a NaN"),
    (lambda p: p.update({"lm_head.weight": p["wte.weight"] * 2}), "lm_head.weight differs"),
])
def test_a_bad_model_is_refused_before_anything_is_written(tmp_path, change, words):
    model = model_of(PRUNED)
    weights.save(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    bad = model._replace(params=dict(model.params), config=replace(PRUNED, n_positions=6))
    change(bad.params)
    with pytest.raises(CheckpointError) as caught:
        weights.save(bad, tmp_path)
    assert words in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_tokenizer_that_is_too_large_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="258 ids"):
        weights.save(model_of(PLAIN, tokenizer=Tokenizer.train(["ab"], 258)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
