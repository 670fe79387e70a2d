"""The parts of training against plain references."""

import json
import lzma
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from tokenizers import processors
from tolerances import PERPLEXITY_FLOAT64, TRAINING_FLOAT32

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.config import Config
from dcp_ref.model import forward, loss_and_grads
from dcp_ref.training import TrainSettings, data, parallel, perplexity, run_files, schedules, step
from dcp_ref.training.optimizer import adamw, clip, global_norm

SEEDS = st.integers(0, 2**32 - 1)


def test_learning_rate_rises_then_falls_to_a_tenth():
    rates = [schedules.learning_rate(s, 100, 10, 2.0) for s in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[99] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert all(0 < schedules.learning_rate(s, 3, 5, 1.0) <= 1 for s in range(3))  # a warm-up that does not end


def test_alpha_rises_from_1_to_8():
    alphas = [schedules.alpha(s, 101, 1.0) for s in range(101)]
    assert (alphas[0], alphas[50], alphas[100]) == (1.0, pytest.approx(4.5), 8.0)
    assert alphas == sorted(alphas)
    assert schedules.alpha(0, 1, 1.0) == 1.0


def test_alpha_stays_at_8_after_its_share_of_the_steps():
    alphas = [schedules.alpha(s, 101, 0.8) for s in range(101)]
    assert (alphas[0], alphas[40], alphas[80]) == (1.0, pytest.approx(4.5), 8.0)
    assert alphas == sorted(alphas) and alphas[79] < 8 and set(alphas[80:]) == {8.0}
    assert schedules.alpha(1, 101, 1e-9) == 8.0


@given(seed=SEEDS, step_number=st.integers(0, 1000), decay=st.sampled_from([0.0, 0.1]))
def test_adamw_equals_its_formula_element_by_element(seed, step_number, decay):
    rng = np.random.default_rng(seed)
    shapes = {"wte.weight": (3, 2), "ln_f.bias": (4,)}
    p, g, m = ({k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(3))
    v = {k: np.square(m[k]) for k in shapes}
    expected = {}
    for name, shape in shapes.items():
        for index in np.ndindex(shape):
            old, grad = float(p[name][index]), float(g[name][index])
            first = 0.9 * float(m[name][index]) + 0.1 * grad
            second = 0.95 * float(v[name][index]) + 0.05 * grad**2
            first_hat, second_hat = first / (1 - 0.9 ** (step_number + 1)), second / (1 - 0.95 ** (step_number + 1))
            shrink = decay * old if len(shape) == 2 else 0
            new = old - 0.01 * (first_hat / (math.sqrt(second_hat) + 1e-8) + shrink)
            expected[name, index] = (new, first, second)
    adamw(p, g, m, v, step=step_number, rate=0.01, decay=decay)
    for (name, index), values in expected.items():
        assert_allclose([p[name][index], m[name][index], v[name][index]], values, **TRAINING_FLOAT32)


def test_clip_shortens_only_what_is_too_long():
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert global_norm(grads) == 5.0
    clip(grads, 5.0, 6.0)
    assert grads["a"][0] == 3.0
    clip(grads, 5.0, 1.0)
    assert global_norm(grads) == pytest.approx(1.0)


def test_batch_is_windows_of_the_text_and_a_function_of_seed_and_step():
    tokens = np.arange(50, dtype=np.uint16)
    ids, targets = data.batch(tokens, 200, 8, 3, 5)
    assert ids.shape == targets.shape == (200, 8)
    assert (np.diff(ids) == 1).all() and (targets == ids + 1).all()
    assert ids.min() == 0 and targets.max() == 49  # both ends of the text are drawn
    assert (ids == data.batch(tokens, 200, 8, 3, 5)[0]).all()
    assert (ids != data.batch(tokens, 200, 8, 3, 6)[0]).any() and (ids != data.batch(tokens, 200, 8, 4, 5)[0]).any()


def test_documents_become_tokens_with_one_end_of_text_after_each(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 7)
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.xz"
    plain.write_text("one two three four\n<|endoftext|>\nfünf\n")
    packed.write_bytes(lzma.compress(b"six\r\n"))
    documents = data.read_documents([str(plain), str(packed)])
    assert documents == ["one two three four", "fünf", "six"]
    tokenizer = data.train_tokenizer(documents, 280)
    with ThreadPoolExecutor(2) as pool:
        tokens = data.tokenize(tokenizer, documents, pool)
    assert tokens.dtype == np.uint16
    assert (tokens == tokenizer.eos_id).sum() == 3
    assert tokenizer.decode(tokens) == "one two three four<|endoftext|>fünf<|endoftext|>six<|endoftext|>"


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_a_document(tmp_path):
    text = "one two\nthree\n<|endoftext|>\nfünf\n\n<|endoftext|>\n"
    windows = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    for name, content in (("a.txt", windows), ("b.txt.xz", lzma.compress(windows)), ("c.txt", text.encode())):
        (tmp_path / name).write_bytes(content)
        assert data.read_documents([str(tmp_path / name)]) == ["one two\nthree", "fünf"]


def test_what_the_tokenizer_puts_before_a_text_comes_before_each_document(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 3)
    for before, expected in (("<s>", "<s>a b c</s><s>d</s>"), ("</s>", "</s>a b c</s>d</s>")):
        backend = Tokenizer.train(["a b c d"], 260)._backend
        backend.add_special_tokens(["<s>", "</s>"])
        special = [(before, backend.token_to_id(before))]
        backend.post_processor = processors.TemplateProcessing(single=[before, "$A"], special_tokens=special)
        tokenizer = Tokenizer(backend, ["</s>"])
        with ThreadPoolExecutor(2) as pool:
            tokens = data.tokenize(tokenizer, ["a b c", "d"], pool)
            assert len(data.tokenize(tokenizer, [], pool)) == 0
        assert tokenizer.decode(tokens) == expected
        assert tokenizer.count_bytes(tokens) == 6


def test_last_hundredth_of_the_tokens_validates():
    first, last = data.split(np.arange(1000))
    assert (list(last), len(first)) == (list(range(990, 1000)), 990)


@given(words=st.lists(st.sampled_from(["a", "bb", "ccc", "\n", "dddddddddddd"]), max_size=20))
def test_chunks_put_together_are_the_document(words):
    document = " ".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CHUNK", 5)
        parts = data.chunks(document)
    assert "".join(parts) == document
    assert all(len(part) <= 5 for part in parts)


@pytest.mark.parametrize("depth", [False, True])
def test_perplexity_and_share_kept_equal_a_plain_count(depth):
    config = Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=3, n_head=2, int_n_embd=4, propagate_in_depth=depth)
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=p.shape) for name, p in weights.init_params(config, 0).items()}
    tokens = rng.integers(0, 11, 40).astype(np.uint16)
    losses, kept, pairs = [], 0, 0
    for start in (0, 15, 30):
        ids, targets = tokens[None, start : start + 9], tokens[None, start + 1 : start + 10]
        losses.append(loss_and_grads(params, ids, targets.astype(int), config, math.inf, 0.0)[0].cross_entropy)
        own = forward(params, ids, config).interaction[:, 0] > 0
        for layer in range(3):
            for i in range(9):
                for j in range(i):
                    kept += all(own[m, i, j] for m in range(layer + 1)) if depth else own[layer, i, j]
                    pairs += 1
    measured = perplexity(params, config, tokens, 9, 3)
    assert_allclose(measured, (math.exp(np.mean(losses)), kept / pairs), **PERPLEXITY_FLOAT64)
    assert 0 < measured[1] < 1


@pytest.mark.parametrize(("context", "tokens"), [(1, 20), (0, 20), (9, 9)])
def test_perplexity_needs_a_pair_and_enough_tokens(context, tokens):
    config = Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=1, n_head=2, int_n_embd=4)
    with pytest.raises(ValueError, match=f"context is {context}: .* less than the {tokens} tokens"):
        perplexity(weights.init_params(config, 0), config, np.arange(tokens) % 11, context, 3)


def test_gradients_of_a_batch_do_not_depend_on_micro_batch_nor_threads():
    config = Config(vocab_size=11, n_positions=9, n_embd=8, n_layer=2, n_head=2, int_n_embd=4)
    state = run_files.State.fresh(config, weights.init_params(config, 0))
    ids, targets = data.batch(np.arange(99) % 11, 6, 9, 0, 0)
    whole_loss, whole = loss_and_grads(state.params, ids, targets, config, 2.0, 0.5)
    for size, threads in ((1, 1), (1, 3), (2, 2), (6, 1)):
        with parallel.Pool(threads) as pool:
            loss, grads = step.batch_gradients(state, ids, targets, 2.0, [0.5] * len(ids), size=size, pool=pool)
        assert_allclose(loss, whole_loss, **TRAINING_FLOAT32)
        for name, g in grads.items():
            assert_allclose(g, whole[name], **TRAINING_FLOAT32, err_msg=name)


def test_paths_may_be_path_objects(tmp_path):
    settings = TrainSettings(text=[tmp_path / "a.txt"], out=tmp_path / "out", init=tmp_path / "init")
    assert json.loads(json.dumps(settings.to_dict()))["out"] == str(tmp_path / "out")
    assert settings == TrainSettings(text=[str(tmp_path / "a.txt")], out=f"{tmp_path}/out", init=f"{tmp_path}/init")
