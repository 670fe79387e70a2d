"""Text from prompts: a batch of continuations, each ending by itself."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.sampling import Sampling, check_integer, row_stream
from dcp_ref.weights import Model

Prompt = str | Sequence[int]


class Generation(NamedTuple):
    """What was generated after one prompt.

    `ids`: all tokens drawn, those of a stop string too, but not the end-of-text token. `text`: their text, up to the
    stop string; None without a tokenizer. `stop_reason`: "length" (max_new_tokens), "stop" (a stop string), "eos" (end
    of text), "n_positions" (the model has no position left for the newest token) or, from `dcp-ref generate` alone,
    "interrupted" (Ctrl-C, or a failure under way, came first).
    """

    ids: list[int]
    text: str | None
    stop_reason: str


def generate(
    model: Model,
    prompts: Iterable[Prompt],
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    backend: str | None = None,
    **engine_options: Any,
) -> list[Generation]:
    """Continue each prompt (a text, or token ids), all in one batch: one Generation a prompt, in their order.

    `backend` and `engine_options` (policy, threshold, weights, kv, threads, max_cache_bytes) are Engine's.
    Row b draws from SeedSequence([seed, b]) and ends by itself: it does not depend on the rows beside it. temperature
    0 is greedy. Raises ValueError naming the prompt or setting at fault, before anything is computed.
    """
    sampling = Sampling(temperature, top_k, top_p)
    rows = make_rows(model, prompts, max_new_tokens, seed, stop)
    engine = Engine(model, backend, **engine_options)
    while step(engine, rows, sampling):
        pass
    return [row.generation() for row in rows]


def make_rows(
    model: Model, prompts: Iterable[Prompt], max_new_tokens: int, seed: int, stop: str | Sequence[str]
) -> list["Row"]:
    """One Row a prompt, all checked. Raises ValueError as `generate` does."""
    if isinstance(prompts, (str, bytes)):
        raise ValueError("prompts must be a list, not one string: put [ ] around it")
    check_integer("max_new_tokens", max_new_tokens, 0)
    check_integer("seed", seed, 0)
    stop = [stop] if isinstance(stop, str) else list(stop)
    for text in stop:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop must be texts of at least one character, not {text!r}")
    if stop and model.tokenizer is None:
        raise ValueError("stop: the model has no tokenizer, so there is no text to find a stop string in")
    ids = [prompt_ids(model, prompt, f"prompts[{b}]") for b, prompt in enumerate(prompts)]
    return [Row(model, prompt, max_new_tokens, row_stream(seed, b), stop) for b, prompt in enumerate(ids)]


def prompt_ids(model: Model, prompt: Prompt, name: str) -> list[int]:
    """The token ids of a prompt. Raises ValueError, with this name for it, when the model cannot continue it."""
    V, n_positions = model.config.vocab_size, model.config.n_positions
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise ValueError(f"{name}: the model has no tokenizer; give token ids")
        try:
            ids = model.tokenizer.encode(prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    else:
        ids = _integers(name, prompt)
    if not ids:
        raise ValueError(f"{name} is empty")
    if len(ids) > n_positions:
        raise ValueError(f"{name} is too long: {len(ids)} tokens, but the model has {n_positions} positions")
    for i in ids:
        if not 0 <= i < V:
            raise ValueError(f"{name}: token id {i} is not in [0, {V})")
    return ids


def _integers(name: str, prompt: Sequence[int]) -> list[int]:
    try:
        if isinstance(prompt, bytes):  # it would pass for integers
            raise TypeError
        return [_index(i) for i in prompt]
    except TypeError:
        raise ValueError(f"{name} must be a text or a list of token ids, not {prompt!r}") from None


def _index(i: object) -> int:
    if isinstance(i, bool):  # it would pass for 0 or 1
        raise TypeError
    return operator.index(i)  # type: ignore[arg-type]


def step(engine: Engine, rows: list["Row"], sampling: Sampling) -> bool:
    """Give every row that has not ended its next token; False when there is none.

    A row's whole prompt is fed at the first step, its newest token at the later ones.
    """
    running = [row for row in rows if row.stop_reason is None]
    if not running:
        return False
    logits = engine.feed([row.start(engine) for row in running], [row.pending for row in running])
    for row, x in zip(running, logits, strict=True):
        row.accept(sampling.draw(x[: row.n_choices], row.rng))
    return True


class Row:
    """One prompt and its continuation so far."""

    def __init__(
        self, model: Model, prompt: list[int], max_new_tokens: int, rng: np.random.Generator, stop: list[str]
    ) -> None:
        self.config, self.tokenizer = model.config, model.tokenizer
        self.max_new_tokens, self.rng, self.stop = max_new_tokens, rng, stop
        self.sequence: int | None = None  # the engine's handle, from the first step on
        self.pending = prompt  # tokens to feed next
        self.seen = 0  # tokens fed
        self.ids: list[int] = []
        self.text = None if model.tokenizer is None else ""
        self.stop_reason = None if max_new_tokens else "length"

    @property
    def n_choices(self) -> int:
        """Ids below this one may be drawn; a model's vocabulary can be padded beyond the tokenizer's."""
        return self.config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size

    def start(self, engine: Engine) -> int:
        """The engine's handle of this row."""
        if self.sequence is None:
            self.sequence = engine.new_sequence()
        return self.sequence

    def accept(self, token: int) -> None:
        """Add the token drawn once `pending` was fed, and end when it is the last one."""
        self.seen += len(self.pending)
        if token == self.config.eos_token_id:
            self.stop_reason = "eos"
            return
        self.ids.append(token)
        self.pending = [token]
        if len(self.ids) == self.max_new_tokens:
            self.stop_reason = "length"
        elif self.seen == self.config.n_positions:
            self.stop_reason = "n_positions"
        if self.tokenizer is not None:
            self.text = self.tokenizer.decode(self.ids)
            found = [at for at in map(self.text.find, self.stop) if at >= 0]
            if found:
                self.text, self.stop_reason = self.text[: min(found)], "stop"

    def settled(self) -> str:
        """The text that later tokens cannot change: without half a character, or what may become a stop string."""
        text = self.text or ""
        if self.stop_reason is not None:
            return text
        text = text.removesuffix("\ufffd")  # the next token may complete the character
        held = [n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])]
        return text[: len(text) - max(held, default=0)]

    def interrupt(self) -> None:
        """End here, with the settled text."""
        if self.stop_reason is None:
            self.text, self.stop_reason = self.text and self.settled(), "interrupted"

    def generation(self) -> Generation:
        """The row as a result. It must have ended."""
        assert self.stop_reason is not None
        return Generation(self.ids, self.text, self.stop_reason)
