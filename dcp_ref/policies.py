"""What decides a drop: the paper's learned scores, or one of the rules that it is compared with.

Before token i is inserted, a live token j < i stays in a layer iff

    (not learned  or  s[i, j] > threshold  or  i - j <= int_delay)
    and  (i - j < window  or  j < first  or  j % stride == 0  or  j is a heavy hitter)

and a drop is for good. `threshold` is the engine's, 0 unless told; `int_delay` is the model's. Heavy hitters are the
`heavy` tokens with the largest accumulated attention among the live ones that no other rule keeps. Positions are
absolute: nothing is renumbered after a drop.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dcp_ref.config import Config
from dcp_ref.interaction import check_threshold
from dcp_ref.layers import softmax


@dataclass(frozen=True)
class Policy:
    """One way to drop tokens; `name` is what messages and `str` show.

    `learned`: drop by the score. `window`: i - j < window stays; None is no rule by position, everything stays.
    `first`: j < first stays. `stride`: j % stride == 0 stays, 0 is none. `heavy`: so many heavy hitters stay.
    Raises ValueError, naming the field, when a value is impossible; first, stride and heavy need a window.
    """

    name: str
    learned: bool = False
    window: int | None = None
    first: int = 0
    stride: int = 0
    heavy: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.learned, bool):
            raise ValueError(f"policy {self.name}: learned must be true or false, not {self.learned!r}")
        for field, least in (("window", 1), ("first", 0), ("stride", 0), ("heavy", 0)):
            value = getattr(self, field)
            if value is None and field in ("window", "heavy"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise ValueError(
                    f"policy {self.name}: {field} must be an integer from {least} to 2**31 - 1, not {value!r}")
        if self.window is None and (self.first or self.stride or self.heavy is not None):
            raise ValueError(f"policy {self.name}: window must be given where first, stride or heavy is")

    def __str__(self) -> str:
        return self.name

    def check(self, config: Config) -> None:
        """Raises ValueError when this policy needs weights that a model of this config does not have."""
        if self.learned and config.int_n_embd is None:
            raise ValueError(f"policy {self.name}: this model has no interaction weights (config.int_n_embd is None); "
                             'train them with dcp-ref train, or choose another policy, such as "window:128"')

    def rank(self, config: Config) -> int:
        """The width of the interaction keys that a slot holds: r, or 0 when nothing is dropped by its score."""
        return (config.int_n_embd or 0) if self.learned else 0

    def stays(self, i, j):  # integers that broadcast -> bool
        """The rules by position: whether token j stays when token i comes, heavy hitter or not."""
        if self.window is None:
            return np.full(np.broadcast_shapes(np.shape(i), np.shape(j)), True)
        near = (i - j < self.window) | (j < self.first)
        return near | (j % self.stride == 0) if self.stride else near

    def drops(self, i: int, position: np.ndarray, attention: np.ndarray) -> np.ndarray:  # [N], [N] -> bool [N]
        """Which live tokens the rules other than the learned one drop before token i is inserted.

        `position` ascends; `attention` is what rows before i gave to each token, heads summed. Of two heavy hitters
        with as much attention the later stays.
        """
        gone = ~self.stays(i, position)
        if self.heavy:
            candidates = np.flatnonzero(gone)
            lightest_first = candidates[np.argsort(attention[candidates], kind="stable")]  # a tie: the earlier first
            gone[lightest_first[-self.heavy :]] = False
        return gone

    def log_mask(self, q, k, log_other, scale):  # [B, H, T, D] x 2, [B, T, T] or 0.0 -> [B, T, T]
        """What the rules other than the learned one drop in a dense forward: 0 is kept, -inf is gone.

        `log_other` is the mask that is in force besides: earlier layers' under `propagate_in_depth`, and the learned
        one. Rules by position need none of the arguments; heavy hitters are found row by row, as decoding does.
        """
        B, _, T, _ = q.shape
        if self.heavy is None:
            i = np.arange(T)
            log_own = np.where(self.stays(i[:, None], i), 0, -np.inf).astype(q.dtype)
            return np.broadcast_to(log_own, (B, T, T))
        log_other = np.broadcast_to(log_other, (B, T, T))
        return np.stack([self._heavy_log_mask(*one, scale) for one in zip(q, k, log_other, strict=True)])

    def _heavy_log_mask(self, q, k, log_other, scale):  # [H, T, D] x 2, [T, T] -> [T, T]
        T = q.shape[1]
        log_own, attention = np.zeros((T, T), q.dtype), np.zeros(T, q.dtype)
        for i in range(T):
            live = np.flatnonzero(log_own[i, :i] + log_other[i, :i] > -np.inf)
            log_own[i:, live[self.drops(i, live, attention[live])]] = -np.inf
            a = (k[:, : i + 1] @ q[:, i, :, None])[..., 0] * scale  # [H, i + 1]: token i sees itself
            p, _ = softmax(a + (log_own[i, : i + 1] + log_other[i, : i + 1]))
            attention[: i + 1] += p.sum(0)
        return log_own


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

    A row adds at most one token to those before the window: so while there are more than n, the lightest goes.
    """
    return Policy(f"heavy_hitters:{n},{w}", window=w, heavy=n)


_MAKERS: dict[str, tuple[Callable[..., Policy], int]] = {  # and how many integers each takes
    "window": (window, 1), "strided": (strided, 2), "sinks": (sinks, 2), "heavy_hitters": (heavy_hitters, 2)}
FORMS = "learned, dense, window:W, strided:W,STRIDE, sinks:FIRST,W, heavy_hitters:N,W"


def parse(text: str) -> Policy:
    """The policy that `str` shows as this text. Raises ValueError, listing the forms, when there is none."""
    for policy in (learned, dense):
        if text == policy.name:
            return policy
    name, _, numbers = str(text).partition(":")
    if name in _MAKERS:
        make, n = _MAKERS[name]
        if re.fullmatch(",".join(["[0-9]{1,10}"] * n), numbers):
            return make(*map(int, numbers.split(",")))
    raise ValueError(f"policy {text!r} is not of one of these forms, with integers for the capitals: {FORMS}")


def for_model(config: Config, policy: Policy | None) -> Policy:
    """The policy of a cache: None is the learned one where the model has interaction weights, else dense.

    Raises TypeError when it is no Policy, ValueError when the model lacks the weights that it needs.
    """
    if policy is None:
        return dense if config.int_n_embd is None else learned
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be None or a Policy, not {policy!r}: policies.parse makes one of a text")
    policy.check(config)
    return policy


def float32_threshold(threshold: float, policy: Policy) -> float:
    """What the scores of a cache must exceed, in float32 as they are: inf where it is too large. Raises ValueError."""
    with np.errstate(over="ignore"):
        return float(np.float32(check_threshold(threshold, policy.learned)))
