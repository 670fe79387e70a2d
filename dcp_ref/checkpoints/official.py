"""State dicts of the paper's own code (github sanagno/adaptively_sparse_attention): from them, and to them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcp_ref.checkpoints.files import BUFFER, HEAD, PREFIX, CheckpointError
from dcp_ref.checkpoints.weights import INTERACTION, Model, Params, checked
from dcp_ref.config import Config

LINEAR = re.compile(r"h\.\d+\..*(c_attn|c_proj|c_fc|q_int|k_int)\.weight")  # [in, out]; the official code: [out, in]
GPT2_EOS = 50256


def from_official(state: Mapping[str, Any], n_head: int, propagate_in_depth: bool, int_delay: int = 0) -> Model:
    """The model of an official state dict. Its values are anything that np.asarray takes; their dtype is kept.

    Raises CheckpointError, naming the tensor.
    """
    params = {}
    for full_name, value in state.items():
        if not BUFFER.fullmatch(full_name):
            name = full_name.removeprefix(PREFIX)
            params[name] = _transposed(name, np.asarray(value))
    vocab_size, n_embd = _matrix_shape(params, "wte.weight")
    n_positions, _ = _matrix_shape(params, "wpe.weight")
    _, n_inner = _matrix_shape(params, "h.0.mlp.c_fc.weight")
    pruned = any(INTERACTION.fullmatch(name) for name in params)
    try:
        config = Config(
            vocab_size=vocab_size, n_positions=n_positions, n_embd=n_embd, n_head=n_head,
            n_layer=sum(name.endswith(".ln_1.weight") for name in params),
            n_inner=None if n_inner == 4 * n_embd else n_inner,
            eos_token_id=GPT2_EOS if vocab_size > GPT2_EOS else None,
            int_n_embd=_matrix_shape(params, "h.0.attn.q_int.weight")[1] if pruned else None,
            propagate_in_depth=propagate_in_depth,
            int_delay=int_delay,
        )
    except ValueError as error:
        raise CheckpointError(f"state: {error}") from None
    return Model(config, checked(config, params, lambda name: "state"), None)


def to_official(params: Params) -> Params:
    """Copies of parameters, or of their gradients, with the names and layouts of the official code.

    Raises CheckpointError for an untied head, which the official code does not have.
    """
    if HEAD in params:
        raise CheckpointError(f"params: {HEAD}: the official code only has tied heads")
    return {PREFIX + name: _transposed(name, array) for name, array in params.items()}


def _transposed(name: str, array: np.ndarray) -> np.ndarray:
    """A copy in the other layout, official or ours: linear weights are transposed."""
    return np.array(array.T if LINEAR.fullmatch(name) else array, order="C")


def _matrix_shape(params: Params, name: str) -> tuple[int, ...]:
    if name not in params or params[name].ndim != 2:
        raise CheckpointError(f"state: {name} is missing or is not a matrix; give the whole state dict")
    return params[name].shape
