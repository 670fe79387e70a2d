"""The training loop: train(TrainSettings(text=["book.txt"], out="model"))."""

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
from dcp_ref.training import data, metrics_plot, run_files, teacher
from dcp_ref.training.parallel import Pool, processors
from dcp_ref.training.run_files import State, TrainingError
from dcp_ref.training.settings import TrainSettings
from dcp_ref.training.signals import between_steps
from dcp_ref.training.step import perplexity, train_step


class Bar(tqdm):
    """tqdm's progress bar without its monitor thread."""

    monitor_interval = 0


def train(settings: TrainSettings, progress: bool = True) -> None:
    """Train a model. A run that was stopped resumes; its result is the same, bit for bit.

    Raises ValueError, before anything is written, for settings that cannot work or while another run uses `out`.
    Raises TrainingError when the run has to stop: the disk is full, or the loss is not finite. After Ctrl-C, SIGTERM or
    SIGHUP, and when the progress cannot be shown, the current step is finished and saved first.
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
            dense = None if state.step >= settings.end else teacher.load_again(settings, state.config)
        else:
            if current(out / run_files.METRICS).exists():
                raise TrainingError(f"{out / run_files.CHECKPOINT} is gone: start afresh elsewhere")
            dense = prepare(settings, out, pool)
            state = run_files.load_state(out)
        if state.step >= settings.end:
            say(f"{out}: already finished ({state.step} steps)", progress)
            if settings.plot:
                metrics_plot.draw(out, settings.target_kept)
        else:
            run(settings, out, state, dense, pool, progress)


def refuse_other_files(out: Path) -> None:
    """Raises ValueError when the directory is not a run's and holds a file that a run would replace."""
    for name in run_files.FILES:
        if current(out / name).exists():
            raise ValueError(f"out: {out} holds {name} but no {run_files.SETTINGS}; give another directory")


def prepare(settings: TrainSettings, out: Path, pool: Pool) -> weights.Model | None:
    """Check everything, then write what a run starts from. Returns the teacher.

    The settings come first and claim the directory; the checkpoint comes last and says that the files are complete.
    """
    model, dense = None if settings.init is None else weights.load(settings.init), teacher.load(settings)
    if model is not None and model.tokenizer is None:
        raise ValueError(f"init: {settings.init} has no tokenizer")
    config = settings.with_pruning(settings.base_config() if model is None else model.config)
    given = next((m.tokenizer for m in (model, dense) if m is not None), None)
    if given is not None:
        settings.check_vocab_size(given.vocab_size, f"the tokenizer of {settings.init or settings.teacher}")
    tokenizer, train_tokens, valid_tokens = data.read_texts(settings, given, settings.context_of(config), pool)
    if model is None:
        size = tokenizer.vocab_size if dense is None else dense.config.vocab_size  # the teacher's may have unused ids
        config = dataclasses.replace(config, vocab_size=size, eos_token_id=tokenizer.eos_id)
    teacher.check(settings, dense, config, tokenizer)
    params = weights.init_params(config, settings.seed) | ({} if model is None else model.params)
    stored = settings.to_dict() | {teacher.FINGERPRINT: teacher.fingerprint(dense)}
    with files.replacing(out) as temporary:
        (temporary / run_files.SETTINGS).write_text(json.dumps(stored, indent=1), encoding="utf-8")
    with files.replacing(out) as temporary:
        tokenizer.save(temporary)
        np.save(temporary / "train.npy", train_tokens)
        np.save(temporary / "valid.npy", valid_tokens)
    run_files.save_state(out, State.fresh(config, params, settings.only_interaction))
    return dense


def run(settings: TrainSettings, out: Path, state: State, dense: weights.Model | None, pool: Pool,
        progress: bool) -> None:
    """Take the remaining steps; measure, save and draw at the intervals that the settings give."""
    finish(out)
    for unfinished in out.glob(".saving-*"):  # left by a run that was killed while saving
        shutil.rmtree(unfinished)
    tokens, valid = (run_files.load_tokens(out / name) for name in ("train.npy", "valid.npy"))
    context = settings.context_of(state.config)
    began = time.monotonic() - run_files.truncate_metrics(out, state.step)
    stopped, bar = False, Bar(initial=state.step, total=settings.end, unit="step", disable=hidden(progress))
    with between_steps() as signals, bar:
        while state.step < settings.end and not stopped:
            row = train_step(settings, state, tokens, context, pool, dense)
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
                save(out, state)  # first: what follows may fail
            if failure:
                raise failure
            if drawn:
                metrics_plot.draw(out, settings.target_kept)
    target = settings.target_kept
    if target is not None and state.step == settings.steps and abs(kept - target) > target / 5:
        say(f"wanted {percent(target)} of the context, kept {percent(kept)}: more steps, or another gamma to start "
            "from, would come closer", progress)


def save(out: Path, state: State) -> None:
    """Replace the model and the checkpoint, both or neither; the tokenizer stays as it is."""
    with files.replacing(out) as temporary:
        weights.save(weights.Model(state.config, state.params, None), temporary)
        run_files.save_state(temporary, state)


def shown(bar: tqdm, row: dict, progress: bool) -> BaseException | None:
    """Show a step's progress. Returns the exception, if that fails, to be raised once the step is saved."""
    try:
        bar.update()
        if "valid_perplexity" in row:
            say(summary(row), progress)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has gone: nothing to explain
            return error
        return TrainingError(f"the progress cannot be shown ({error}); all steps are saved: give the same command to "
                             "resume, with its output elsewhere")
    except BaseException as error:
        return error
    return None


@contextmanager
def explained_disk_errors(out: Path) -> Iterator[None]:
    """Turns an OSError inside, such as that of a full disk, into a TrainingError that says what to do."""
    try:
        yield
    except BrokenPipeError:  # of the output, not of a file
        raise
    except OSError as error:
        full = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))  # some have no errno
        remedy = "make room" if full else "put that right"
        raise TrainingError(f"cannot write {out} ({error}): {remedy}, then give the same command to resume") from error


def hidden(progress: bool) -> bool | None:
    """tqdm's `disable`: True for no bar; None for a bar on a terminal only."""
    return None if progress and sys.stderr is not None else True


def summary(row: dict) -> str:
    """The line that is printed after a validation."""
    return (
        f"step {row['step']}: loss {row['loss']:.3f}, validation perplexity {row['valid_perplexity']:.2f}, "
        f"context kept {percent(row['share_kept'])}"
    )


def percent(share: float) -> str:
    """A percentage with one digit after the point; below 0.1%, with two significant digits."""
    return f"{share:.1%}" if share == 0 or share >= 0.001 else f"{100 * share:.2g}%"


def say(line: str, progress: bool) -> None:
    """Print a line above the progress bar."""
    if progress and sys.stdout is not None:  # None if it was closed at the start
        tqdm.write(line)
