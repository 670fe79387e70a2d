"""One threshold for all tasks: what each keeps under it, and where each begins to lose.

    python examples/studies/beyond/by_task.py --lambada l.jsonl --hellaswag h.jsonl --piqa p.jsonl \\
        --winogrande w.jsonl --text valid.txt.xz --limit 100

The learned rule runs at several thresholds. Of each task's items: the share of the context kept, the accuracy, and the
loss of the right answer in nats a token. The loss is compared item by item with that at threshold 0, for which the
model was trained. Beside each task: plain text in pieces as long as its items, as shorter texts keep a larger share.
Watch for: whether tasks keep what plain text of their length keeps; the first threshold at which a loss is certain.
"""

import argparse
import math
from typing import NamedTuple

import numpy as np

from dcp_ref import Engine, load
from dcp_ref.analysis import likelihood, zero_shot
from dcp_ref.analysis.tasks import TASKS, read_questions
from dcp_ref.analysis.texts import read_tokens

PASSAGE = """The old man looked at the sea for a long time, and said nothing. His daughter had gone to the village with
the boat, and the wind was rising. "She will be back before dark," said Mr. Harris at last. "She knows these waters
better than you or I." But the old man shook his head; he had seen that sky before, and he did not like it."""
TOY = {"lambada": [{"text": PASSAGE[:n].rpartition(" ")[0]} for n in (120, 200, 260, 330)]}  # without files


class Found(NamedTuple):
    """Of the items of a task at one threshold: losses in nats a token [n], whether answered rightly [n], share kept."""

    nats: np.ndarray
    right: np.ndarray
    kept: float


def share_kept(engine, texts) -> float:
    """The share of all pairs j < i of these texts, in all layers, where token j is live for token i."""
    pairs = held = 0
    for ids in texts:
        sequence, drops = engine.new_sequence(), []
        engine.feed([sequence], [ids], drops=drops)
        engine.release(sequence)
        T = len(ids)
        whole = engine.config.n_layer * T * (T - 1) // 2
        pairs += whole
        held += whole - sum(int((T - layer[:, 0]).sum()) for layer in drops)  # row i dropped it: gone for T - i rows
    return held / pairs


def answered(engine, questions, encoded) -> Found:
    """All questions by one engine."""
    nats, right, texts = [], [], []
    for question, pairs in zip(questions, encoded.pairs, strict=True):
        scored = likelihood.score(engine, pairs)
        context, answer = pairs[question.right]
        nats.append(scored[question.right].nats / len(answer))
        right.append(zero_shot.right(question, scored))
        texts.append(context + answer[:-1])  # the last token is not fed
    return Found(np.array(nats), np.array(right), share_kept(engine, [text for text in texts if len(text) > 1]))


def pieces(tokens, lengths, seed):
    """One piece of the text for each length, from a random place."""
    rng = np.random.default_rng(seed)
    return [tokens[start : start + n].tolist() for n in lengths for start in [rng.integers(0, len(tokens) - n + 1)]]


def plain(engine, texts) -> Found:
    """Each piece as a question with one answer: all of it, given its first token."""
    found = [likelihood.score(engine, [(ids[:1], ids[1:])])[0] for ids in texts]
    nats = np.array([one.nats / (len(ids) - 1) for one, ids in zip(found, texts, strict=True)])
    return Found(nats, np.full(len(texts), np.nan), share_kept(engine, texts))


def table(name, thresholds, found, beside):
    """Print the lines of a task; return what they say."""
    at_0, first = found[thresholds.index(0.0)], None
    for threshold, one, text in zip(thresholds, found, beside, strict=True):
        change = one.nats - at_0.nats
        error = change.std(ddof=1) / math.sqrt(len(change)) if len(change) > 1 else math.inf
        if threshold > 0 and first is None and change.mean() > 2 * error:
            first = f"{name} loses from threshold {threshold:g} on, with {one.kept:.1%} kept"
        accuracy = "" if np.isnan(one.right.astype(float)).any() else f"{one.right.mean():.1%}"
        shift = "" if threshold == 0 else f"{change.mean():+.3f} ± {error:.3f}"
        print(f"| {name} | {threshold:g} | {one.kept:.1%} | {text.kept:.1%} | {accuracy} | {one.nats.mean():.3f} | "
              f"{shift} |")
    return first or f"{name} loses nothing that is certain at these thresholds"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny")
    p.add_argument("--text", nargs="+", help="plain text files (default: a passage of three sentences)")
    for option in ("--lambada", "--hellaswag", "--piqa", "--winogrande"):
        p.add_argument(option, metavar="FILE", help="items of this task, one JSON object a line")
    p.add_argument("--limit", type=int, help="use the first items of each task only")
    p.add_argument("--thresholds", type=float, nargs="+", default=[-1.0, -0.5, 0.0, 0.5, 1.0, 1.5], help="0 among them")
    p.add_argument("--seed", type=int, default=0, help="seed of the places in plain text")
    args = p.parse_args()
    model, thresholds = load(args.model), sorted({0.0, *args.thresholds})
    engines = [Engine(model, threshold=threshold) for threshold in thresholds]
    tokens = read_tokens(model, args.text) if args.text else np.array(model.tokenizer.encode(PASSAGE))
    if len(tokens) < 3:
        p.error(f"--text {' '.join(args.text)}: {len(tokens)} tokens are too few, give a longer text")
    files = {task: file for task in TASKS if (file := getattr(args, task))}
    items = {task: read_questions(task, file, args.limit) for task, file in files.items()} or {
        task: [TASKS[task].question(item) for item in toys] for task, toys in TOY.items()}
    print("| task | threshold | kept | plain text as long | accuracy | nats a token | against threshold 0 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    said, most = [], min(model.config.n_positions, len(tokens))
    for task, questions in items.items():
        encoded = zero_shot.encode(questions, model.tokenizer, model.config.n_positions)
        lengths = [len(context) + len(answer) - 1 for question, pairs in zip(questions, encoded.pairs, strict=True)
                   for context, answer in [pairs[question.right]]]
        texts = pieces(tokens, [max(2, min(n, most)) for n in lengths], args.seed)
        found = [answered(engine, questions, encoded) for engine in engines]
        said.append(table(task, thresholds, found, [plain(engine, texts) for engine in engines]))
    texts = pieces(tokens, [most] * (args.limit or len(questions)), args.seed)
    found = [plain(engine, texts) for engine in engines]
    said.append(table("plain text", thresholds, found, found))
    print("", *said, sep="\n")


if __name__ == "__main__":
    main()
