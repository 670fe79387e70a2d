"""Which of the live tokens leave: all but the highest of some number, or those that a rule of one's own names."""


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
