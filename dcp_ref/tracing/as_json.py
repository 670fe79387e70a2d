"""A trace as one JSON object: what its page reads.

    format, version, model, policy, threshold (a number, "inf" or "-inf"), backend, n_layer L, int_delay,
    propagate_in_depth, prompt_tokens
    ids [T], texts [T], kinds [T] (indices into kind_names); pinned: positions of tokens that nothing could drop
    drops             layer, position, dropped_by, score, margin (null: no number), reason (indices into reasons): [D]
    lifetime, live_counts   [L][T]
    interaction       null, or q and k (b64, float32 [L, T, r]), beta [L], r
    parts             null, or names (layer l has the first 2 + 2l, and ln_1.bias), query and key (b64, float32): of
                      each drop in turn the 3 + 2l parts of score - beta
    counterfactuals   those that were asked for: layer, i, j, first = i, delta: of the tokens first+1 .. T-1
    everything        null, or the delta of tokens 1 .. T-1 had nothing been dropped

b64 is base64 of little-endian bytes.
"""

import base64
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dcp_ref.tracing.drops import REASONS
from dcp_ref.tracing.kinds import KINDS
from dcp_ref.tracing.scored import part_names

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

FORMAT, VERSION = "dcp_ref.trace", 1


def to_json(trace: "Trace") -> str:
    return json.dumps(to_dict(trace), allow_nan=False)


def to_dict(trace: "Trace") -> dict[str, Any]:
    """The object that the docstring of this file describes."""
    config = trace.config
    return {
        "format": FORMAT, "version": VERSION, "model": trace.name, "policy": str(trace.policy),
        "threshold": trace.threshold if math.isfinite(trace.threshold) else str(trace.threshold),
        "backend": trace.backend, "n_layer": config.n_layer, "int_delay": config.int_delay,
        "propagate_in_depth": config.propagate_in_depth, "prompt_tokens": trace.prompt_tokens,
        "ids": trace.ids.tolist(), "texts": list(trace.texts), "kinds": trace.kinds.tolist(), "kind_names": list(KINDS),
        "pinned": list(trace.pinned),
        "drops": {name: _numbers(array) for name, array in trace.drops._asdict().items()}, "reasons": list(REASONS),
        "lifetime": trace.lifetime.tolist(), "live_counts": trace.live_counts.tolist(),
        **(_scores(trace) if trace.scores else {"interaction": None, "parts": None}),
        **_what_if(trace),
    }


def _scores(trace: "Trace") -> dict[str, Any]:
    q, k, beta = trace.scored
    names, parts = part_names(trace.config.n_layer), trace.parts
    assert parts is not None
    there = ~np.isnan(parts.query)  # False where a layer has no such part
    return {
        "interaction": {"q": _b64(q), "k": _b64(k), "beta": _numbers(beta), "r": q.shape[2], "dtype": "float32"},
        "parts": {"names": list(names[:-1]), "query": _b64(parts.query[there]),
                  "key": _b64(parts.key[there])},
    }


def _what_if(trace: "Trace") -> dict[str, Any]:
    everything = trace.counterfactuals.get((None, None, None))
    return {"counterfactuals": [{"layer": one.layer, "i": one.i, "j": one.j, "first": one.first,
                                 "delta": _numbers(one.delta)}
                                for one in trace.counterfactuals.values() if one.layer is not None],
            "everything": None if everything is None else _numbers(everything.delta)}


def _numbers(array: np.ndarray) -> list[int | float | None]:
    """The numbers in the shortest decimals that give them back; None for what JSON has no number for."""
    if array.dtype.kind in "iu":
        return array.tolist()
    return [float(str(x)) if np.isfinite(x) else None for x in array]


def _b64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")
