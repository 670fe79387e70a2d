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

from dcp_ref import Engine, generate, policies
from dcp_ref.analysis import tasks, zero_shot
from dcp_ref.analysis.likelihood import score
from dcp_ref.checkpoints import weights

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed: see make lm-eval"),
    pytest.mark.filterwarnings("ignore"),  # of the packages that it brings
]
MODEL = text_model()
ITEMS = [{"goal": goal, "sol1": one, "sol2": two, "label": label} for goal, one, two, label in [
    ("the old man", "looked at the sea", "was grey", 0), ("the sea", "looked at the old man", "was grey", 1),
    ("and the naïve old man said", "the sea", "señor, the sea was grey", 1), ("the grey sea was old,", "a", "the", 0),
    ("said the old man", "looked", "sea", 1)]]
HELLASWAG = [
    {"activity_label": "Old men", "ctx_a": "the old man looked [title] the sea. [step] and", "ctx_b": "the Sea",
     "label": label, "endings": ["[step] was grey [title] so", "said  the", "looked", "[substeps] señor [x] was grey"]}
    for label in ("0", "1", "2", "3")]
YAML = """task: small_{task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
YAMLS = {  # the rest of each is the harness's own file
    "piqa": r"""doc_to_text: "Question: {{goal}}\nAnswer:"
doc_to_target: label
doc_to_choice: "{{[sol1, sol2]}}"
""",
    "hellaswag": """process_docs: !function process.process_docs
doc_to_text: "{{query}}"
doc_to_target: "{{label}}"
doc_to_choice: choices
"""}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("harness")
    weights.save(MODEL, path / "model")
    for task, items in (("piqa", ITEMS), ("hellaswag", HELLASWAG)):
        (path / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        (path / f"small_{task}.yaml").write_text(YAML.format(task=task, file=path / f"{task}.jsonl") + YAMLS[task])
    (path / "process.py").write_text("from lm_eval.tasks.hellaswag.utils import process_docs\n")
    os.environ |= {"HF_DATASETS_CACHE": str(path / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return path


@pytest.fixture(scope="module")
def adapter(directory):
    from dcp_ref.analysis.lm_eval import DcpRef

    return DcpRef(str(directory / "model"), policy="sinks:2,9", threads=1)


@pytest.mark.parametrize("task", ["piqa", "hellaswag"])
def test_a_local_task(adapter, directory, task):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(directory), include_defaults=False)
    result = lm_eval.simple_evaluate(model=adapter, tasks=[f"small_{task}"], task_manager=manager, bootstrap_iters=0)
    questions = tasks.read_questions(task, str(directory / f"{task}.jsonl"))
    asked = [tuple(request) for sample in result["samples"][f"small_{task}"] for request in sample["arguments"]]
    assert asked == [pair for question in questions for pair in question.pairs]
    encoded = zero_shot.encode(questions, MODEL.tokenizer, MODEL.config.n_positions)
    ours = zero_shot.answer(Engine(MODEL, policy=policies.sinks(2, 9)), task, questions, encoded)
    found = result["results"][f"small_{task}"]
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
    ], disable_tqdm=True)
    assert found[0] == free.text and found[1] == free.text[: free.text.index(stop)]
    assert found[4] == ""
    assert adapter.engine.stats().live_tokens == 0


def continued(adapter, *told, text="the sea"):
    return adapter.generate_until([request(text, each) for each in told], disable_tqdm=True)


def test_a_request_is_understood_as_the_harness_does(adapter):
    greedy = [continued(adapter, {"max_gen_toks": n})[0] for n in range(8)]
    ids = len(MODEL.tokenizer.encode("the sea"))
    same = [{"max_new_tokens": 5}, {"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_length": ids + 5},
            {"max_gen_toks": 5, "max_new_tokens": 7, "max_tokens": 6}, {"max_new_tokens": 5, "max_tokens": 7},
            {"max_gen_toks": 5, "temperature": 0.0}, {"max_gen_toks": 5, "temperature": 2.0, "do_sample": False},
            {"max_gen_toks": 5, "until": ""}, {"max_gen_toks": 5, "until": ["", "never"]},
            {"max_gen_toks": 5, "until": None}, {"max_gen_toks": 5, "num_beams": 1, "repetition_penalty": 1.0}]
    same = [{"max_gen_toks": 8} | told if "max_length" in told else told for told in same]
    assert continued(adapter, *same) == [greedy[5]] * len(same)


def test_sampling(adapter):
    """A temperature alone draws; so does do_sample alone, at 1. Requests draw numbers of their own, always the same."""
    hot = {"max_gen_toks": 12, "temperature": 1.0}
    first, second = continued(adapter, hot, hot)
    [greedy] = continued(adapter, {"max_gen_toks": 12})
    assert len({first, second, greedy}) == 3
    for told in ({"do_sample": True}, {"do_sample": True, "top_k": 0}, {"top_k": -1, "temperature": 1.0}):
        assert continued(adapter, {"max_gen_toks": 12, **told}) == [first]
    assert continued(adapter, hot | {"top_k": 1}) == [greedy]


def test_a_prompt_is_cut_as_the_harness_does_and_never_without_a_word(adapter, caplog):
    n, long = MODEL.config.n_positions, "the old man looked at the sea " * 5
    ids = MODEL.tokenizer.encode(long)
    fed, feed = [], adapter.engine.feed
    adapter.engine.feed = lambda sequences, rows, *rest: (fed.append(list(rows[0])), feed(sequences, rows, *rest))[1]
    try:
        continued(adapter, {"max_gen_toks": 5}, text=long)
        assert fed[0] == ids[-(n - 5) :] and "1 of 1 contexts were cut from the left" in caplog.text
        adapter.loglikelihood([request("the", " sea"), request(long, " the")], disable_tqdm=True)
        assert "1 of 2 contexts were cut from the left" in caplog.text
        fed.clear()
        for told in ({"max_gen_toks": n}, {"max_new_tokens": n + 3}, {}):  # 256 unless a request says it
            with pytest.raises(ValueError, match=rf"max_gen_toks is \d+, but the model has {n} positions"):
                continued(adapter, told, text=long)
        with pytest.raises(ValueError, match=rf"max_length is 3, but the prompt has {n - 9} tokens"):
            continued(adapter, {"max_gen_toks": 9, "max_length": 3}, text=long)
        assert not fed
    finally:
        del adapter.engine.feed


@pytest.mark.parametrize("told", [{"beams": 3}, {"num_beams": 2}, {"repetition_penalty": 1.2}])
def test_what_the_engine_cannot_do_is_refused_by_name(adapter, told):
    with pytest.raises(ValueError, match=rf"\['{next(iter(told))}'\] are unknown"):
        continued(adapter, {"max_gen_toks": 3, **told})


def test_an_end_of_text_that_the_config_names(tmp_path):
    """Also where the context is empty, and before the windows of a text."""
    from dcp_ref.analysis.lm_eval import DcpRef

    weights.save(MODEL, tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<|endoftext|>", "</s>"), encoding="utf-8")
    found, expected = DcpRef(str(tmp_path), threads=1), Engine(MODEL)
    assert found.tokenizer.encode("</s>") == [found.end] == [MODEL.config.eos_token_id]
    [one] = score(expected, [([found.end], MODEL.tokenizer.encode("the sea"))])
    assert found.loglikelihood([request("", "the sea")], True) == [(pytest.approx(-one.nats), one.greedy)]
    assert found.loglikelihood_rolling([request("the sea")], True) == [pytest.approx(-one.nats)]
    assert continued(found, {"max_gen_toks": 3}, text="") == [generate(MODEL, [[found.end]], 3, temperature=0)[0].text]


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
