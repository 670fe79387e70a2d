"""Scores of texts: how likely each is to the model, and how much context the layers hold meanwhile."""

import math
from array import array
from collections.abc import Sequence
from contextlib import closing
from typing import Any, ClassVar

import numpy as np

from dcp_ref.analysis.texts import count_bytes
from dcp_ref.analysis.windows import Window, batch_of, measured, spans
from dcp_ref.corpus.mapper import Mapper, Result, text_of
from dcp_ref.runtime.sampling import check_integer
from dcp_ref.training.data import encode_document

NAN = float("nan")


class Scorer(Mapper):
    """Scores each row's text as `evaluate` measures one document, in windows of `context` tokens, `stride` apart.

    The columns of the result, besides the id:
        log_probability   of the tokens but the first, which nothing predicts, and the end of text, in nats
        tokens, bytes     how many were scored, and the bytes of text that they stand for
        bits_per_byte     -log_probability in bits, divided by the bytes; NaN for no bytes
        live_tokens       [L]: the mean number of earlier tokens that a layer still holds when it scores a token
        share_kept        the mean, over layers, of what is held of all earlier tokens; 1 where there are none
        error             "", or why the row could not be scored; its numbers are then NaN or 0
    A text with no token to score has probability 1. The same text has the same bits, whatever the rows beside it.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "log_probability", "tokens", "bytes", "bits_per_byte", "live_tokens", "share_kept", "error")

    def __init__(self, model: str = "tiny", *, id: str = "id", text: str = "text", context: int | None = None,
                 stride: int | None = None, batch: int | None = None, **engine: Any) -> None:
        super().__init__(model, id, text, batch, engine, {"context": context, "stride": stride})
        n_positions = self.model.config.n_positions
        self.context = n_positions if context is None else check_integer("context", context, 2)
        if self.context > n_positions:
            raise ValueError(f"context must be from 2 to n_positions ({n_positions}), not {context}")
        self.stride = self.context if stride is None else check_integer("stride", stride, 1)
        if self.stride > self.context:
            raise ValueError(f"stride must be from 1 to the context ({self.context}), not {stride}")

    def results(self, ids: Sequence[Any], texts: Sequence[Any]) -> list[Result]:
        """The result of each row. All windows of all rows go side by side, the longest first."""
        found = [_encoded(self, text) for text in texts]
        tokens = [None if isinstance(one, str) else one for one in found]
        todo = [(row, Window.of(one, span), span.start) for row, one in enumerate(tokens)
                if one is not None and len(one) > 1 for span in spans(len(one) - 1, self.context, self.stride)]
        todo.sort(key=lambda each: -len(each[1].ids))
        row_of = np.array([row for row, _, _ in todo], np.int64)
        nats, L = [array("d") for _ in texts], self.model.config.n_layer
        live, pairs = np.zeros((len(texts), L), np.int64), np.zeros(len(texts), np.int64)
        batch = self.batch or batch_of(self.model.config, self.context)
        with closing(measured(self.engine, [window for _, window, _ in todo], batch)) as steps:
            for step in steps:
                rows = row_of[step.window]
                for row, value in zip(rows.tolist(), step.nats.tolist(), strict=True):
                    nats[row].append(value)
                np.add.at(live, rows, step.live.T)
                np.add.at(pairs, rows, step.position)
                if self.fed is not None:
                    self.fed(step.fed)
        return [self._result(*each) for each in zip(found, nats, live, pairs.tolist(), strict=True)]

    def _result(self, tokens: np.ndarray | str, nats: "array[float]", live: np.ndarray, pairs: int) -> Result:
        """The columns of a row whose tokens are these; `live` [L] and `pairs` are sums over what was scored."""
        if isinstance(tokens, str):
            return self.failed(tokens)
        if not np.isfinite(nats).all():
            return self.failed("the log probability is not finite")
        total = math.fsum(nats)  # exact: no order of adding changes a bit
        scored, n_bytes = len(tokens[1:]), count_bytes(self.model, tokens)
        shares = [int(one) / pairs if pairs else 1.0 for one in live]
        return dict(zip(self.columns, (
            -total or 0.0, scored, n_bytes, total / math.log(2) / n_bytes if n_bytes else NAN,
            live / max(1, scored), math.fsum(shares) / len(shares), ""), strict=True))

    def failed(self, error: str) -> Result:
        """The result of a row with this error."""
        live = np.full(self.model.config.n_layer, NAN)
        return dict(zip(self.columns, (NAN, 0, 0, NAN, live, NAN, error), strict=True))

    def tokens_of(self, result: Result) -> int:
        """How many tokens were scored."""
        return result["tokens"]


def _encoded(scorer: Scorer, text: Any) -> np.ndarray | str:
    """The token ids of a text, int64 [N]; or why it has none."""
    try:
        return encode_document(scorer.tokenizer, text_of(text)).astype(np.int64)
    except ValueError as error:
        return str(error)
