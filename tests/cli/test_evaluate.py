"""`dcp-ref evaluate` as people type it."""

import dataclasses
import functools
import json
import lzma
import sys

import numpy as np
import pytest
from cli_tools import assert_refused, call, saved
from task_tools import ITEMS, written
from text_models import CONFIG, TOKENIZER, text_model
from tokenizers_of_all_kinds import KINDS

from dcp_ref import Engine, Model, policies
from dcp_ref.analysis import sweep, texts
from dcp_ref.analysis.perplexity import evaluate
from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.cli import command

MODEL = text_model()
DOCUMENTS = ["the old man looked at the sea, and the sea was grey; " * 4, "señor, 海は灰色 🌊, the naïve old man said."]
TOKENS = np.array([i for text in DOCUMENTS for i in [*TOKENIZER.encode(text), CONFIG.eos_token_id]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(MODEL, tmp_path_factory)


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt.xz"
    path.write_bytes(lzma.compress("\n<|endoftext|>\n".join(DOCUMENTS).encode()))
    return str(path)


@pytest.fixture
def run(model, capsys):
    """Runs `dcp-ref evaluate` with the small model: (exit code, stdout, stderr)."""
    return functools.partial(call, capsys, "evaluate", "--model", model)


def test_json(run, book, model):
    code, out, err = run("--text", book, "--json")
    result, found = json.loads(out), evaluate(Engine(MODEL), TOKENS)
    assert (code, err) == (0, "")
    assert result["bytes"] == sum(len(text.encode()) for text in DOCUMENTS) - len(TOKENIZER.decode(TOKENS[:1].tolist()))
    assert result["tokens"] == len(TOKENS) - 1 and result["context"] == result["stride"] == 48
    assert (result["model"], result["policy"], result["threshold"]) == (model, "learned", 0)
    assert result["perplexity"] == pytest.approx(found.perplexity) and result["share_kept"] == found.share_kept
    assert result["layers_kept"] == found.layers_kept and [p["last"] for p in result["positions"]] == [15, 31, 47]


def test_windows_files_measure_the_same(run, book, tmp_path):
    text = "\ufeff" + "\n<|endoftext|>\n".join(DOCUMENTS) + "\n"
    (tmp_path / "windows.txt").write_bytes(text.replace("\n", "\r\n").encode())
    assert run("--text", str(tmp_path / "windows.txt"), "--json") == run("--text", book, "--json")


@pytest.mark.parametrize("cut", [5, 60, 61, 62, 63, 64])
def test_bytes_of_a_text_that_is_cut(run, book, cut):
    """Wherever the tokens end, in the middle of a character too."""
    result = json.loads(run("--text", book, "--json", "--max-tokens", str(cut))[1])
    ids = [i for i in TOKENS[1 : cut + 1].tolist() if i != CONFIG.eos_token_id]
    assert result["bytes"] == sum(len(TOKENIZER._bytes[i]) for i in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_whose_end_of_text_is_another(kind, capsys, tmp_path):
    """Its config names it: documents end in it, in evaluate and in train; its bytes are those of its text."""
    tokenizer = Tokenizer(KINDS[kind]())
    end = tokenizer.vocabulary[{"word_piece": "[SEP]", "byte_level": "<|endoftext|>"}.get(kind, "</s>")]
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, eos_token_id=end)
    weights.save(Model(config, text_model(config).params, tokenizer), tmp_path / "model")
    documents = ["the old man", "the sea", "he was grey"]
    (tmp_path / "text").write_text("\n<|endoftext|>\n".join(documents))
    model = weights.load(tmp_path / "model")
    tokens = texts.read_tokens(model, [str(tmp_path / "text")])
    assert tokens.tolist() == [i for text in documents for i in [*tokenizer.encode(text), end]]
    out = call(capsys, "evaluate", "--model", str(tmp_path / "model"), "--text", str(tmp_path / "text"), "--json")[1]
    first = len(tokenizer.decode(tokens[:1]).encode())
    assert json.loads(out)["bytes"] == sum(len(text) for text in documents) - first
    read = ["--text", str(tmp_path / "text"), "--valid", str(tmp_path / "text"), "--init", str(tmp_path / "model")]
    run = [*read, "--out", str(tmp_path / "run"), "--steps", "1", "--context", "4", "--prune"]
    assert call(capsys, "train", *run)[0] == 0
    assert np.load(tmp_path / "run" / "train.npy").tolist() == tokens.tolist()
    trained = weights.load(tmp_path / "run")
    assert (trained.config.eos_token_id, trained.tokenizer.eos_id) == (end, end)


def test_options_reach_the_engine(run, book):
    arguments = ["--context", "20", "--stride", "7", "--max-tokens", "90", "--policy", "sinks:2,5", "--kv", "int8"]
    result = json.loads(run("--text", book, "--json", "--batch", "2", "--weights", "float16", *arguments)[1])
    engine = Engine(MODEL, policy=policies.sinks(2, 5), kv="int8", weights="float16")
    found = evaluate(engine, TOKENS[:91], 20, 7)
    assert result["tokens"] == 90 and result["nats_per_token"] == pytest.approx(found.nats_per_token)
    assert result["share_kept"] == found.share_kept
    result = json.loads(run("--text", book, "--json", "--threshold", "0.5", "--backend", "numpy")[1])
    found = evaluate(Engine(MODEL, "numpy", threshold=0.5), TOKENS)
    assert result["share_kept"] == found.share_kept < evaluate(Engine(MODEL), TOKENS).share_kept
    assert (result["threshold"], result["backend"]) == (0.5, "numpy")
    for infinity in ("inf", "-inf"):
        assert json.loads(run("--text", book, "--json", "--threshold", infinity)[1])["threshold"] == infinity


@pytest.mark.parametrize("number", ["-inf", "-Infinity", "-1e-3", "-2.5E+1", "-.5", "-1."])
def test_a_negative_number_is_no_option(number):
    arguments = ["evaluate", "--thresholds", number, number, "--threshold", number, "--text", "book.txt"]
    args = command.parser(arguments).parse_args(arguments)
    assert (args.threshold, args.thresholds, args.text) == (float(number), [float(number)] * 2, ["book.txt"])
    args = command.parser(["generate"]).parse_args(["generate", "the sea", "--threshold", number])
    assert args.threshold == float(number)


def test_the_table(run, book):
    code, out, err = run("--text", book, "--threshold", "0.5")
    result = json.loads(run("--text", book, "--threshold", "0.5", "--json")[1])
    assert (code, err) == (0, "")
    assert f"policy learned, threshold 0.5: perplexity {result['perplexity']:.2f} a token" in out
    assert f"{result['bits_per_byte']:.4f} bits a byte" in out and f"{result['tokens']} tokens, windows of 48" in out
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + CONFIG.n_layer + 2 + 3


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(sweep, "LEARNED_SHARES", (1.0, 0.05))
    monkeypatch.setattr(sweep, "SHARES", (0.5, 0.2))


def test_sweep(run, book, model, short, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "new" / "curve"
    code, text, err = run("--text", book, "--sweep", "--out", str(out), "--models", model, model)
    result = json.loads((tmp_path / "new" / "curve.json").read_text())
    assert (code, err) == (0, "")
    assert (tmp_path / "new" / "curve.md").read_text() == text
    assert (tmp_path / "new" / "curve.png").stat().st_size > 10_000
    rules = [point["rule"] for point in result["points"]]
    assert rules.count("learned") == 3 and rules.count("learned, by model") == 2 and rules.count("dense") == 1
    assert all(rules.count(rule) == 2 for rule in ("window", "strided", "sinks", "heavy_hitters"))
    assert text.count("\n| ") == 2 + len(rules)
    assert f"dense and fixed rules: {model} with its learned rule off" in text and result["note"] in text


def test_sweep_with_another_dense_model(run, book, model, short, capsys, tmp_path):
    weights.save(text_model(dataclasses.replace(CONFIG, int_n_embd=None), seed=1), tmp_path / "dense")
    arguments = ["--text", book, "--sweep", "--json", "--thresholds", "0.5", "-1", "--dense", str(tmp_path / "dense")]
    result = json.loads(run(*arguments)[1])
    points = result["points"]
    assert result["note"] == "" and "learned rule off" not in run(*arguments[:3], *arguments[4:])[1]
    assert [p["threshold"] for p in points if p["rule"] == "learned"] == [-1, 0, 0.5]
    assert {p["model"] for p in points if p["rule"] != "learned"} == {str(tmp_path / "dense")}
    points = json.loads(call(capsys, "evaluate", "--text", book, "--sweep", "--json", "--models", model)[1])["points"]
    assert {p["model"] for p in points} == {model} and not [p for p in points if p["rule"] == "learned"]


@pytest.mark.parametrize("task", ["lambada", "hellaswag", "piqa", "winogrande"])
def test_tasks(run, tmp_path, task):
    path = written(tmp_path, ITEMS[task], ITEMS[task], "no item")
    result = json.loads(run("--task", task, "--data", path, "--limit", "2", "--json")[1])
    assert list(result["results"]) == ["learned", "dense"] and result["task"] == task
    assert all(r["items"] == 2 and r["accuracy"] in (0, 1) for r in result["results"].values())
    code, out, err = run("--task", task, "--data", path, "--limit", "2", "--policy", "window:3")
    assert (code, err) == (0, "") and f"{task}, 2 items" in out and "window:3 | chance |" in out and "±" in out
    assert ("perplexity of the word" in out) == (task == "lambada")


def test_contexts_that_were_cut(run, tmp_path):
    path = written(tmp_path, {**ITEMS["piqa"], "goal": "open the door " * 30}, ITEMS["piqa"])
    assert "\n1 contexts were cut from the left" in run("--task", "piqa", "--data", path)[1]
    path = written(tmp_path, ITEMS["piqa"], "", {**ITEMS["piqa"], "sol1": "open the door " * 30})
    assert_refused(run("--task", "piqa", "--data", path), "items.jsonl, line 3: ", "n_positions (48)",
                   "take a model with more positions")


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "give --text FILE, for perplexity, or --task NAME --data FILE"),
    (["--text", "BOOK", "--task", "piqa"], "and not both"),
    (["--task", "piqa"], "--task piqa needs --data FILE"),
    (["--task", "piqa", "--data", "nowhere"], "nowhere: cannot be read"),
    (["--task", "piqa", "--data", "BOOK", "--context", "9"], "--context goes with --text"),
    (["--text", "BOOK", "--limit", "0"], "--limit goes with --task"),
    (["--text", "BOOK", "--data", "x"], "--data goes with --task"),
    (["--text", "BOOK", "--out", "x"], "--out goes with --sweep"),
    (["--text", "BOOK", "--thresholds", "1"], "--thresholds goes with --sweep"),
    (["--text", "BOOK", "--sweep", "--policy", "dense"], "--sweep chooses policies"),
    (["--text", "BOOK", "--sweep", "--threshold", "1"], "--sweep chooses policies"),
    (["--text", "BOOK", "--sweep", "--models", "tinny"], "tinny"),
    (["--text", "BOOK", "--sweep", "--thresholds", "nan"], "thresholds must be finite, not nan"),
    (["--text", "BOOK", "--sweep", "--out", "."], "--out . is a directory"),
    (["--text", "nowhere"], "nowhere: cannot be read"),
    (["--text", "BOOK", "--context", "49"], "context must be from 2 to n_positions (48), not 49"),
    (["--text", "BOOK", "--stride", "0"], "stride must be from 1 to the context"),
    (["--text", "BOOK", "--max-tokens", "1"], "max_tokens must be 2 or more"),
    (["--text", "BOOK", "--batch", "0"], "batch must be 1 or more"),
    (["--text", "BOOK", "--policy", "windw:3"], "windw:3"),
    (["--text", "BOOK", "--policy", "dense", "--threshold", "1"], "threshold is"),
    (["--text", "BOOK", "--model", "tinny"], "tinny"),
])
def test_refusals(run, book, arguments, words):
    assert_refused(run(*(book if argument == "BOOK" else argument for argument in arguments)), words)


def test_a_place_that_cannot_be_made(run, book, monkeypatch):
    monkeypatch.setattr("dcp_ref.checkpoints.pictures.unavailable", lambda: None)
    assert_refused(run("--text", book, "--sweep", "--out", f"{book}/new/curve"),
                   f"--out: cannot make {book}/new (Not a directory): give another place")


def test_models_that_do_not_fit(run, book, tmp_path):
    (tmp_path / "empty").write_text("\n")
    assert_refused(run("--text", str(tmp_path / "empty")), "the text has 0 tokens: at least 3")
    weights.save(MODEL._replace(tokenizer=None), tmp_path / "mute")
    assert_refused(run("--text", book, "--model", str(tmp_path / "mute")), "mute has no tokenizer")
    other = Tokenizer.train(["other words, other tokens"], CONFIG.vocab_size)
    weights.save(Model(CONFIG, MODEL.params, other), tmp_path / "other")
    assert_refused(run("--text", book, "--sweep", "--models", str(tmp_path / "other")), "different tokenizers")


def test_a_missing_matplotlib_is_said_before_the_work(run, book, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(texts, "load", lambda name: 1 / 0)
    assert_refused(run("--text", book, "--sweep", "--out", str(tmp_path / "a" / "b")),
                   "--out draws a plot, but matplotlib cannot be imported (", '): pip install "dcp-ref[plot]"')
    assert not (tmp_path / "a").exists()
