"""Which tokens are pinned, so that no rule ever drops them: from what a caller gives to a bool for each token."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dcp_ref.checkpoints.tokenizer import Tokenizer

Pin = str | Iterable[Any]
FORMS = "give a text that the prompt begins with, (start, end) pairs of positions, or a bool for each token"


def pinned_rows(pinned: Iterable[Any], sequences: list[int], counts: list[int]) -> np.ndarray | None:
    """What `Engine.feed` takes as a bool for each token of the call, [N]; None where no token is pinned.

    Raises ValueError naming the sequence at fault.
    """
    try:
        given = list(pinned)
    except TypeError:
        given = []
    if len(given) != len(sequences):
        raise ValueError(f"pinned must have an entry for each of the {len(sequences)} sequences: true, false, or a "
                         f"list of bools, one for each token; not {pinned!r}")
    rows = [_whole(one, f"sequence {sequence}: pinned", count)
            for one, sequence, count in zip(given, sequences, counts, strict=True)]
    joined = np.concatenate(rows) if rows else np.zeros(0, bool)
    return joined if joined.any() else None


def prompt_pins(pin: Pin | None, prompt: Any, ids: list[int], tokenizer: Tokenizer | None, name: str
                ) -> np.ndarray | None:  # -> bool [T]
    """Which of a prompt's tokens are pinned; `pin` is one of FORMS. `prompt` is what `ids` came from: a text, or ids.

    Raises ValueError naming the prompt where pin does not fit it.
    """
    if pin is None:
        return None
    if isinstance(pin, str):
        n = _leading(pin, prompt, ids, tokenizer, name)
        return np.arange(len(ids)) < n
    try:
        given = list(pin)
    except TypeError:
        raise ValueError(f"pin must not be {pin!r}: {FORMS}") from None
    if given and all(isinstance(one, (bool, np.bool_)) for one in given):
        return _whole(given, f"{name}: pin", len(ids))
    pinned = np.zeros(len(ids), bool)
    for one in given:
        start, end = _range(one)
        if not 0 <= start < end <= len(ids):
            raise ValueError(f"{name}: pin: the range ({start}, {end}) is not within its {len(ids)} tokens: give start "
                             "and end with 0 <= start < end <= the number of tokens")
        pinned[start:end] = True
    return pinned


def _whole(pinned: Any, name: str, count: int) -> np.ndarray:  # -> bool [count]
    try:
        row = np.asarray(pinned)
    except ValueError:  # lists of unequal lengths
        row = np.asarray(None)
    if row.dtype != bool or row.shape not in ((), (count,)):
        raise ValueError(f"{name} must be true, false, or {count} bools, one for each token, not {pinned!r}")
    return np.broadcast_to(row, count)


def _range(one: Any) -> Sequence[int]:
    try:
        start, end = map(operator.index, one)
    except (TypeError, ValueError):
        raise ValueError(f"pin must not hold {one!r}: {FORMS}") from None
    return start, end


def _leading(pin: str, prompt: Any, ids: list[int], tokenizer: Tokenizer | None, name: str) -> int:
    """How many tokens a leading text has."""
    if tokenizer is None:
        raise ValueError("pin: the model has no tokenizer, so a text has no tokens; give (start, end) pairs")
    try:
        own = tokenizer.encode(pin)
    except ValueError as error:
        raise ValueError(f"pin: {error}") from None
    if not own:
        raise ValueError("pin must not be an empty text: give the text to pin, or leave pin out")
    if isinstance(prompt, str) and not prompt.startswith(pin):
        raise ValueError(f"{name} does not begin with the text to pin, {pin!r}: put it before the prompt")
    if ids[: len(own)] != own:
        raise ValueError(f"{name} does not begin with the tokens of the text to pin, {pin!r}: where a token spans its "
                         "end, let it end before a space or a line end, or give (start, end) pairs of positions")
    return len(own)
