"""What if a token had been kept: the change of the log-probability of all that follows, computed again."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcp_ref.layers import log_softmax
from dcp_ref.model import forward
from dcp_ref.policies import dense
from dcp_ref.runtime.checks import check_layer
from dcp_ref.tracing.reasons import check_pair

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

MOST = 8  # tokens that `str` shows


class Counterfactual(NamedTuple):
    """What changes had layer `layer` kept token j when token i came; where these are None, had nothing been dropped.

    `delta`: the change of the log-probability, in nats, of each token after `first`, in the text as it is. `texts` are
    those tokens'.
    """

    layer: int | None
    i: int | None
    j: int | None
    first: int
    delta: np.ndarray  # float32 [T - 1 - first]
    texts: tuple[str, ...]

    def __str__(self) -> str:
        what = "Had nothing been dropped" if self.layer is None else \
            f"Had token {self.i} kept token {self.j} in layer {self.layer}"
        if not len(self.delta):
            return f"{what}: no token follows."
        lines = [f"{what}, the log-probability of the text after token {self.first} would change",
                 f"by {self.delta.sum():+.4f} nats. Most of it:"]
        for n in np.argsort(-np.abs(self.delta), kind="stable")[:MOST]:
            lines.append(f"  token {self.first + 1 + n:<6}{self.delta[n]:+9.4f}  {self.texts[n]!r}")
        return "\n".join(lines)


def counterfactual(trace: "Trace", layer: int | None = None, i: int | None = None, j: int | None = None
                   ) -> Counterfactual:
    """The dense forward with and without the pair (`forward`'s `kept`): later rows, and layers, judge all anew.

    Raises ValueError for a pair that was not dropped by this layer itself, and for weights, keys or values that were
    not stored as float32, which the dense forward does not know.
    """
    if not trace.weights == trace.kv == "float32":
        raise ValueError(f"weights are {trace.weights} and kv is {trace.kv}, but what would have been is computed in "
                         "float32: trace the text with weights and kv of float32")
    if layer is None and i is None and j is None:
        return _found(trace, None, None, None, _changed(trace, None))
    if layer is None or i is None or j is None:
        raise ValueError("layer, i and j must be given together, or none of them")
    layer, (i, j) = check_layer(trace.config, layer), check_pair(trace, i, j)
    _check_dropped(trace, layer, i, j)
    T = len(trace.ids)
    kept = np.zeros((trace.config.n_layer, 1, T, T), bool)
    kept[layer, 0, i, j] = True
    return _found(trace, layer, i, j, _changed(trace, kept))


def log_probabilities(trace: "Trace", policy, threshold: float, kept: np.ndarray | None = None) -> np.ndarray:
    # -> float32 [T - 1]
    """The log-probability of tokens 1 .. T-1, by the dense forward."""
    from dcp_ref.native.training import kernels  # now: importing dcp_ref must not load the extension

    config, params, _ = trace.with_weights
    params = {name: np.asarray(x, np.float32) for name, x in params.items()}
    pinned = np.isin(np.arange(len(trace.ids)), trace.pinned)
    logits, _ = forward(params, trace.ids[None], config, policy=policy, threshold=threshold, kernels=kernels(0),
                        kept=kept, pinned=pinned if trace.pinned else None)
    return np.take_along_axis(log_softmax(logits[0, :-1]), trace.ids[1:, None], 1)[:, 0]


def _changed(trace: "Trace", kept: np.ndarray | None) -> np.ndarray:  # -> float32 [T - 1]
    if kept is None:
        return log_probabilities(trace, dense, 0.0) - trace.log_probabilities
    return log_probabilities(trace, trace.policy, trace.threshold, kept) - trace.log_probabilities


def _found(trace: "Trace", layer: int | None, i: int | None, j: int | None, change: np.ndarray) -> Counterfactual:
    first = i or 0
    return Counterfactual(layer, i, j, first, change[first:], trace.texts[first + 1 :])


def _check_dropped(trace: "Trace", layer: int, i: int, j: int) -> None:
    left, T = trace.left[:, j], len(trace.ids)  # [L]
    if left[layer] != i:
        did = f"token {left[layer]} did" if left[layer] < T else "no token did"
        raise ValueError(f"in layer {layer}, token {i} did not drop token {j}: {did}")
    earlier = np.flatnonzero(left[:layer] == i)
    if trace.config.propagate_in_depth and len(earlier):
        raise ValueError(f"layer {layer} inherited this drop: ask for layer {earlier[0]}, which decided it")
