"""Interleaved timing: every contender runs once a round, so that a drift of the machine's speed affects all alike."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from tqdm import tqdm


class Timing(NamedTuple):
    """The seconds of one contender's calls."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    calls: tuple[float, ...]  # in the order of the rounds


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def summary(calls: list[float]) -> Timing:
    low, median, high = np.quantile(calls, [0.25, 0.5, 0.75]).tolist()
    return Timing(median, low, high, tuple(calls))


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int = 5, warm: int = 1, pause: float = 0.25,
                title: str = "") -> dict[str, Timing]:
    """The timing of each contender over `rounds` rounds, after `warm` rounds that do not count.

    Each round starts with the next contender, so that none always follows the same one. The pause lets the previous
    contender's threads fall asleep: OpenMP runtimes spin for up to 200 ms after their last parallel region.
    """
    names = list(contenders)
    calls: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=(warm + rounds) * len(names), desc=title, file=sys.stderr) as bar:
        for number in range(warm + rounds):
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                time.sleep(pause)
                calls[name].append(seconds(contenders[name]))
                bar.update()
    return {name: summary(each[warm:]) for name, each in calls.items()}
