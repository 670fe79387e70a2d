"""The record of one text: which token each layer dropped when which token came, and what can be asked about it.

Nothing is judged here. The cache that decodes says what it drops (recording.py), and each layer drops a token at most
once: so all of the record is one array, `lifetime`. The rest is worked out from it, in the files that are named below.
"""

import html
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np

from dcp_ref.checkpoints.weights import Model, hash_of
from dcp_ref.config import Config
from dcp_ref.policies import Policy
from dcp_ref.tracing import as_json, text_picture, trace_files
from dcp_ref.tracing.counterfactual import Counterfactual, counterfactual, log_probabilities
from dcp_ref.tracing.differences import Differences, compare
from dcp_ref.tracing.drops import Drops, drops_of, left_of
from dcp_ref.tracing.kinds import kinds_of
from dcp_ref.tracing.reasons import Why, why
from dcp_ref.tracing.replay import Interaction, Replay, replay
from dcp_ref.tracing.scored import Pairs, Parts, pairs_of, parts_of


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Who dropped whom in a text, in which layer and when; `str` is a picture.

    `ids` int64 [T] and `texts` (pieces.py) are the tokens that were fed, the first `prompt_tokens` as a prompt.
    `lifetime` int32 [L, T]: the number of rows that a layer held a token for, its own row included; T - j for a token j
    that never dropped. `pinned`: the positions of the tokens that nothing could drop. `scores`: whether files and pages
    hold the interaction queries and keys.
    Scores are worked out when they are first asked for. That needs the model, which is kept here, but not in files.
    """

    config: Config
    ids: np.ndarray
    texts: tuple[str, ...]
    prompt_tokens: int
    policy: Policy
    threshold: float
    backend: str
    lifetime: np.ndarray
    model: Model | None = None
    scores: bool = False
    weights: str = "float32"
    kv: str = "float32"
    name: str = "model"
    pinned: tuple[int, ...] = ()
    hash_in_file: str | None = None  # of the model's weights

    @cached_property
    def left(self) -> np.ndarray:  # int64 [L, T]
        """The row that dropped each token, T where none did: a layer held token j for rows j .. left - 1."""
        return left_of(self.lifetime)

    @cached_property
    def live_counts(self) -> np.ndarray:  # int64 [L, T]
        """Tokens that each layer holds after row i, row i's own included."""
        L, T = self.lifetime.shape
        change = np.ones((L, T + 1), np.int64)  # a token comes in every row, and some leave
        np.subtract.at(change, (np.arange(L)[:, None], self.left), 1)
        return change.cumsum(1)[:, :T]

    @cached_property
    def share_kept(self) -> np.ndarray:  # float64 [L]
        """The share of the pairs j < i where the layer still held j in row i; 1 for a text of one token."""
        T = len(self.ids)
        return (self.lifetime - 1).sum(1) / (T * (T - 1) / 2) if T > 1 else np.ones(len(self.lifetime))

    @property
    def title(self) -> str:
        """The model and the rule, in a few words."""
        return f"{self.name}, policy {self.policy}" + (f" at threshold {self.threshold:g}" if self.threshold else "")

    @cached_property
    def kinds(self) -> np.ndarray:  # int8 [T]
        """The kind of each token, an index into kinds.KINDS."""
        return kinds_of(self.texts)[0]

    @cached_property
    def drops(self) -> Drops:
        """Every drop, with its score and reason."""
        return drops_of(self)

    @cached_property
    def interaction(self) -> Interaction | None:
        """The interaction queries and keys of all tokens; None where the policy is not learned."""
        return Interaction(*self.replayed[1:]) if self.policy.learned else None

    @cached_property
    def parts(self) -> Parts | None:
        """What each part of the residual stream gave to each drop's score; None where the policy is not learned."""
        return parts_of(self) if self.policy.learned else None

    def scores_of(self, layer: int) -> Pairs:
        """The scores that a layer judged: of the pairs (i, j) where token j was live when token i came."""
        return pairs_of(self, layer)

    @property
    def scored(self) -> Interaction:
        """`interaction`. Raises ValueError where the policy is not learned, so that there are no scores."""
        if self.interaction is None:
            raise ValueError(f"policy {self.policy}: no score decides what is dropped; trace with a learned policy")
        return self.interaction

    def why(self, layer: int, i: int, j: int) -> Why:
        """What the score of token j by token i is made of (reasons.py); any j < i, where the policy is learned."""
        return why(self, layer, i, j)

    def counterfactual(self, layer: int | None = None, i: int | None = None, j: int | None = None) -> Counterfactual:
        """How likely each following token had been, had token i kept j; without a pair, had nothing been dropped.

        Pages show those that were asked for. Raises ValueError as counterfactual.py says.
        """
        found = self.counterfactuals[layer, i, j] = counterfactual(self, layer, i, j)
        return found

    @cached_property
    def counterfactuals(self) -> dict[tuple[int | None, int | None, int | None], Counterfactual]:
        """Those that were asked for, by (layer, i, j)."""
        return {}

    @cached_property
    def log_probabilities(self) -> np.ndarray:  # float32 [T - 1]
        """The log-probability of tokens 1 .. T-1, in nats, by the dense forward."""
        return log_probabilities(self, self.policy, self.threshold)

    def compare(self, other: "Trace") -> Differences:
        """What another trace of the same tokens does otherwise."""
        return compare(self, other)

    @cached_property
    def replayed(self) -> Replay:
        """The hidden states, computed once more (replay.py)."""
        return replay(self, self.with_weights)

    @property
    def with_weights(self) -> Model:
        """The model. Raises ValueError where this trace was read from a file."""
        if self.model is None:
            raise ValueError("this trace was read from a file, which holds no model: use trace.with_model(model)")
        return self.model

    def with_model(self, model: Model) -> "Trace":
        """This trace with its model. Raises ValueError for a model that it was not made with."""
        if hash_of(model) != self.weights_hash:
            raise ValueError("model: its config or weights are not those of the model that this trace was made with")
        trace = replace(self, model=model)
        known = {name: value for name, value in vars(self).items() if name not in vars(trace)}
        vars(trace).update(known)  # what has been worked out
        return trace

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the model's config and weights."""
        return self.hash_in_file or hash_of(self.with_weights)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file for dcp_ref.tracing.load, without the model. Raises OSError."""
        trace_files.save_trace(self, path)

    def to_dict(self) -> dict[str, Any]:
        """What a page reads (as_json.py), in types that JSON can hold."""
        return as_json.to_dict(self)

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return as_json.to_json(self)

    def to_html(self, other: "Trace | None" = None) -> str:
        """A page that shows this trace, alone or beside another of the same text: one file that fetches nothing."""
        from dcp_ref.tracing.page import page

        return page([trace.to_dict() for trace in (self, other) if trace is not None])

    def _repr_html_(self) -> str:
        """The page, in a frame of a notebook."""
        return (f'<iframe srcdoc="{html.escape(self.to_html())}" sandbox="allow-scripts" '
                'style="width: 100%; height: 720px; border: 0"></iframe>')

    def __str__(self) -> str:
        return text_picture.picture(self)

    def __repr__(self) -> str:
        return f"<Trace of {len(self.ids)} tokens, {self.title}>"
