"""Our engine as a model of lm-evaluation-harness (the extra `lm-eval`).

    lm_eval.simple_evaluate(model=DcpRef("tiny", policy="sinks:4,60"), tasks=["lambada_openai"])
    python -m dcp_ref.analysis.lm_eval --model dcp_ref --model_args pretrained=tiny policy=window:64 --tasks piqa
    python -m dcp_ref.analysis.lm_eval --model dcp_ref --model_args '{"pretrained": "tiny", "policy": "sinks:4,60"}' ...

The second is the harness's own command line, told of the model `dcp_ref`. It takes a comma for the end of an argument:
the third is how to give one.
"""

from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dcp_ref import weights as checkpoints
from dcp_ref.analysis.likelihood import fit, pair_ids, score
from dcp_ref.runtime import policies
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import make_rows, step
from dcp_ref.runtime.sampling import Sampling

MAX_NEW_TOKENS = 256  # of a request that does not say
TOLD = {"until", "max_gen_toks", "max_tokens", "do_sample", "temperature", "top_p", "top_k"}  # what a request may say


@register_model("dcp_ref")
class DcpRef(LM):
    """A model directory, or the name of a shipped model, decoded as Engine's arguments say; a policy is its text.

    Raises ValueError for a model without a tokenizer, or without an end of text, and as Engine does.
    """

    def __init__(self, pretrained: str = "tiny", policy: str | None = None, threshold: float = 0.0,
                 backend: str | None = None, weights: str = "float32", kv: str = "float32",
                 threads: int | None = None, batch_size: Any = None, max_batch_size: Any = None,
                 device: Any = None) -> None:  # the harness gives the last three: they do not concern us
        super().__init__()
        self.model = checkpoints.load(pretrained)
        if self.model.tokenizer is None or self.model.tokenizer.eos_id is None:
            raise ValueError(f"{pretrained} has no tokenizer with an end of text, which the harness needs")
        self.tokenizer, self.end = self.model.tokenizer, self.model.tokenizer.eos_id
        self.engine = Engine(self.model, backend, policy=None if policy is None else policies.parse(policy),
                             threshold=threshold, weights=weights, kv=kv, threads=threads)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each request's (context, continuation)."""
        n_positions = self.model.config.n_positions
        pairs = [fit(pair_ids(self.tokenizer, *request.args), n_positions) for request in requests]
        bar = tqdm(pairs, disable=disable_tqdm or None)
        results = [(-found.nats, found.greedy) for found in score(self.engine, bar)]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text after an end of text, in the harness's windows of n_positions."""
        results = []
        for request in tqdm(requests, disable=disable_tqdm or None):
            windows = get_rolling_token_windows(self.tokenizer.encode(request.args[0]), self.end,
                                                self.model.config.n_positions, context_len=1)
            pairs = [(list(context), list(rest)) for context, rest in map(make_disjoint_window, windows)]
            results.append(-sum(found.nats for found in score(self.engine, pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each request's context, up to a text of `until`; greedy unless it says do_sample."""
        results = []
        for request in tqdm(requests, disable=disable_tqdm or None):
            context, told = request.args
            results.append(self._continued(context, told))
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    def _continued(self, context: str, told: dict[str, Any]) -> str:
        if told.keys() - TOLD:
            raise ValueError(f"generation_kwargs {sorted(told.keys() - TOLD)} are unknown: {sorted(TOLD)} are not")
        until, n = told.get("until") or [], told.get("max_gen_toks", told.get("max_tokens", MAX_NEW_TOKENS))
        n_positions = self.model.config.n_positions
        ids = self.tokenizer.encode(context) or [self.end]
        ids = ids[-max(1, n_positions - n) :]
        sampling = Sampling(0.0)
        if told.get("do_sample"):
            top_k = told.get("top_k") or None  # 0 is transformers' word for all
            sampling = Sampling(told.get("temperature", 1.0), top_k, told.get("top_p", 1.0))
        [row] = make_rows(self.model, [ids], n, 0, [until] if isinstance(until, str) else until)
        while step(self.engine, [row], sampling):
            pass
        if row.sequence is not None:  # None where no token was asked for
            self.engine.release(row.sequence)
        return row.text or ""


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
