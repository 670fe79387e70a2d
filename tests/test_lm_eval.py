"""The harness finds of our engine what our own tasks find. Runs where lm_eval is installed: `make lm-eval`."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from text_models import text_model

from dcp_ref import Engine, generate, policies, weights
from dcp_ref.analysis import tasks, zero_shot
from dcp_ref.analysis.likelihood import score

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed: see make lm-eval"),
    pytest.mark.filterwarnings("ignore"),  # of the packages that it brings
]
MODEL = text_model()
ITEMS = [{"goal": goal, "sol1": one, "sol2": two, "label": label} for goal, one, two, label in [
    ("the old man", "looked at the sea", "was grey", 0), ("the sea", "looked at the old man", "was grey", 1),
    ("and the naïve old man said", "the sea", "señor, the sea was grey", 1), ("the grey sea was old,", "a", "the", 0),
    ("said the old man", "looked", "sea", 1)]]
YAML = """task: small_piqa
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{goal}}}}"
doc_to_target: label
doc_to_choice: "{{{{[sol1, sol2]}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("harness")
    weights.save(MODEL, path / "model")
    (path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (path / "small_piqa.yaml").write_text(YAML.format(file=path / "items.jsonl"))
    os.environ |= {"HF_DATASETS_CACHE": str(path / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return path


@pytest.fixture(scope="module")
def adapter(directory):
    from dcp_ref.analysis.lm_eval import DcpRef

    return DcpRef(str(directory / "model"), policy="sinks:2,9", threads=1)


def expected(directory):
    questions = tasks.read_questions("piqa", str(directory / "items.jsonl"))
    encoded = zero_shot.encode(questions, MODEL.tokenizer, MODEL.config.n_positions)
    return zero_shot.answer(Engine(MODEL, policy=policies.sinks(2, 9)), "piqa", questions, encoded)


def test_a_local_task(adapter, directory):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(directory), include_defaults=False)
    result = lm_eval.simple_evaluate(model=adapter, tasks=["small_piqa"], task_manager=manager, bootstrap_iters=0)
    found, ours = result["results"]["small_piqa"], expected(directory)
    assert found["acc,none"] == ours["accuracy"] and found["acc_norm,none"] == ours["accuracy_normalized"]


@pytest.mark.parametrize("model_args", [["pretrained={}", "policy=window:9"], ["pretrained={},policy=dense"],
                                        ['{{"pretrained": "{}", "policy": "sinks:2,9"}}']])
def test_its_own_command_line(directory, model_args):
    command = [sys.executable, "-m", "dcp_ref.analysis.lm_eval", "--model", "dcp_ref", "--model_args",
               *(text.format(directory / "model") for text in model_args), "--tasks", "small_piqa", "--include_path"]
    command.append(str(directory))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "small_piqa" in done.stdout, done.stderr[-2000:]


def request(*args):
    return SimpleNamespace(args=args)


def test_a_text_longer_than_the_model(adapter):
    ids = MODEL.tokenizer.encode("the old man looked at the sea " * 20)
    assert len(ids) > 2 * MODEL.config.n_positions
    [found] = adapter.loglikelihood_rolling([request("the old man looked at the sea " * 20)], disable_tqdm=True)
    n, end, engine = MODEL.config.n_positions, MODEL.tokenizer.eos_id, Engine(MODEL, policy=policies.sinks(2, 9))
    pairs, at = [([end], ids[:n])], n
    while at < len(ids):
        stop = min(at + n, len(ids))
        pairs.append((ids[stop - n - 1 : at], ids[at:stop]))
        at = stop
    assert found == pytest.approx(-sum(one.nats for one in score(engine, pairs)))
    assert adapter.loglikelihood_rolling([request("")], disable_tqdm=True) == [0]


def test_generation(adapter):
    [free] = generate(MODEL, ["the sea"], 12, temperature=0, policy=policies.sinks(2, 9))
    stop = next(c for c in free.text if c.isascii())
    found = adapter.generate_until([
        request("the sea", {"until": [], "max_gen_toks": 12}), request("the sea", {"until": stop, "max_gen_toks": 12}),
        request("the sea " * 40, {"max_gen_toks": 3, "do_sample": True, "temperature": 2.0}),
        request("", {"max_gen_toks": 1}), request("the sea", {"max_gen_toks": 0}),
        *(request("the sea", {"do_sample": True, "max_gen_toks": 12, **top_k}) for top_k in ({}, {"top_k": 0})),
    ], disable_tqdm=True)
    assert found[0] == free.text and found[1] == free.text[: free.text.index(stop)]
    assert found[4] == "" and found[5] == found[6] != free.text
    assert adapter.engine.stats().live_tokens == 0
    with pytest.raises(ValueError, match=r"\['beams'\] are unknown"):
        adapter.generate_until([request("the", {"beams": 3})])


def test_likelihoods_add_up(adapter):
    """Over all tokens, the probabilities of the next one add up to 1; the greedy one is marked."""
    alone = {i: MODEL.tokenizer.decode([i]) for i in range(1, MODEL.tokenizer.vocab_size)}
    found = adapter.loglikelihood([request("the", text) for text in alone.values() if "\ufffd" not in text], True)
    assert 0.1 < sum(np.exp(log_p) for log_p, _ in found) < 1.01
    assert sum(greedy for _, greedy in found) <= 1


def test_refusals(directory, tmp_path):
    from dcp_ref.analysis.lm_eval import DcpRef

    with pytest.raises(ValueError, match="policy 'windw:3' is not of one of these forms"):
        DcpRef(str(directory / "model"), policy="windw:3")
    weights.save(MODEL._replace(tokenizer=None), tmp_path)
    with pytest.raises(ValueError, match="no tokenizer with an end of text"):
        DcpRef(str(tmp_path))
