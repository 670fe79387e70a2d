"""The text of token ids that come one by one, as decoding them all together with their prompt would write it.

What a token adds depends on its neighbours: a space between words, a character in several tokens. So a window of the
last ids is decoded, and what it shows beyond the text so far is new. The window is bounded, and so is a token's cost.
"""

import codecs
from collections.abc import Iterable

from dcp_ref.checkpoints.tokenizer import Tokenizer

CONTEXT = 8  # ids before a new one that its text may depend on: a character has at most 4 bytes, a word one neighbour
WINDOW = 4 * CONTEXT  # ids at which the window is cut to CONTEXT again
HALF = "\ufffd"  # what decoders write for bytes that are no character, or not yet
UTF8 = codecs.getincrementaldecoder("utf-8")


class Stream:
    """The continuation of one prompt.

    `text`: so far, without what is not yet a whole character. `settled`: the length of what later ids cannot change.
    A run of bytes that a tokenizer falls back to is text only if all of it is valid UTF-8, else each byte becomes
    U+FFFD. So a run is settled when it has ended; its characters are in `text` before.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Iterable[int]) -> None:
        self.text, self.settled = "", 0
        self._tokenizer = tokenizer
        self._shown = 0  # characters of the window that the settled text, or the prompt, has
        self._ids: list[int] = []  # the window
        self._run = 0  # where the run of bytes at its end begins
        self._characters = ""  # of that run, while it is valid
        self._utf8: codecs.IncrementalDecoder | None = UTF8()
        for i in prompt:
            if i in tokenizer:  # a model may have ids without text
                self._add(i)
        self._cut()
        self._prompts = self._decode()[self._shown :]  # what the prompt itself writes for its unsettled end

    def push(self, token: int) -> None:
        """Add one id, which the tokenizer must have."""
        self._add(token)
        if self._run < len(self._ids):
            self.text = self.text[: self.settled] + self._new(self._characters)
            return
        window = self._decode()
        end = max(self._shown, _whole(window))
        piece = window[self._shown : end]
        self.text = self.text[: self.settled] + self._new(piece)
        self.settled, self._shown = len(self.text), end
        self._prompts = self._prompts[len(piece) :] if self._prompts.startswith(piece) else ""
        if len(self._ids) > WINDOW:
            self._cut()

    def whole(self) -> str:
        """All of the text, if no more ids come: bytes that are no character are U+FFFD."""
        return self.text[: self.settled] + self._new(self._decode()[self._shown :])

    def _new(self, piece: str) -> str:
        """What follows the settled text, without what the prompt has written of it."""
        same = 0
        while same < min(len(piece), len(self._prompts)) and piece[same] == self._prompts[same]:
            same += 1
        return piece[same:]

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids)

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
        self._shown = _whole(self._tokenizer.decode(self._ids[: self._run]))


def _whole(text: str) -> int:
    """The length without half a character at the end."""
    return len(text) - text.endswith(HALF)
