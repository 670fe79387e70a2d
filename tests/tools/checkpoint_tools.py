"""What the tests of checkpoints share: small models, directories of them, and how a refusal is checked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.weights import CheckpointError, Model
from dcp_ref.config import Config

SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WIDE = Config(vocab_size=8192, n_positions=64, n_embd=512, n_layer=16, n_head=8)  # 219 MB, the largest tensor 17 MB
GOLDEN = Path(__file__).parents[1] / "golden"
PLAIN = Config(vocab_size=11, n_positions=6, n_embd=4, n_layer=2, n_head=2, eos_token_id=None)
PRUNED = replace(PLAIN, int_n_embd=2)


def model_of(config, seed=0, dtype=np.float32, tokenizer=None):
    """A model whose biases and layer norms are random too."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in weights.shapes(config).items()}
    return Model(config, params, tokenizer)


def directory_of(path, config=PLAIN, tensors=None):
    """A checkpoint directory with exactly these tensors, under exactly these names."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(model_of(config).params if tensors is None else tensors, path / "model.safetensors")
    return path


def edit_config(directory, **fields):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def shard(directory, cut=9):
    """Split model.safetensors in two, as transformers does."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    parts = {SHARDS[0]: list(tensors)[:cut], SHARDS[1]: list(tensors)[cut:]}
    for part, names in parts.items():
        save_file({name: tensors[name] for name in names}, directory / part)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: part for part in parts for name in parts[part]}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def write_raw(file, entries):
    """A safetensors file of {name: (its dtype name, shape, bytes)}, put together by hand; the first is aligned."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in entries.values()))


def assert_same(params, others):
    assert list(params) == list(others)
    for name, array in params.items():
        assert array.dtype == others[name].dtype, name
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def assert_refuses(directory, *words):
    """Loading fails with one CheckpointError whose one line has all these words."""
    with pytest.raises(CheckpointError) as caught:
        weights.load(directory)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


configs = st.builds(
    lambda heads, width, **rest: Config(n_head=heads, n_embd=heads * width, **rest),
    heads=st.integers(1, 3), width=st.integers(1, 3), vocab_size=st.integers(1, 9), n_positions=st.integers(1, 9),
    n_layer=st.integers(1, 3), n_inner=st.none() | st.integers(1, 9), int_n_embd=st.none() | st.integers(1, 4),
    tie_word_embeddings=st.booleans(), propagate_in_depth=st.booleans(), int_delay=st.integers(0, 9),
    scale_attn_weights=st.booleans(), activation_function=st.sampled_from(["gelu_new", "gelu", "relu"]),
    eos_token_id=st.none() | st.integers(0, 8), layer_norm_epsilon=st.sampled_from([1e-5, 1e-6, 0.1]),
    scale_attn_by_inverse_layer_idx=st.booleans(),
)


def write_zeros(directory, config, name="F32", itemsize=4, tied_copy=False):
    """A checkpoint of zeros that take no room on the disk; returns their bytes."""
    shapes = weights.shapes(config) | ({"lm_head.weight": (8192, 512)} if tied_copy else {})
    ends = np.cumsum([itemsize * np.prod(shape) for shape in shapes.values()]).tolist()
    header = {tensor: {"dtype": name, "shape": shape, "data_offsets": [start, end]}
              for (tensor, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + ends[-1])
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return ends[-1]
