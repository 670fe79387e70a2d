"""Checkpoints: directories in Hugging Face layout, checked when they are read, and written whole.

    config.json          Config
    model.safetensors    the parameters; or shards of them, listed in model.safetensors.index.json
    tokenizer.json       or vocab.json and merges.txt, with their settings (tokenizer_files.py); may be missing
    generation_config.json   its eos_token_id, if it has one, overrides config.json's

In memory the parameters are one flat dict of arrays: `shapes` lists the names.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.files import HEAD, CheckpointError
from dcp_ref.checkpoints.replacing import current, steady
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.config import Config

GENERATION = "generation_config.json"
INTERACTION = re.compile(r"h\.\d+\.attn\.(q_int\.weight|k_int\.weight|int_bias)")
Params: TypeAlias = dict[str, np.ndarray]
DTYPES = (np.float16, np.float32, np.float64)


class Model(NamedTuple):
    """A config, its parameters, and a tokenizer or None."""

    config: Config
    params: Params
    tokenizer: Tokenizer | None


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter, in order; weights are [in, out]."""
    C, inner, r = config.n_embd, config.inner_dim, config.int_n_embd
    block: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (C,), "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C), "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C), "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,), "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, inner), "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, C), "mlp.c_proj.bias": (C,),
    }
    if r is not None:
        block |= {"attn.q_int.weight": (C, r), "attn.k_int.weight": (C, r), "attn.int_bias": (1,)}
    result: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.n_positions, C)}
    for layer in range(config.n_layer):
        result |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    result |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return result if config.tie_word_embeddings else result | {"lm_head.weight": (config.vocab_size, C)}


def init_params(config: Config, seed: int) -> Params:
    """New random float32 parameters: GPT-2's initialisation, and the paper's for interaction weights, with beta = 2."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes(config).items():
        if len(shape) == 1:  # layer norms' weights, beta, other biases
            value = 1 if name.endswith("weight") else 2 if name.endswith("int_bias") else 0
            params[name] = np.full(shape, value, np.float32)
            continue
        std = 1 / math.sqrt(config.n_embd) if INTERACTION.fullmatch(name) else 0.02
        if name.endswith("c_proj.weight"):  # 2L of them are added up
            std /= math.sqrt(2 * config.n_layer)
        params[name] = rng.standard_normal(shape, np.float32) * np.float32(std)
    return params


def load(path_or_name: str | PathLike[str]) -> Model:
    """The model in a directory, or else the shipped model with that name, or else the one in Hugging Face's cache.

    A name of the hub may have a revision, as in gpt2@REVISION (hub.py); nothing is ever downloaded.

    float32 and float64 weights are read-only views of the mapped file. Copy one to change it, and do not write into the
    file while the model is in use; `save` is fine, as it replaces the file. 16-bit weights become float32 copies.
    If a save comes in between, all files are read again, so they belong together. Raises CheckpointError.
    """
    return steady(files.find_model(path_or_name), _load)


def _load(directory: Path) -> Model:
    config, says_end = _read_config(directory)
    params = checked(config, *files.read_tensors(directory))
    try:
        tokenizer = Tokenizer.from_directory(directory, config.ends if says_end else (), config.vocab_size)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    _check_tokenizer(config, tokenizer, directory)
    if not says_end and tokenizer is not None and tokenizer.eos_id is not None:
        config = dataclasses.replace(config, eos_token_id=tokenizer.eos_id)
    return Model(config, params, tokenizer)


def _read_config(directory: Path) -> tuple[Config, bool]:
    """The config, and whether a file names its eos_token_id; otherwise that is GPT2Config's default."""
    file, generation = directory / "config.json", directory / GENERATION
    fields = files.read_json(file)
    told = files.read_json(generation) if current(generation).exists() else {}
    for name in ("forced_eos_token_id", "stop_strings"):
        if fields.get(name) is not None or told.get(name) is not None:
            raise CheckpointError(f"{generation if told.get(name) is not None else file}: {name} would end a text, but "
                                  "is not obeyed; remove it (generate has `stop`)")
    try:
        config = Config.from_dict(fields)
        if "eos_token_id" in told:
            file = generation
            config = dataclasses.replace(config, eos_token_id=told["eos_token_id"])
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return config, "eos_token_id" in fields or "eos_token_id" in told


def save(model: Model, directory: str | PathLike[str]) -> None:
    """Write a directory for `load`, and for transformers if the model has no interaction weights.

    The files are replaced together or not at all (replacing.py). A model without a tokenizer leaves the directory's
    tokenizer as it is. Raises CheckpointError, before anything is written, for a model that `load` would refuse; and
    OSError.
    """
    config, params, tokenizer = model
    params = checked(config, params, lambda name: "model")
    _check_tokenizer(config, tokenizer, "model")
    with files.replacing(Path(directory)) as temporary:
        (temporary / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        files.write_tensors(temporary / "model.safetensors", params)
        if tokenizer is not None:
            tokenizer.save(temporary)
        if current(Path(directory) / GENERATION).exists():  # it overrides config.json
            fields = files.read_json(Path(directory) / GENERATION) | {"eos_token_id": config.eos_token_id}
            (temporary / GENERATION).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def hash_of(model: Model) -> str:
    """SHA-256 of a model's config and weights, in hexadecimal digits; but for kept_thresholds, which measure both."""
    fields = {name: x for name, x in dataclasses.asdict(model.config).items() if name != "kept_thresholds"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, array in sorted(model.params.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
        files.forget(array)
    return digest.hexdigest()


def checked(config: Config, params: Params, where: Callable[[str], str]) -> Params:
    """The parameters in the order of `shapes`, without a tied copy of the head.

    Raises CheckpointError when they are not finite floats, or do not match the config; where(name) is the file that the
    message names.
    """
    params = dict(params)
    head = params.pop(HEAD, None) if config.tie_word_embeddings else None
    _check_names(config, params, where)
    for name, shape in shapes(config).items():
        array, place = params[name], f"{where(name)}: {name}"
        if array.shape != shape:
            raise CheckpointError(f"{place} has shape {list(array.shape)}, but the config says {list(shape)}; "
                                  "they do not belong together")
        if array.dtype not in DTYPES:
            raise CheckpointError(f"{place} has dtype {array.dtype}; convert it to float32")
        if not np.isfinite([array.min(), array.max()]).all():  # min and max of an array with a NaN are NaN
            raise CheckpointError(f"{place} holds a NaN or an infinity; use an earlier checkpoint")
        files.forget(array)
    if head is not None:
        if not np.array_equal(head, params["wte.weight"]):
            raise CheckpointError(f"{where(HEAD)}: {HEAD} differs from wte.weight, but the config says they are tied; "
                                  "set tie_word_embeddings to false to use it")
        files.forget(head)
        files.forget(params["wte.weight"])
    return {name: params[name] for name in shapes(config)}


def _check_tokenizer(config: Config, tokenizer: Tokenizer | None, place: object) -> None:
    """Raises CheckpointError for a tokenizer with far more ids than the model. A few more may belong to added tokens,
    which no text may use."""
    if tokenizer is not None and tokenizer.vocab_size > 2 * config.vocab_size:
        raise CheckpointError(f"{place}: the tokenizer has {tokenizer.vocab_size} ids, but vocab_size is "
                              f"{config.vocab_size}; use the tokenizer that belongs to the model")


def _check_names(config: Config, params: Params, where: Callable[[str], str]) -> None:
    last = f"h.{config.n_layer - 1}.ln_1.weight"  # first: n_layer may be too large to list all names
    expected = shapes(config).keys() if last in params else {last}
    for name in (*sorted(expected - params.keys()), *sorted(params.keys() - expected)):
        remedy = f"the file is not whole, or is of another model than the config (n_layer {config.n_layer})"
        if INTERACTION.fullmatch(name):
            remedy = f"the config says int_n_embd is {config.int_n_embd}: null is a plain GPT-2, else it is their width"
        elif name == HEAD:
            remedy = "the config says tie_word_embeddings is false; true would make wte.weight the head"
        state = "is unexpected" if name in params else "is missing"
        raise CheckpointError(f"{where(name)}: {name} {state}; {remedy}")
