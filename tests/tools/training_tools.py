"""What the tests of training share: a small text, small settings, and ways to fail."""

import json
from pathlib import Path

import numpy as np

from dcp_ref.training import TrainSettings

SHAPE = json.dumps({"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16})
STEPS = 8


def write_text(path: Path, seed: int = 0) -> str:
    """Two documents of few words, 1600 in all."""
    rng = np.random.default_rng(seed)
    words = ["the", "sea", "was", "grey", "and", "an", "old", "man", "looked", "at", "his", "boat.\n"]
    path.write_text("\n<|endoftext|>\n".join(" ".join(rng.choice(words, 800)) for _ in range(2)))
    return str(path)


def run_settings(book: str, out: Path, **changes) -> TrainSettings:
    base = dict(
        text=(book,), valid=(book,), out=str(out), config=SHAPE, prune=True, vocab_size=270, steps=STEPS, batch=4,
        learning_rate=1e-2, warmup=2, eval_every=3, eval_windows=3, save_every=2, threads=2,
    )
    return TrainSettings(**(base | changes))


def result(out: Path) -> tuple[bytes, bytes, list[dict]]:
    """What a run leaves: parameters and optimizer state, model, and metrics without their clock."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return (out / "checkpoint.safetensors").read_bytes(), (out / "model.safetensors").read_bytes(), rows


def failing(function, call: int, error: Exception, after: bool = True):
    """`function`, which raises at its call number `call`: after the work is done, or before."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise error
        value = function(*args, **kwargs)
        if calls == call:
            raise error
        return value

    return wrapped
