"""The job: parts of the input in, files of parts out, those that are there left alone. Killed and begun again, it ends
in the same files."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dcp_ref.corpus import manifest, part_files
from dcp_ref.corpus.mapper import Mapper
from dcp_ref.corpus.part_files import Made
from dcp_ref.corpus.reading import PART_BYTES, Part, read_parts


@dataclass(frozen=True)
class Job:
    """What to do with the mapper: `inputs` to parts of `part_rows` rows in the directory `out`.

    `shard` (i, n), 1 <= i <= n, does the parts i - 1, i - 1 + n, ...; shards may share a directory. `limit` is the most
    rows that are read. `workers` processes, or Ray's actors, have an engine each; `ray` is a cluster's address, None
    for this machine without Ray. `version` is this package's. Raises ValueError, naming the option, for a bad value.
    """

    inputs: tuple[str, ...]
    out: Path
    version: str
    form: str = "jsonl"
    shard: tuple[int, int] = (1, 1)
    limit: int | None = None
    part_rows: int = 1000
    workers: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"--shard {self.shard[0]}/{self.shard[1]}: of n shards, give 1/n to n/n")
        for name in ("limit", "part_rows", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")


@dataclass
class Totals:
    """What a run found in its shard: rows, those with an error, tokens of the parts it made, parts made and kept.

    `all_parts` and `all_rows` are those of the whole input.
    """

    rows: int = 0
    errors: int = 0
    tokens: int = 0
    made: int = 0
    kept: int = 0
    all_parts: int = 0
    all_rows: int = 0


def run(job: Job, mapper: Mapper, progress: str | None = None) -> Totals:
    """Make the parts that are missing. `progress` is the title of a bar, shown if stderr is a terminal.

    Raises ValueError where the directory was made with other settings or from another input, and for an input that
    cannot be read; OSError; RuntimeError when a worker fails. Parts made until then stay, and count in the next run.
    """
    facts = {"version": job.version, **mapper.facts(), "format": job.form, "part_rows": job.part_rows,
             "part_bytes": PART_BYTES, "limit": job.limit}
    if job.form == "parquet":
        part_files.arrow_modules("--format parquet")
    manifest.claim(job.out, facts)
    totals = Totals()
    with (tqdm(unit=" tokens", desc=progress, disable=True if progress is None else None) as bar,
          contextlib.closing(_made(job, mapper, _missing(job, mapper, totals), bar)) as every):
        for made in every:
            part_files.write(job.out, made)
            totals.rows += made.rows
            totals.errors += made.errors
            totals.tokens += made.tokens
            totals.made += 1
            seconds = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{totals.rows} rows, {totals.rows / max(seconds, 1e-9):.1f} rows/s")
    there = part_files.existing(job.out, job.form)
    if any(number >= totals.all_parts for number in there):
        raise ValueError(f"{job.out} has part {max(there)}, but the input has {totals.all_parts} parts: it has "
                         "changed; give another --out")
    if len(there) == totals.all_parts:
        manifest.complete(job.out, totals.all_parts, totals.all_rows)
    return totals


def _missing(job: Job, mapper: Mapper, totals: Totals) -> Iterator[Part]:
    """The parts of the shard that have no file; counts the others."""
    there = part_files.existing(job.out, job.form)
    for part in read_parts(job.inputs, mapper.id, mapper.text, job.part_rows, job.limit):
        totals.all_parts += 1
        totals.all_rows += len(part.lines)
        if part.number % job.shard[1] != job.shard[0] - 1:
            continue
        name = there.get(part.number)
        if name is None:
            yield part
        elif name == part_files.name_of(part, job.form):
            totals.kept += 1
            totals.rows += len(part.lines)
            totals.errors += part_files.errors_in(job.out / name)
        else:
            raise ValueError(f"{job.out / name}: made from other rows than part {part.number} has now: the input "
                             "has changed; give another --out")


def _made(job: Job, mapper: Mapper, parts: Iterator[Part], bar: Any) -> Generator[Made, None, None]:
    """The parts' files, here, in processes or on a cluster; the bar counts tokens."""
    if job.ray is None and (job.workers or 1) == 1:
        mapper.fed = bar.update
        for part in parts:
            yield part_files.make(mapper, part, job.form)
        return
    if job.ray is not None:
        from dcp_ref.corpus.on_ray import in_actors  # needs an optional dependency

        every = in_actors(parts, mapper, job.form, job.workers, job.ray)
    else:
        every = in_processes(parts, mapper, job.form, job.workers or 1)
    with contextlib.closing(every):
        for made in every:
            bar.update(made.tokens)
            yield made


def in_processes(parts: Iterator[Part], mapper: Mapper, form: str, workers: int) -> Generator[Made, None, None]:
    """The parts' files, in their order, made by processes with an engine each; the system shares the mapped model."""
    context = multiprocessing.get_context("spawn")  # a forked child would have one thread
    begun: deque[Future[Made]] = deque()
    with ProcessPoolExecutor(workers, context, _start, (mapper.maker(),)) as pool:
        try:
            for part in parts:
                begun.append(pool.submit(_make_there, part, form))
                if len(begun) == 2 * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_mapper: Mapper  # of a worker process


def _start(factory: Any) -> None:
    """A worker process begins; it ends with its parent, however that ends, and by Ctrl-C at once."""
    global _mapper  # noqa: PLW0603 (an initializer has no other way to leave something)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _mapper = factory()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_there(part: Part, form: str) -> Made:
    return part_files.make(_mapper, part, form)
