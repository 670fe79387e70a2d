"""The engine as a model for lm-evaluation-harness (the extra `lm-eval`).

    lm_eval.simple_evaluate(model=DcpRef("tiny", policy="sinks:4,60"), tasks=["lambada_openai"])
    python -m dcp_ref.analysis.lm_eval --model dcp_ref --model_args pretrained=tiny policy=window:64 --tasks piqa
    python -m dcp_ref.analysis.lm_eval --model dcp_ref --model_args '{"pretrained": "tiny", "policy": "sinks:4,60"}' ...

The second form is the harness's own command line with the model `dcp_ref` added. There a comma ends an argument: the
third form is for values that contain one.
"""

import logging
import operator
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dcp_ref import policies
from dcp_ref.analysis.likelihood import fit, pair_ids, score
from dcp_ref.checkpoints.weights import Model, load
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import complete, make_rows
from dcp_ref.runtime.sampling import Sampling

TOLD = {"until", "max_gen_toks", "max_length", "do_sample", "temperature", "top_p", "top_k"}  # what a request may set
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}  # may be set to this alone
log = logging.getLogger(__name__)


@register_model("dcp_ref")
class DcpRef(LM):
    """A model directory, or a shipped model's name, with Engine's arguments; `policy` is a text for policies.parse.

    Raises ValueError for a model without a tokenizer or without an end of text, and as Engine does.
    """

    def __init__(self, pretrained: str = "tiny", policy: str | None = None, threshold: float = 0.0,
                 kept: float | None = None, backend: str | None = None, weights: str = "float32", kv: str = "float32",
                 threads: int | None = None, batch_size: Any = None, max_batch_size: Any = None,
                 device: Any = None) -> None:  # the harness gives the last three; they are not used
        super().__init__()
        self.model = load(pretrained)
        tokenizer, end = self.model.tokenizer, _end(self.model)
        if tokenizer is None or end is None:
            raise ValueError(f"{pretrained} has no tokenizer with an end of text, which the harness needs")
        self.tokenizer, self.end = tokenizer, end
        self.engine = Engine(self.model, backend, policy=None if policy is None else policies.parse(policy),
                             threshold=threshold, kept=kept, weights=weights, kv=kv, threads=threads)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each request's (context, continuation)."""
        n_positions = self.model.config.n_positions
        texts = [request.args for request in requests]
        whole = [pair_ids(self.tokenizer, context, continuation, self.end) for context, continuation in texts]
        pairs = [fit(pair, n_positions) for pair in whole]
        _warn_of_cuts(sum(map(operator.ne, pairs, whole)), len(pairs))
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
        """The continuation of each request's context, up to a text in `until`; greedy unless the request samples.

        Requests are understood as by the harness's own models. Request n draws from seed n.
        """
        results, prompts = [], [self._prompt(*request.args) for request in requests]
        _warn_of_cuts(sum(cut for *_, cut in prompts), len(prompts))
        for n, (ids, told, _) in enumerate(tqdm(prompts, disable=disable_tqdm or None)):
            results.append(self._continued(ids, told, seed=n))
            self.cache_hook.add_partial("generate_until", requests[n].args, results[-1])
        return results

    def _prompt(self, context: str, told: dict[str, Any]) -> tuple[list[int], Any, bool]:
        """The ids to continue, the request's settings, and whether the context was cut to leave room for the new text.

        Raises ValueError for a request that cannot be obeyed.
        """
        n_positions, normal = self.model.config.n_positions, normalize_gen_kwargs(told)
        unknown = {name for name in normal.keys() - TOLD if NEUTRAL.get(name) != normal[name]}
        if unknown:
            raise ValueError(f"generation_kwargs {sorted(unknown)} are unknown; known are {sorted(TOLD)}")
        n = normal["max_gen_toks"]
        if n >= n_positions:
            raise ValueError(f"max_gen_toks is {n}, but the model has {n_positions} positions, which leaves none for "
                             "the prompt: give --gen_kwargs max_gen_toks=N, with a smaller N")
        whole = self.tokenizer.encode(context) or [self.end]
        ids, length = whole[n - n_positions :], normal.get("max_length")
        if length is not None:  # transformers' name for the prompt and its continuation together
            if length < len(ids):
                raise ValueError(f"max_length is {length}, but the prompt has {len(ids)} tokens: "
                                 "give max_gen_toks instead, which does not count them")
            normal["max_gen_toks"] = length - len(ids)
        return ids, normal, ids != whole

    def _continued(self, prompt: list[int], told: Any, seed: int) -> str:
        sampling = Sampling(0.0)
        if told["do_sample"]:
            top_k = told.get("top_k") or -1  # "all tokens" is 0 in transformers, -1 in vLLM
            sampling = Sampling(told.get("temperature", 1.0), None if top_k == -1 else top_k, told.get("top_p", 1.0))
        until = [text for text in told["until"] if text]  # the harness means none by ""
        [row] = make_rows(self.model, [prompt], told["max_gen_toks"], seed, until)
        complete(self.engine, [row], sampling)
        return row.text or ""


def _end(model: Model) -> int | None:
    """The id that ends a text: the config's first one that the tokenizer has, or else the tokenizer's own."""
    if model.tokenizer is None:
        return None
    known = set(model.tokenizer.vocabulary.values())
    return next((end for end in model.config.ends if end in known), model.tokenizer.eos_id)


def _warn_of_cuts(n: int, of: int) -> None:
    if n:
        log.warning("%d of %d contexts were cut from the left: they did not fit n_positions", n, of)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
