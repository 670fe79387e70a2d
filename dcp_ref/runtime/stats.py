"""What a cache holds, in numbers."""

from typing import NamedTuple


class Stats(NamedTuple):
    """Totals over layers and sequences.

    Forks share memory: bytes_owned counts it once, bytes_logical (and live_tokens, slots) once for each sequence.
    bytes_peak is the largest bytes_owned so far. bytes_reserved includes free pages; bytes_scratch is working memory,
    sized for the largest step so far.
    """

    live_tokens: int
    slots: int
    bytes_owned: int
    bytes_reserved: int
    bytes_scratch: int = 0
    bytes_logical: int = 0
    bytes_peak: int = 0
