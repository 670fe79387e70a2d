"""The training loop: dcp_ref.training.train(TrainSettings(text=["book.txt"], out="model"))."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dcp_ref import files, weights
from dcp_ref.tokenizer import Tokenizer
from dcp_ref.training import checkpoint, data, plot, teaching
from dcp_ref.training.blas import Pool, kept_memory
from dcp_ref.training.checkpoint import State, TrainingError
from dcp_ref.training.settings import TrainSettings
from dcp_ref.training.step import perplexity, train_step


def train(settings: TrainSettings, progress: bool = True) -> None:
    """Train a model, or go on with a run that was stopped: the result is the same, bit for bit.

    Raises ValueError for settings that cannot work and while another run has `out`, before anything is written, and
    TrainingError when the run has to stop: the disk is full, or the loss is not finite. Ctrl-C
    saves the state after the step under way.
    """
    out = Path(settings.out)
    threads = settings.threads or os.cpu_count() or 1
    with Pool(threads) as pool, kept_memory(), explained_disk_errors(out), checkpoint.alone(out):
        if (out / checkpoint.SETTINGS).exists():
            settings.check_same(checkpoint.load_settings(out))
        else:
            refuse_other_files(out)
        if settings.plot:
            plot.check()
        if not (out / checkpoint.CHECKPOINT).exists():
            if (out / checkpoint.METRICS).exists():
                raise TrainingError(f"{out / checkpoint.CHECKPOINT} is gone: start afresh elsewhere")
            prepare(settings, out, pool)
        state = checkpoint.load_state(out)
        if state.step >= settings.end:
            say(f"{out}: already finished ({state.step} steps)", progress)
            if settings.plot:
                plot.draw(out, settings.target_kept)
        else:
            run(settings, out, state, pool, progress)


def refuse_other_files(out: Path) -> None:
    """Raises ValueError when a directory that no run has claimed holds a file that a run would replace."""
    for name in checkpoint.FILES:
        if (out / name).exists():
            raise ValueError(f"out: {out} holds {name} but no {checkpoint.SETTINGS}; give another directory")


def prepare(settings: TrainSettings, out: Path, pool: Pool) -> None:
    """Check everything, then write what a run starts from: the settings first, which claim the directory, the
    checkpoint last, which says that all is there."""
    model, teacher = None if settings.init is None else weights.load(settings.init), teaching.load(settings)
    if model is not None and model.tokenizer is None:
        raise ValueError(f"init: {settings.init} has no tokenizer")
    config = settings.with_pruning(settings.base_config() if model is None else model.config)
    given = next((m.tokenizer for m in (model, teacher) if m is not None), None)
    if given is not None:
        settings.check_vocab_size(given.vocab_size, f"the tokenizer of {settings.init or settings.teacher}")
    tokenizer, train_tokens, valid_tokens = data.read_texts(settings, given, settings.context_of(config), pool)
    if model is None:
        size = tokenizer.vocab_size if teacher is None else teacher.config.vocab_size  # there may be ids of no token
        config = dataclasses.replace(config, vocab_size=size, eos_token_id=tokenizer.eos_id)
    teaching.check(settings, teacher, config, tokenizer)
    params = weights.init_params(config, settings.seed) | ({} if model is None else model.params)
    stored = settings.to_dict() | {teaching.FINGERPRINT: teaching.fingerprint(teacher)}
    with files.replacing(out) as temporary:
        (temporary / checkpoint.SETTINGS).write_text(json.dumps(stored, indent=1), encoding="utf-8")
    with files.replacing(out) as temporary:
        tokenizer.save(temporary)
        np.save(temporary / "train.npy", train_tokens)
        np.save(temporary / "valid.npy", valid_tokens)
    checkpoint.save_state(out, State.fresh(config, params, settings.only_interaction))


def run(settings: TrainSettings, out: Path, state: State, pool: Pool, progress: bool) -> None:
    """Take the steps that are left, saving now and then."""
    tokens, valid = (checkpoint.load_tokens(out / name) for name in ("train.npy", "valid.npy"))
    context, teacher = settings.context_of(state.config), teaching.load(settings)
    teaching.check(settings, teacher, state.config, Tokenizer.from_directory(out))
    teaching.check_unchanged(settings, teacher, checkpoint.load_settings(out))
    for unfinished in out.glob(".saving-*"):  # what a kill while saving leaves
        shutil.rmtree(unfinished)
    began = time.monotonic() - checkpoint.truncate_metrics(out, state.step)
    bar = tqdm(initial=state.step, total=settings.end, unit="step", disable=None if progress else True)
    with bar, interrupt_between_steps() as interrupted:
        while state.step < settings.end:
            row = train_step(settings, state, tokens, context, pool, teacher)
            last, stop = state.step == settings.end, interrupted()
            if last or state.step % settings.eval_every == 0:
                ppl, kept = perplexity(state.params, state.config, valid, context, settings.eval_windows, pool=pool)
                row |= {"valid_perplexity": ppl, "share_kept": kept}
                say(summary(row), progress)
            checkpoint.append_metrics(out, row | {"seconds": round(time.monotonic() - began, 3)})
            bar.update()
            if last or stop or state.step % settings.save_every == 0:
                weights.save(weights.Model(state.config, state.params, None), out)  # tokenizer.json stays
                checkpoint.save_state(out, state)
            if settings.plot and "valid_perplexity" in row:  # no failure to draw may cost what was learned
                plot.draw(out, settings.target_kept)
            if stop:
                raise KeyboardInterrupt
    target = settings.target_kept
    if target is not None and abs(kept - target) > target / 5:
        say(f"wanted {target:.1%} of the context, kept {kept:.1%}: more steps, or another gamma to start from, come "
            "nearer", progress)


@contextmanager
def interrupt_between_steps() -> Iterator:
    """Inside, Ctrl-C only sets a flag, which the yielded function reads: no step is left half done."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    before = signal.signal(signal.SIGINT, lambda *_: flag.set())
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def explained_disk_errors(out: Path) -> Iterator[None]:
    """Turns a full disk, or another failure to write, into a TrainingError that says what to do."""
    try:
        yield
    except BrokenPipeError:  # nobody reads our output any more
        raise
    except OSError as error:
        full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))  # not all have an errno
        remedy = "make room" if full else "put that right"
        raise TrainingError(f"cannot write {out} ({error}): {remedy}, then give the same command to resume") from error


def summary(row: dict) -> str:
    """One line for people."""
    return (
        f"step {row['step']}: loss {row['loss']:.3f}, validation perplexity {row['valid_perplexity']:.2f}, "
        f"context kept {row['share_kept']:.1%}"
    )


def say(line: str, progress: bool) -> None:
    """Print above the progress bar."""
    if progress:
        tqdm.write(line)
