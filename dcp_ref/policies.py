"""What decides a drop: the paper's learned scores, or one of the rules that it is compared with.

When token i arrives, an earlier live token j stays iff

    (rank == 0  or  s > threshold  or  i - j <= delay)  and
    (window == 0  or  i - j < window  or  j < first  or  stride divides j  or  j is a heavy hitter)

and, under propagate_in_depth, no earlier layer dropped it. No dropped token comes back. Stride 0 divides nothing.
Heavy hitters: the `heavy` tokens with most attention, of those that no other condition keeps.
Budget: while more than `budget` tokens that are left have i - j > delay, the one of them with the lowest s leaves, the
earliest of equals first. But a pinned token stays whatever the rules say: no heavy hitter, not counted in a budget.

csrc/dcp.h states the same for C. `rank` is the width of the interaction keys, 0 unless the policy is learned; `delay`
is the config's int_delay; window == 0 is None in Python. Positions are absolute: a drop renumbers nothing.
Instead of all this, `rule` is a function in Python that says which tokens leave.
To add a rule by position, add one field to Policy (and, for C, one to dcp_policy, and its condition to csrc/judge.c).
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dcp_ref.attention import log_mask_by_rows
from dcp_ref.choosing import all_but_highest, own_choice
from dcp_ref.config import Config


def by_position(stays: Callable, default: int | None = 0, least: int = 0) -> Any:
    """A field of Policy, a number: token j stays when token i arrives iff stays(i, j, number); 0 keeps no token."""
    return dataclasses.field(default=default, metadata={"stays": stays, "least": least})


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to drop tokens; `name` is what messages and `str` show.

    `learned`: drop by the score. `window`, `first`, `stride`: keep by position, as each field says; without a window,
    position drops nothing. `heavy`: the number of heavy hitters, None for no such rule. `budget`: the most earlier
    tokens that the learned rule leaves, None for no bound. `rule`: a function that says which tokens leave.
    Raises ValueError, naming the field, when a value is impossible; first, stride and heavy need a window; a budget
    needs the learned rule, alone; a rule of one's own is the only rule.
    """

    name: str
    learned: bool = False
    window: int | None = by_position(lambda i, j, window: i - j < window, default=None, least=1)
    first: int = by_position(lambda i, j, first: j < first)
    stride: int = by_position(lambda i, j, stride: j % stride == 0)
    heavy: int | None = None
    budget: int | None = dataclasses.field(default=None, metadata={"least": 1})
    rule: Callable | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.learned, bool):
            raise ValueError(f"policy {self.name}: learned must be true or false, not {self.learned!r}")
        if self.rule is not None and (not callable(self.rule) or self.learned or self.window is not None):
            raise ValueError(f"policy {self.name}: rule must be a function, and leave out learned and window")
        for field in dataclasses.fields(self)[2:-1]:  # the numbers
            value, least = getattr(self, field.name), field.metadata.get("least", 0)
            if value is None and field.default is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise ValueError(
                    f"policy {self.name}: {field.name} must be an integer from {least} to 2**31 - 1, not {value!r}")
            if field.name == "budget":
                if not self.learned or self.window is not None:
                    raise ValueError(f"policy {self.name}: learned must be true and window None where budget is given")
            elif self.window is None and (value or field.default is None):
                raise ValueError(f"policy {self.name}: window must be given where {field.name} is")

    def __str__(self) -> str:
        return self.name

    def check(self, config: Config) -> None:
        """Raises ValueError when this policy needs weights that a model of this config does not have."""
        if self.learned and config.int_n_embd is None:
            raise ValueError(f"policy {self.name}: this model has no interaction weights (config.int_n_embd is None); "
                             'train them with dcp-ref train, or choose another policy, such as "window:128"')

    def rank(self, config: Config) -> int:
        """The width of the interaction keys that a slot holds: r, or 0 where no rule asks for scores."""
        return (config.int_n_embd or 0) if self.learned or self.rule else 0

    def stays(self, i, j):  # integers that broadcast -> bool
        """The rules by position: whether token j stays when token i arrives, heavy hitter or not."""
        result = np.full(np.broadcast_shapes(np.shape(i), np.shape(j)), self.window is None)
        for field in dataclasses.fields(self):
            if field.name in BY_POSITION and (number := getattr(self, field.name)):
                result |= field.metadata["stays"](i, j, number)
        return result

    @property
    def by_rows(self) -> bool:
        """Whether what a row drops depends on what earlier rows did, beyond what has left."""
        return any(field is not None for field in (self.heavy, self.budget, self.rule))

    def drops(self, i: int, position, attention, kept=False, s=None, delay: int = 0) -> np.ndarray:
        # [N], [N], bool [N], [N] -> bool [N]
        """Which live tokens leave before token i is inserted, besides those whose score is not above the threshold.

        `position` ascends; `attention` is what rows before i gave to each token, heads summed. Of two tokens with equal
        attention the later stays. `kept` ones are no candidates. `s` are the scores, where there are any.
        """
        if self.rule is not None:
            return own_choice(self.name, self.rule, i, position, s, attention, np.broadcast_to(kept, len(position)))
        if self.budget is not None:
            return all_but_highest(self.budget, s, (i - position <= delay) | kept)
        return all_but_highest(self.heavy or 0, attention, self.stays(i, position) | kept)

    def log_mask(self, q, k, log_other, scale, kept=False, s=None, delay=0):
        # [B, H, T, D] x 2, [B, T, T] or 0.0, bool [B, T, T] or False, [B, T, T] or None -> [B, T, T]
        """What `drops` drops in a dense forward: 0 is kept, -inf is gone.

        `log_other` is the mask of what else drops: the learned scores, and earlier layers under `propagate_in_depth`.
        Row i does not drop token j where kept[i, j].
        """
        B, _, T, _ = q.shape
        if not self.by_rows:
            i = np.arange(T)
            gone = np.logical_or.accumulate(~(self.stays(i[:, None], i) | kept), axis=-2)
            return np.broadcast_to(np.where(gone, -np.inf, 0).astype(q.dtype), (B, T, T))
        log_other, kept = (np.broadcast_to(x, (B, T, T)) for x in (log_other, kept))

        def row(b, i, live, attention):
            return self.drops(i, live, attention, kept[b, i, live], None if s is None else s[b, i, live], delay)

        return np.stack([log_mask_by_rows(q[b], k[b], log_other[b], scale, partial(row, b)) for b in range(B)])


BY_POSITION = [field.name for field in dataclasses.fields(Policy) if "stays" in field.metadata]
learned = Policy("learned", learned=True)
dense = Policy("dense")


def window(w: int) -> Policy:
    """The last w tokens, token i among them."""
    return Policy(f"window:{w}", window=w)


def strided(w: int, s: int) -> Policy:
    """The last w tokens, and every s-th position (Sparse Transformer, arXiv 1904.10509)."""
    return Policy(f"strided:{w},{s}", window=w, stride=s)


def sinks(n: int, w: int) -> Policy:
    """The first n tokens and the last w (StreamingLLM, arXiv 2309.17453, but with absolute positions)."""
    return Policy(f"sinks:{n},{w}", window=w, first=n)


def heavy_hitters(n: int, w: int) -> Policy:
    """The last w tokens, and of those before them the n with the largest accumulated attention (H2O, arXiv 2306.14048).

    Each row moves at most one token out of the window, so each row drops at most one: the one with least attention.
    """
    return Policy(f"heavy_hitters:{n},{w}", window=w, heavy=n)


def budget(n: int) -> Policy:
    """The learned rule, and of what it leaves in each layer the n earlier tokens with the highest scores."""
    return Policy(f"learned:{n}", learned=True, budget=n)


def rule(name: str, function: Callable) -> Policy:
    """A rule of one's own: function(i, positions, scores, attention) says which tokens leave (choosing.own_choice)."""
    return Policy(str(name), rule=function)


_FORMS: dict[str, Callable[..., Policy]] = {
    "window:W": window, "strided:W,STRIDE": strided, "sinks:FIRST,W": sinks, "heavy_hitters:N,W": heavy_hitters,
    "learned:N": budget}
FORMS = ", ".join(("learned", "dense", *_FORMS))


def parse(text: str) -> Policy:
    """The policy that `str` shows as this text. Raises ValueError, listing the forms, when there is none."""
    for policy in (learned, dense):
        if text == policy.name:
            return policy
    for form, make in _FORMS.items():
        pattern = re.sub("[A-Z]+", "([0-9]{1,10})", form)
        if found := re.fullmatch(pattern, str(text)):
            return make(*map(int, found.groups()))
    raise ValueError(f"policy {text!r} is not of one of these forms, with integers for the capitals: {FORMS}")


def for_model(config: Config, policy: Policy | None) -> Policy:
    """The policy that a model is used with: None is `learned` where it has interaction weights, else `dense`.

    Raises TypeError when it is no Policy, ValueError when the model lacks the weights that it needs.
    """
    if policy is None:
        return dense if config.int_n_embd is None else learned
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be None or a Policy, not {policy!r}: policies.parse makes one of a text")
    policy.check(config)
    return policy
