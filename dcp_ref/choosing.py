"""Which of the live tokens leave: all but the highest of some number, or those that a rule of one's own names."""

from collections.abc import Callable

import numpy as np


def all_but_highest(n: int, value, safe):  # [N], bool [N] -> bool [N]
    """Which of N tokens leave so that n are left, the safe ones not counted: those with the lowest values.

    Positions ascend. Of equal values the earlier leaves.
    """
    counted = np.flatnonzero(~safe)
    lowest_first = counted[np.argsort(value[counted], kind="stable")]  # a tie: the earlier first
    gone = np.zeros(len(value), bool)
    gone[lowest_first[: max(len(counted) - n, 0)]] = True
    return gone


def own_choice(name: str, rule: Callable, i: int, position, s, attention, safe):  # [N] x 3, bool [N] -> bool [N]
    """Which of N tokens leave by a rule of one's own: rule(i, positions, scores, attention) -> bool, of those not safe.

    It is asked for each row i in each layer, with copies: positions of the live, unpinned, earlier tokens, ascending;
    their scores, None where the model has no interaction weights; the attention that each got so far, heads summed.
    There may be no tokens; a row may be asked for more than once.
    Raises ValueError naming the rule for an answer of another kind, and whatever the rule raises.
    """
    asked = np.flatnonzero(~safe)
    answer = rule(i, position[asked], None if s is None else s[asked], attention[asked])
    if not isinstance(answer, np.ndarray) or answer.dtype != bool or answer.shape != asked.shape:
        kind = f"{answer.dtype} {list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
        raise ValueError(f"policy {name}: in row {i} the rule returned {kind}; it must return an array of booleans "
                         f"[{len(asked)}], one for each of the positions: true for those that leave")
    gone = np.zeros(len(position), bool)
    gone[asked] = answer
    return gone
