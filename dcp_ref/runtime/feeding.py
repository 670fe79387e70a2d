"""A feed in pieces: what its rows drop makes room for the rows after them, so that a bound needs less room at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.live_tokens import Tokens

ROUND_ROWS = 48  # DCP_ROUND_ROWS of csrc/dcp.h
SPARE_BYTES = 1 << 14  # for a few objects of Python, such as views


class Batch(NamedTuple):
    """Sequences, and how many tokens each gets next: what `step` takes."""

    handles: list[int]
    layers: list[list[Tokens]]  # the sequences: one Tokens a layer
    starts: list[int]
    counts: list[int]
    pinned: np.ndarray | None = None  # bool [N]: the tokens that are never dropped
    draft: bool = False  # whether `layers` are copies


class Piece(NamedTuple):
    """Consecutive rows of a feed: all rows of the sequences first .. end - 1, or some rows of one of them."""

    first: int  # places of sequences in the feed
    end: int
    start: int  # of the rows, which the feed counts over all its sequences
    stop: int
    counts: list[int]  # rows of each of these sequences

    def wanted(self, every: bool) -> tuple[np.ndarray, slice]:
        """The piece's rows whose logits are wanted: every one or each sequence's last; and their place in the result.

        The last row of a piece may not be its sequence's: a later piece then replaces its logits.
        """
        if every:
            return np.arange(self.stop - self.start), slice(self.start, self.stop)
        return np.cumsum(self.counts) - 1, slice(self.first, self.end)

    def of(self, draft: Batch) -> Batch:
        """The batch of these rows of a draft."""
        places = slice(self.first, self.end)
        starts = [layers[0].seen for layers in draft.layers[places]]
        pinned = None if draft.pinned is None else draft.pinned[self.start : self.stop]
        return Batch(draft.handles[places], draft.layers[places], starts, self.counts, pinned, True)

    def halves(self) -> list["Piece"]:
        """Two pieces: each with half the sequences, or about half the rounds of one; none for a single round.

        C removes what a round of rows dropped after it. So rows are cut between rounds only: each token then gets
        the slot that it would have got at once, and the results are the same bits.
        """
        if self.end - self.first > 1:
            n = len(self.counts) // 2
            left, right = self.counts[:n], self.counts[n:]
            middle = self.start + sum(left)
            return [Piece(self.first, self.first + n, self.start, middle, left),
                    Piece(self.first + n, self.end, middle, self.stop, right)]
        middle = self.start + max((self.stop - self.start) // 2 // ROUND_ROWS, 1) * ROUND_ROWS
        rows = [(self.start, middle), (middle, self.stop)]
        return [Piece(self.first, self.end, a, b, [b - a]) for a, b in rows] if middle < self.stop else []


def spared(make: Callable[[], Any], spare: bytearray) -> Any:
    """What `make` returns; where memory is refused, it is called once more when `spare` has been given back.

    For the result of what is already done: `spare` and `make` are there before it is.
    """
    try:
        return make()
    except (MemoryError, SystemError):  # NumPy forgets to say why, at some places
        spare.clear()
        return make()


def in_pieces(counts: list[int], feed: Callable[[Piece], None]) -> None:
    """Call `feed` with pieces of a feed of counts[b] rows, in order. One that does not fit is cut in two.

    Raises CacheFull when a single round of rows does not fit.
    """
    left = [Piece(0, len(counts), 0, sum(counts), counts)]
    while left:
        piece = left.pop()
        try:
            feed(piece)
        except CacheFull:
            halves = piece.halves()
            if not halves:
                raise
            left += halves[::-1]
