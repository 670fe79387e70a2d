"""The training loop: dcp_ref.training.train(TrainSettings(text=["book.txt"], out="model"))."""

import dataclasses
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dcp_ref.checkpoints import files, weights
from dcp_ref.checkpoints.replacing import current, finish
from dcp_ref.native import training as native
from dcp_ref.training import data, metrics_plot, run_files
from dcp_ref.training import teacher as teaching
from dcp_ref.training.parallel import Pool, processors
from dcp_ref.training.run_files import State, TrainingError
from dcp_ref.training.settings import TrainSettings
from dcp_ref.training.step import perplexity, train_step
from dcp_ref.training.stopping import between_steps


class Bar(tqdm):
    """A progress bar that starts no thread to watch itself."""

    monitor_interval = 0


def train(settings: TrainSettings, progress: bool = True) -> None:
    """Train a model, or go on with a run that was stopped: the result is the same, bit for bit.

    Raises ValueError for settings that cannot work and while another run has `out`, before anything is written, and
    TrainingError when the run has to stop: the disk is full, or the loss is not finite. Ctrl-C, SIGTERM and SIGHUP save
    the state after the step under way, and so does whatever keeps the progress from being shown.
    """
    out = Path(settings.out)
    with Pool(settings.threads or processors()) as pool, explained_disk_errors(out), run_files.alone(out):
        if current(out / run_files.SETTINGS).exists():
            settings.check_same(run_files.load_settings(out))
        else:
            refuse_other_files(out)
        if settings.plot:
            metrics_plot.check()
        if current(out / run_files.CHECKPOINT).exists():
            state = run_files.load_state(out)
            teacher = None if state.step >= settings.end else teaching.load_again(settings, state.config)
        else:
            if current(out / run_files.METRICS).exists():
                raise TrainingError(f"{out / run_files.CHECKPOINT} is gone: start afresh elsewhere")
            teacher = prepare(settings, out, pool)
            state = run_files.load_state(out)
        if state.step >= settings.end:
            say(f"{out}: already finished ({state.step} steps)", progress)
            if settings.plot:
                metrics_plot.draw(out, settings.target_kept)
        else:
            run(settings, out, state, teacher, pool, progress)


def refuse_other_files(out: Path) -> None:
    """Raises ValueError when a directory that no run has claimed holds a file that a run would replace."""
    for name in run_files.FILES:
        if current(out / name).exists():
            raise ValueError(f"out: {out} holds {name} but no {run_files.SETTINGS}; give another directory")


def prepare(settings: TrainSettings, out: Path, pool: Pool) -> weights.Model | None:
    """Check everything, then write what a run starts from: the settings first, which claim the directory, the
    checkpoint last, which says that all is there. Returns the teacher."""
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
        (temporary / run_files.SETTINGS).write_text(json.dumps(stored, indent=1), encoding="utf-8")
    with files.replacing(out) as temporary:
        tokenizer.save(temporary)
        np.save(temporary / "train.npy", train_tokens)
        np.save(temporary / "valid.npy", valid_tokens)
    run_files.save_state(out, State.fresh(config, params, settings.only_interaction))
    return teacher


def run(settings: TrainSettings, out: Path, state: State, teacher: weights.Model | None, pool: Pool,
        progress: bool) -> None:
    """Take the steps that are left, saving now and then."""
    finish(out)
    for unfinished in out.glob(".saving-*"):  # what a kill while saving leaves
        shutil.rmtree(unfinished)
    tokens, valid = (run_files.load_tokens(out / name) for name in ("train.npy", "valid.npy"))
    context = settings.context_of(state.config)
    began = time.monotonic() - run_files.truncate_metrics(out, state.step)
    stopped, bar = False, Bar(initial=state.step, total=settings.end, unit="step", disable=hidden(progress))
    with between_steps() as signals, bar:
        while state.step < settings.end and not stopped:
            row = train_step(settings, state, tokens, context, pool, teacher)
            last = state.step == settings.end
            measured = last or state.step % settings.eval_every == 0
            if measured:
                ppl, kept = perplexity(state.params, state.config, valid, context, settings.eval_windows, pool=pool,
                                       kernels=native.kernels(threads=1))
                row |= {"valid_perplexity": ppl, "share_kept": kept}
            run_files.append_metrics(out, row | {"seconds": round(time.monotonic() - began, 3)})
            failure, stopped = shown(bar, row, progress), bool(signals)
            drawn = settings.plot and measured
            if last or stopped or failure or drawn or state.step % settings.save_every == 0:
                save(out, state)  # before what may fail
            if failure:
                raise failure
            if drawn:
                metrics_plot.draw(out, settings.target_kept)
    target = settings.target_kept
    if target is not None and state.step == settings.steps and abs(kept - target) > target / 5:
        say(f"wanted {percent(target)} of the context, kept {percent(kept)}: more steps, or another gamma to start "
            "from, come nearer", progress)


def save(out: Path, state: State) -> None:
    """Replace the model and the checkpoint, both or none; tokenizer.json stays."""
    with files.replacing(out) as temporary:
        weights.save(weights.Model(state.config, state.params, None), temporary)
        run_files.save_state(temporary, state)


def shown(bar: tqdm, row: dict, progress: bool) -> BaseException | None:
    """Tell people of a step. Returns what went wrong: the step is to be saved before that is raised."""
    try:
        bar.update()
        if "valid_perplexity" in row:
            say(summary(row), progress)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody reads our output any more
            return error
        return TrainingError(f"the progress cannot be shown ({error}); all steps are saved: give the same command to "
                             "resume, with its output elsewhere")
    except BaseException as error:
        return error
    return None


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


def hidden(progress: bool) -> bool | None:
    """Whether there is no bar; None leaves it to tqdm, which shows one on a terminal."""
    return None if progress and sys.stderr is not None else True


def summary(row: dict) -> str:
    """One line for people."""
    return (
        f"step {row['step']}: loss {row['loss']:.3f}, validation perplexity {row['valid_perplexity']:.2f}, "
        f"context kept {percent(row['share_kept'])}"
    )


def percent(share: float) -> str:
    """With a digit behind the point, and with two that say something where that is little."""
    return f"{share:.1%}" if share == 0 or share >= 0.001 else f"{100 * share:.2g}%"


def say(line: str, progress: bool) -> None:
    """Print above the progress bar."""
    if progress and sys.stdout is not None:  # it is None where it was closed
        tqdm.write(line)
