"""What `dcp-ref generate --save-cache` and `--cache` do: a long text is read once."""

import argparse

from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import Row, accept, read
from dcp_ref.runtime.sampling import Sampling


def check(args: argparse.Namespace, prompts: int) -> None:
    """Raises ValueError for options that do not go together."""
    if args.trace and args.cache:
        raise ValueError("--trace needs all of the text, and --cache has only what is left of it: give one of them")
    if args.save_cache and prompts > 1:
        raise ValueError(f"--save-cache takes one prompt, not {prompts}")


def restore(engine: Engine, rows: list[Row], names: list[str], path: str) -> None:
    """Let each row go on from the saved sequence, in a fork of it."""
    saved = engine.restore(path)
    seen, most = engine.length(saved), engine.config.n_positions
    for row, name in zip(rows, names, strict=True):
        if seen + len(row.prompt) > most:
            raise ValueError(f"{name} is too long: {len(row.prompt)} tokens after the {seen} of {path}, but the model "
                             f"has {most} positions")
        row.sequence, row.seen = engine.fork(saved), seen
    engine.release(saved)


def first_step(engine: Engine, row: Row, sampling: Sampling, path: str) -> None:
    """Read the row's prompt, write what is kept of it, and draw the first token if there is to be one."""
    logits = read(engine, [row])
    assert row.sequence is not None
    engine.save(row.sequence, path)
    if row.stop_reason is None:
        accept(engine, [row], logits, sampling)
    else:  # no new tokens
        row.seen += len(row.prompt)
        row.release(engine)
