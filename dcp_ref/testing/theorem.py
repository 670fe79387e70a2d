"""The theorem for a policy, such as a rule of one's own: decoding drops what the dense forward masks."""

from collections.abc import Sequence

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.model import forward
from dcp_ref.policies import Policy
from dcp_ref.runtime.engine import BACKENDS, Engine

RTOL, ATOL = 1e-3, 1e-3  # logits in float32, summed in another order


def check_policy(policy: Policy, model: Model, ids: Sequence[int], threshold: float = 0.0,
                 pinned: Sequence[bool] | None = None, backends: Sequence[str] = BACKENDS) -> None:
    """Decode these token ids by a policy, cut in several ways, and compare with `forward`, its dense definition.

    Raises AssertionError naming backend, layer and token where the live positions differ, and where logits do. A choice
    that hangs on the last digit of a number may go either way: then give other ids.
    """
    tokens, marks = np.asarray(ids), np.zeros(len(ids), bool) if pinned is None else np.asarray(pinned)
    logits, mask = forward(model.params, tokens[None], model.config, policy=policy, threshold=threshold, pinned=marks)
    mask = np.cumprod(mask, axis=0) if model.config.propagate_in_depth else mask
    for backend in backends:
        for cut in sorted({1, 3, len(tokens)}):
            engine = Engine(model, backend, policy=policy, threshold=threshold)
            sequence = engine.new_sequence()
            for start in range(0, len(tokens), cut):
                part, where = slice(start, start + cut), f"{backend}, {cut} tokens at a time"
                [got] = engine.feed([sequence], [tokens[part]], logits="all", pinned=[marks[part]])
                i = start + len(got) - 1
                for layer in range(model.config.n_layer):
                    live = engine.live_positions(sequence, layer).tolist()
                    wanted = np.flatnonzero(mask[layer, 0, i, : i + 1] > 0).tolist()
                    assert live == wanted, (f"policy {policy}, {where}: after token {i}, layer {layer} holds {live}, "
                                            f"and the dense forward keeps {wanted}")
                np.testing.assert_allclose(got, logits[0, part], RTOL, ATOL, err_msg=f"policy {policy}, {where}")
