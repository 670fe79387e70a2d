"""The text of token ids that come one by one, as if they were decoded together with their prompt.

What a token adds depends on its neighbours: a space stands between words, a character may need several tokens. So a
window of the last ids is decoded, and what it shows beyond the text so far is new. The window, and so a token's cost,
is bounded.
"""

import codecs
from collections.abc import Iterable

from dcp_ref.checkpoints.tokenizer import Tokenizer

CONTEXT = 8  # ids before a new one that its text may depend on: a character has at most 4 bytes, a word one neighbour
WINDOW = 4 * CONTEXT  # ids at which the window is cut to CONTEXT again
HALF = "\ufffd"  # what decoders write for bytes that are no character, or not yet
UTF8 = codecs.getincrementaldecoder("utf-8")


class Stream:
    """The text that follows one prompt.

    `text`: the text so far, without an incomplete character at its end.
    `settled`: the length of its part that later ids cannot change.
    Some tokenizers spell rare characters in ids of single bytes. A run of such ids is text only if all of it is valid
    UTF-8; else each byte becomes U+FFFD. So a run is settled when it has ended; its characters are in `text` before.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Iterable[int]) -> None:
        self.text, self.settled = "", 0
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the window
        self._shown = 0  # characters of the window's text that belong to the settled text, or to the prompt
        self._run = 0  # where the run of bytes at the window's end begins
        self._characters = ""  # of that run, while it is valid
        self._utf8: codecs.IncrementalDecoder | None = UTF8()
        for i in prompt:
            if i in tokenizer:  # a model may have ids without text
                self._add(i)
        self._cut()
        self._prompts = tokenizer.decode(self._ids)[self._shown :]  # what the prompt wrote for its unsettled end

    def push(self, token: int) -> None:
        """Add one id, which the tokenizer must have."""
        self._add(token)
        in_run, end = self._run < len(self._ids), self._shown
        if in_run:
            new = self._characters
        else:
            window = self._tokenizer.decode(self._ids)
            end = max(end, len(window) - window.endswith(HALF))
            new = window[self._shown : end]
        written = _alike(new, self._prompts) if self._prompts else 0  # characters of it, by the prompt
        self.text = self.text[: self.settled] + new[written:]
        if not in_run:
            self.settled, self._shown = len(self.text), end
            self._prompts = self._prompts[len(new) :] if written == len(new) else ""
            if len(self._ids) > WINDOW:
                self._cut()

    def whole(self) -> str:
        """All of the text, if no more ids come: bytes that are no character are U+FFFD."""
        new = self._tokenizer.decode(self._ids)[self._shown :]
        return self.text[: self.settled] + new[_alike(new, self._prompts) :]

    def _add(self, token: int) -> None:
        self._ids.append(token)
        byte = self._tokenizer.byte_tokens.get(token)
        if byte is None:
            self._run, self._characters, self._utf8 = len(self._ids), "", UTF8()
        elif self._utf8 is not None:
            try:
                self._characters += self._utf8.decode(bytes([byte]))
            except UnicodeDecodeError:
                self._characters, self._utf8 = "", None

    def _cut(self) -> None:
        """Forget ids that nothing new depends on; a run of bytes that has not ended stays whole."""
        start = max(0, self._run - CONTEXT)
        self._ids, self._run = self._ids[start:], self._run - start
        before = self._tokenizer.decode(self._ids[: self._run])
        self._shown = len(before) - before.endswith(HALF)


def _alike(a: str, b: str) -> int:
    """The length of what both begin with."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
