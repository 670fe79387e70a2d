"""Text from prompts: a batch of continuations, each ending by itself."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.sampling import Sampling, row_stream
from dcp_ref.tokenizer import Tokenizer
from dcp_ref.weights import Model

Prompt = str | Sequence[int]


class Generation(NamedTuple):
    """What was generated after one prompt.

    `ids`: the new tokens, the end-of-text token left out. `text`: their text, up to the stop string; None without a
    tokenizer. `stop_reason`: "length" (max_new_tokens), "stop" (a stop string), "eos" (end of text) or "n_positions"
    (the model has no more positions).
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
    stop: Sequence[str] = (),
    backend: str | None = None,
) -> list[Generation]:
    """Continue each prompt (a text, or token ids), all in one batch: one Generation a prompt, in their order.

    Row b draws from SeedSequence([seed, b]) and ends by itself: it does not depend on the rows beside it. temperature
    0 is greedy. Raises ValueError naming the prompt or setting at fault, before anything is computed.
    """
    sampling = Sampling(temperature, top_k, top_p)
    rows = make_rows(model, prompts, max_new_tokens, seed, stop)
    engine = Engine(model, backend)
    while step(engine, rows, sampling):
        pass
    return [row.generation() for row in rows]


def make_rows(
    model: Model, prompts: Iterable[Prompt], max_new_tokens: int, seed: int, stop: Sequence[str]
) -> list["Row"]:
    """One Row a prompt, all checked. Raises ValueError as `generate` does."""
    stop = [stop] if isinstance(stop, str) else list(stop)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, not {max_new_tokens!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed!r}")
    if stop and model.tokenizer is None:
        raise ValueError("stop: the model has no tokenizer, so there is no text to find a stop string in")
    if "" in stop:
        raise ValueError("stop: an empty string would stop everything")
    ids = [_prompt_ids(model, prompt, b) for b, prompt in enumerate(prompts)]
    return [Row(model, prompt, max_new_tokens, row_stream(seed, b), stop) for b, prompt in enumerate(ids)]


def step(engine: Engine, rows: list["Row"], sampling: Sampling) -> bool:
    """Give every row that has not ended its next token; False when there is none.

    A row's whole prompt is fed at the first step, its newest token at the later ones.
    """
    running = [row for row in rows if row.stop_reason is None]
    if not running:
        return False
    for row in running:
        if row.sequence is None:
            row.sequence = engine.new_sequence()
    for row, logits in zip(running, engine.feed([r.sequence for r in running], [r.pending for r in running]), strict=True):
        row.accept(sampling.draw(logits[: row.n_choices], row.rng))
    return True


class Row:
    """One prompt and its continuation so far."""

    def __init__(
        self, model: Model, prompt: list[int], max_new_tokens: int, rng: np.random.Generator, stop: list[str]
    ) -> None:
        self.config, self.tokenizer = model.config, model.tokenizer
        self.prompt, self.max_new_tokens, self.rng, self.stop = prompt, max_new_tokens, rng, stop
        self.n_choices = min(self.config.vocab_size, self.tokenizer.vocab_size) if self.tokenizer else self.config.vocab_size
        self.sequence: int | None = None  # the engine's handle, from the first step on
        self.pending = prompt  # tokens not yet fed
        self.ids: list[int] = []
        self.text = "" if self.tokenizer else None
        self.stop_reason = None if max_new_tokens else "length"

    def accept(self, token: int) -> None:
        """Add a token, and end when it is the last one."""
        if token == self.config.eos_token_id:
            self.stop_reason = "eos"
            return
        self.ids.append(token)
        self.pending = [token]
        if self.tokenizer:
            self.text = self.tokenizer.decode(self.ids)
            found = [at for at in map(self.text.find, self.stop) if at >= 0]
            if found:
                self.text, self.stop_reason = self.text[: min(found)], "stop"
                return
        if len(self.ids) == self.max_new_tokens:
            self.stop_reason = "length"
        elif len(self.prompt) + len(self.ids) > self.config.n_positions:
            self.stop_reason = "n_positions"

    def settled(self) -> str:
        """The text that later tokens cannot change: without half a character, or what may become a stop string."""
        text = self.text or ""
        if self.stop_reason is not None:
            return text
        held = [n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])]
        return text[: len(text) - max(held, default=0)].rstrip("\ufffd")

    def generation(self) -> Generation:
        """The row as a result. It must have ended."""
        assert self.stop_reason is not None
        return Generation(self.ids, self.text, self.stop_reason)


def _prompt_ids(model: Model, prompt: Prompt, b: int) -> list[int]:
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise ValueError(f"prompt {b}: the model has no tokenizer; give token ids")
        prompt = model.tokenizer.encode(prompt)
    ids = [int(i) for i in prompt]
    if not ids:
        raise ValueError(f"prompt {b} is empty")
    if len(ids) > model.config.n_positions:
        raise ValueError(f"prompt {b} has {len(ids)} tokens, more than the model's n_positions ({model.config.n_positions})")
    bad = [i for i in ids if not 0 <= i < model.config.vocab_size]
    if bad:
        raise ValueError(f"prompt {b}: token id {bad[0]} is not in [0, {model.config.vocab_size})")
    return ids
