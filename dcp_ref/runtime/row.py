"""One row of a batch: a prompt, its continuation so far, its text as it grows, and what ends it.

What a token adds to the text depends on its neighbours: a space stands between words, a character may need several
tokens. So a window of the last ids is decoded, and what it shows beyond the text so far is new. The window, and so a
token's cost, is bounded.
"""

import codecs
import contextlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.engine import Engine

CONTEXT = 8  # ids before a new one that its text may depend on: a character has at most 4 bytes, a word one neighbour
WINDOW = 4 * CONTEXT  # ids at which the window is cut to CONTEXT again
HALF = "\ufffd"  # what decoders write for bytes that are no character, or not yet
UTF8 = codecs.getincrementaldecoder("utf-8")


class Generation(NamedTuple):
    """What was generated after one prompt.

    `ids`: all tokens drawn, those of a stop string too, but not the end-of-text token.
    `text`: their text up to the stop string; None without a tokenizer. Appended to the prompt's text, it gives the text
    of all ids together.
    `stop_reason`: "length" (max_new_tokens), "stop" (a stop string), "eos" (end of text), "n_positions" (the model has
    no position left for the newest token) or "interrupted" (from outside).
    `trace`: a dcp_ref.tracing.Trace where one was asked for and a token was fed; the last token drawn is not in it.
    """

    ids: list[int]
    text: str | None
    stop_reason: str
    trace: Any = None


class Row:
    """One prompt and its continuation so far."""

    def __init__(
        self, model: Model, prompt: list[int], max_new_tokens: int, rng: np.random.Generator, stop: list[str],
        traced: bool = False, pinned: np.ndarray | None = None,
    ) -> None:
        self.config, self.tokenizer = model.config, model.tokenizer
        self.max_new_tokens, self.rng, self.stop = max_new_tokens, rng, stop
        self.sequence: int | None = None  # the engine's handle, from the first step to the last
        self.live = self.bytes = 0  # as the row ended: tokens that all layers held, and the whole cache's bytes
        self.prompt = self.pending = prompt  # pending: tokens to feed next
        self.pinned = pinned  # bool, one a token of the prompt: those that are never dropped
        self.dropped: list[Any] | None = [] if traced else None  # generation.Dropped, of each step
        self.seen = 0  # tokens fed
        self.ids: list[int] = []
        self.ends = model.config.ends  # ids that end a text
        self.stream = None if model.tokenizer is None else Stream(model.tokenizer, prompt)
        self.text = None if model.tokenizer is None else ""
        self.searched = 0  # no stop string ends in this number of characters
        self.stop_reason = None if max_new_tokens else "length"

    @cached_property
    def undrawable(self) -> np.ndarray:  # -> int64 [N]
        """The ids that have no text and do not end one: a model may have more ids than its tokenizer."""
        if self.tokenizer is None:
            return np.array([], np.int64)
        return np.setdiff1d(self.tokenizer.missing(self.config.vocab_size), self.ends)

    def release(self, engine: Engine) -> None:
        """Give the row's pages back, if it holds any. If this is interrupted, it can be called again."""
        if self.sequence is None:
            return
        with contextlib.suppress(ValueError):  # an interrupt came before the last line: the sequence is released
            try:
                if self.stop_reason is not None:
                    live = engine.live_counts([self.sequence])
                    self.live, self.bytes = int(live.sum()), engine.stats().bytes_owned
            finally:
                engine.release(self.sequence)
        self.sequence = None

    def accept(self, token: int) -> None:
        """Add the token drawn after `pending` was fed; end the row if it is the last one."""
        self.seen += len(self.pending)
        if token in self.ends:
            self.stop_reason = "eos"
        else:
            self.ids.append(token)
            self.pending = [token]
            if len(self.ids) == self.max_new_tokens:
                self.stop_reason = "length"
            elif self.seen == self.config.n_positions:
                self.stop_reason = "n_positions"
            if self.stream is not None:
                self.stream.push(token)
        if self.stream is not None:
            self.text = self.stream.text if self.stop_reason is None else self.stream.whole()
            if self.stop:
                self._end_at_stop(self.text, self.stream.settled)

    def _end_at_stop(self, text: str, settled: int) -> None:
        """End the row at the first stop string of its text."""
        found = [text.find(s, max(0, self.searched - len(s) + 1)) for s in self.stop]  # it may have begun before
        self.searched = settled
        if max(found) >= 0:
            self.text, self.stop_reason = text[: min(at for at in found if at >= 0)], "stop"

    def settled(self) -> str:
        """The text that later tokens cannot change: no incomplete character, no possible start of a stop string."""
        if self.stop_reason is not None or self.stream is None:
            return self.text or ""
        text = self.stream.text[: self.stream.settled]
        held = [n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])]
        return text[: len(text) - max(held, default=0)]

    def interrupt(self) -> None:
        """End the row here, from outside; an incomplete character at its end is left out."""
        if self.stop_reason is None:
            self.stop_reason = "interrupted"

    def generation(self) -> Generation:
        """The result of a row that has ended."""
        assert self.stop_reason is not None
        return Generation(self.ids, self.text, self.stop_reason)


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
