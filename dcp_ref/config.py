"""The shape of a model, the threshold that it is used with, and the glossary: a letter means the same in every file.

    B  batch                        C  n_embd                     L  n_layer
    T  query tokens                 H  n_head                     V  vocab_size
    S  slots of a cache             D  head_dim = C / H           r  int_n_embd
    N  live tokens, or the rows of a ragged batch
    i  the attending token (query)      j <= i  the attended one (key)

    s[i, j]     interaction score                     keep[i, j]  alpha_sigmoid(s[i, j]); 1 where i - j <= int_delay
    I[i, j]     product of keep[j+1 .. i, j]: how much of token j is left when token i attends
    log_I       its logarithm: 0 is kept, -inf is dropped
"""

import dataclasses
import math
import numbers
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

ACTIVATIONS = ("gelu_new", "gelu", "relu")
SAME_ACTIVATIONS = {  # transformers' other names for the same functions
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}
ALIASES = {  # names that transformers reads too
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@dataclass(frozen=True)
class Config:
    """GPT-2's `config.json` under its Hugging Face names and defaults (GPT2Config's), and four fields for pruning.

    `int_n_embd` is the width r of the interaction queries and keys; None is a plain GPT-2, which keeps everything.
    With `propagate_in_depth` a token that one layer drops is dropped by all later layers too. A token is safe for
    `int_delay` steps: token i may drop token j only where i - j > int_delay. `kept_thresholds` are (share, threshold)
    pairs, as measured: at this threshold the learned rule keeps this share of the context (`threshold_for`).
    `eos_token_id` may be several ids: each ends a text.
    Raises ValueError, naming the field, when a value is impossible.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    eos_token_id: int | tuple[int, ...] | None = 50256
    int_n_embd: int | None = None
    propagate_in_depth: bool = False
    int_delay: int = 0
    kept_thresholds: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        positive = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"]
        positive += [name for name in ("n_inner", "int_n_embd") if getattr(self, name) is not None]
        for name in positive:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config: {name} must be a positive integer, not {value!r}")
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings",
                     "propagate_in_depth"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"config: {name} must be true or false, not {getattr(self, name)!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"config: n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        name = self.activation_function
        if isinstance(name, str):  # JSON may hold a list, which is no key
            object.__setattr__(self, "activation_function", SAME_ACTIVATIONS.get(name, name))
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(f"config: activation_function {self.activation_function!r} is not one of {ACTIVATIONS}")
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
            raise ValueError(f"config: layer_norm_epsilon must be between 0 and 1, not {epsilon!r}")
        delay = self.int_delay
        if not isinstance(delay, int) or isinstance(delay, bool) or delay < 0:
            raise ValueError(f"config: int_delay must be an integer of 0 or more, not {delay!r}")
        if isinstance(self.eos_token_id, list):  # as JSON has them
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        object.__setattr__(self, "kept_thresholds", _kept_thresholds(self.kept_thresholds))
        for eos in self.ends:
            if not isinstance(eos, int) or isinstance(eos, bool):
                raise ValueError(f"config: eos_token_id must be an integer, a list of these or null, not {eos!r}")

    @classmethod
    def from_dict(cls, fields: dict) -> "Config":
        """The Config of a parsed `config.json`. Unknown fields are ignored, absent ones take the defaults.

        Raises ValueError for a bad value, another model_type, and one size given under two names with two values.
        """
        fields = dict(fields)
        if fields.get("model_type", "gpt2") != "gpt2":
            raise ValueError(f"config: model_type is {fields['model_type']!r}; only gpt2 can be used")
        for alias, name in ALIASES.items():
            if alias in fields and fields.setdefault(name, fields[alias]) != fields[alias]:
                raise ValueError(f"config: {alias} is {fields[alias]!r}, but {name} is {fields[name]!r}; remove one")
        return cls(**{f.name: fields[f.name] for f in dataclasses.fields(cls) if f.name in fields})

    def to_dict(self) -> dict:
        """The content of `config.json`, readable by transformers."""
        gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "bos_token_id": next(iter(self.ends), None)}
        return gpt2 | dataclasses.asdict(self)

    @property
    def ends(self) -> tuple[int, ...]:
        """The token ids that end a text: all of eos_token_id."""
        eos = self.eos_token_id
        return eos if isinstance(eos, tuple) else () if eos is None else (eos,)

    def threshold_for(self, share: float) -> float:
        """The threshold at which the learned rule keeps this share of the context, by `kept_thresholds`.

        Between shares that were measured, it is linear in the share's logarithm. Raises ValueError outside of them.
        """
        if not self.kept_thresholds:
            raise ValueError(f"kept is {share}, but this model's config.json has no kept_thresholds: measure them with "
                             "dcp-ref calibrate, or give a threshold")
        shares, thresholds = zip(*self.kept_thresholds, strict=True)
        if isinstance(share, bool) or not isinstance(share, numbers.Real) or not shares[0] <= share <= shares[-1]:
            raise ValueError(f"kept must be from {shares[0]} to {shares[-1]}, the shares in this model's "
                             f"kept_thresholds, not {share!r}: dcp-ref calibrate measures others")
        measured = dict(self.kept_thresholds)
        return measured[share] if share in measured else float(np.interp(np.log(share), np.log(shares), thresholds))

    @property
    def head_dim(self) -> int:  # D
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def attention_scale(self, layer: int) -> float:
        """What q . k is multiplied by in this layer: 1 / sqrt(D), unless the config says otherwise."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


def check_threshold(threshold: float, learned: bool) -> float:
    """The threshold as a float: a token stays while its score exceeds it. `learned`: whether scores drop anything.

    Raises ValueError when the threshold is no number, or not 0 where no scores are used.
    """
    if not isinstance(threshold, numbers.Real) or isinstance(threshold, bool) or math.isnan(threshold):
        raise ValueError(f"threshold must be a number, not {threshold!r}")
    if threshold != 0 and not learned:
        raise ValueError(f"threshold is {threshold}, but nothing is dropped by a learned score here: leave it 0, or "
                         "use a model with interaction weights and the policy learned")
    return float(threshold)


def threshold_or_kept(config: Config, threshold: float, kept: float | None, learned: bool) -> float:
    """`check_threshold`; or, where `kept` is given, the threshold that the config has for this share of the context.

    Raises ValueError as both do, when both are given, and when no scores are used.
    """
    if kept is None:
        return check_threshold(threshold, learned)
    if threshold != 0:
        raise ValueError(f"kept is {kept} and threshold is {threshold}: give one of the two")
    if not learned:
        raise ValueError(f"kept is {kept}, but nothing is dropped by a learned score here: leave it out, or use a "
                         "model with interaction weights and the policy learned")
    return config.threshold_for(kept)


def float32_threshold(threshold: float, learned: bool) -> float:
    """The threshold in float32, as the scores of a cache are; inf where it is too large. Raises ValueError."""
    with np.errstate(over="ignore"):
        return float(np.float32(check_threshold(threshold, learned)))


def _kept_thresholds(pairs: Any) -> tuple[tuple[float, float], ...]:
    """The field as pairs of floats, by ascending share. Raises ValueError."""
    good = isinstance(pairs, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e38 for x in pair) for pair in pairs)
    if not good or not all(0 < share <= 1 for share, _ in pairs):
        raise ValueError("config: kept_thresholds must be [[share, threshold], ...], numbers, with shares above 0 and "
                         f"up to 1, not {pairs!r}")
    result = tuple(sorted((float(share), float(threshold)) for share, threshold in pairs))
    for (share, threshold), (more, lower) in pairwise(result):
        if share == more or threshold < lower:
            raise ValueError(f"config: kept_thresholds has {threshold:g} for a share of {share:g} and {lower:g} for "
                             f"{more:g}: each share stands once, and a larger one needs a lower threshold")
    return result
