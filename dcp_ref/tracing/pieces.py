"""The readable text of each token: pieces that, joined, are the text."""

from collections.abc import Sequence

from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.runtime.row import Stream


def pieces(tokenizer: Tokenizer | None, ids: Sequence[int]) -> tuple[str, ...]:  # [T] -> [T]
    """A character that several tokens spell stands at the last of them; the others have no text.

    An id that has no text, as all without a tokenizer, is shown as [id].
    """
    if tokenizer is None:
        return tuple(f"[{i}]" for i in ids)
    known = [i in tokenizer for i in ids]
    stream = Stream(tokenizer, [])
    ends = []  # how much text there is after each token
    for i, there in zip(ids, known, strict=True):
        if there:
            stream.push(i)
        ends.append(len(stream.text))
    whole = stream.whole() if any(known) else ""
    last = max((t for t, there in enumerate(known) if there), default=0)
    ends[last:] = [len(whole)] * (len(ends) - last)
    for t in range(last, 0, -1):  # bytes that turned out to be no characters have taken text back
        ends[t - 1] = min(ends[t - 1], ends[t])
    starts = [0, *ends][: len(ends)]
    return tuple(whole[a:b] if there else f"[{i}]" for i, there, a, b in zip(ids, known, starts, ends, strict=True))
