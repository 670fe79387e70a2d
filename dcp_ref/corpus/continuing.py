"""Continuations of prompts, each drawn with random numbers of its own: those of its id, wherever it stands."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dcp_ref.analysis.windows import batch_of
from dcp_ref.corpus.mapper import Mapper, Result, text_of
from dcp_ref.runtime.generation import make_rows, prompt_ids, step
from dcp_ref.runtime.row import Row
from dcp_ref.runtime.sampling import Sampling, row_stream


class Continuer(Mapper):
    """Continues each row's text, as `dcp_ref.generate` does, whose settings these are.

    The columns of the result, besides the id: `text`, `ids`, `stop_reason` (runtime/row.py: Generation), and `error`,
    "" or why the row could not be continued. What a row draws depends on its id and the seed alone: so rows of one id
    and one text have one continuation.
    """

    columns: ClassVar[tuple[str, ...]] = ("text", "ids", "stop_reason", "error")

    def __init__(self, model: str = "tiny", *, id: str = "id", text: str = "text", max_new_tokens: int = 100,
                 temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0,
                 stop: str | Sequence[str] = (), batch: int | None = None, **engine: Any) -> None:
        stop = [stop] if isinstance(stop, str) else list(stop)
        super().__init__(model, id, text, batch, engine, {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
            "stop": stop})
        self.max_new_tokens, self.seed, self.stop = max_new_tokens, seed, stop
        self.sampling = Sampling(temperature, top_k, top_p)
        make_rows(self.model, [], max_new_tokens, seed, stop)  # checks them

    def results(self, ids: Sequence[Any], texts: Sequence[Any]) -> list[Result]:
        """The result of each row."""
        begun = [self._begin(*each) for each in zip(ids, texts, strict=True)]
        todo = [each for each in begun if isinstance(each, Row)]
        todo.sort(key=lambda row: -len(row.prompt))
        batch = self.batch or batch_of(self.model.config, self.model.config.n_positions)
        try:
            self._complete(todo, batch)
        except ValueError:  # no token can be drawn for some row: each alone then, which changes no other row's bits
            begun = [self._alone(*each) for each in zip(ids, texts, strict=True)]
        return [self.failed(row) if isinstance(row, str) else
                {"text": row.text, "ids": row.ids, "stop_reason": row.stop_reason, "error": ""} for row in begun]

    def _begin(self, id: Any, text: Any) -> Row | str:
        """A row before its first step; or why there is none."""
        try:
            prompt = prompt_ids(self.model, text_of(text), "the text")
        except ValueError as error:
            return str(error)
        [row] = make_rows(self.model, [prompt], self.max_new_tokens, self.seed, self.stop)
        row.rng = row_stream(self.seed, number_of(id))
        return row

    def _alone(self, id: Any, text: Any) -> Row | str:
        """A row that has ended, decoded with no other; or why it could not be."""
        row = self._begin(id, text)
        try:
            self._complete([row] if isinstance(row, Row) else [], 1)
        except ValueError as error:
            return str(error)
        return row

    def _complete(self, rows: Sequence[Row], batch: int) -> None:
        """Take steps until all rows have ended, at most `batch` at once; where one ends, the next one begins."""
        waiting, running = list(reversed(rows)), list[Row]()
        try:
            while running or waiting:
                while waiting and len(running) < batch:
                    running.append(waiting.pop())
                tokens = sum(len(row.pending) for row in running if row.stop_reason is None)
                step(self.engine, running, self.sampling)
                running = [row for row in running if row.stop_reason is None]
                if self.fed is not None:
                    self.fed(tokens)
        finally:
            for row in rows:
                row.release(self.engine)

    def failed(self, error: str) -> Result:
        """The result of a row with this error."""
        return {"text": "", "ids": [], "stop_reason": "error", "error": error}

    def tokens_of(self, result: Result) -> int:
        """How many tokens were drawn."""
        return len(result["ids"])


def number_of(id: Any) -> int:
    """A number that belongs to an id: the SHA-256 of the id as JSON. 7 and "7" are two ids."""
    if isinstance(id, np.generic):
        id = id.item()
    return int.from_bytes(hashlib.sha256(json.dumps(id).encode()).digest(), "big")
