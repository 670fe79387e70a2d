"""Sets of files that are replaced together or not at all: one rename decides.

    .saving-*   a set while it is written; after a kill it may be deleted
    .saved      a whole set, on the disk: the rename to this name is what decides

The files of .saved then move to their places one by one. `current` finds a file in .saved until it has moved: so
readers see the new set from that rename on, wherever a failure, a kill or a power cut comes. The next save moves what
is left.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

SAVED = ".saved"
TRIES = 100  # of a reader that is overtaken by one save after the other

Result = TypeVar("Result")


def current(file: Path) -> Path:
    """Where the newest version of `file` is: in its place, or still in .saved."""
    saved = file.parent / SAVED / file.name
    return saved if saved.exists() else file


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A temporary directory to write files in; when the block ends well they replace those in `directory`.

    Raises OSError: before the rename that decides, nothing has changed; after it, the new set is what readers see.
    """
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory, prefix=".saving-"))
    try:
        yield temporary
        for file in sorted(temporary.iterdir()):
            if (directory / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(directory / file.name))
            _flush(file)
        temporary.chmod(directory.stat().st_mode & 0o777)  # mkdtemp's is for this user alone
        _flush(temporary)
        _decide(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # once it is .saved, there is nothing of that name
    finish(directory)


def finish(directory: Path) -> None:
    """Move the files of .saved, if it is there, to their places. Several processes may do so at once."""
    saved = directory / SAVED
    try:
        names = sorted(os.listdir(saved))
    except FileNotFoundError:
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another process has moved it
            os.replace(saved / name, directory / name)
    _flush(directory)
    with contextlib.suppress(OSError):  # it is gone, or holds another process's next set
        saved.rmdir()


def steady(directory: Path, read: Callable[[Path], Result]) -> Result:
    """read(directory), again if a save came in between: all that it read is of one set. Raises what `read` raises."""
    for _ in range(TRIES):
        before = _stamp(directory)
        try:
            result = read(directory)
        except (OSError, ValueError):
            if _stamp(directory) == before:
                raise
        else:
            if _stamp(directory) == before:
                return result
    raise OSError(f"{directory}: replaced {TRIES} times while it was read: read it when nothing saves there")


def _decide(temporary: Path, directory: Path) -> None:
    finish(directory)
    try:
        os.replace(temporary, directory / SAVED)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _decide(temporary, directory)  # another process's set was quicker
    _flush(directory)


def _stamp(directory: Path) -> tuple:
    """What differs once a set with a config.json has been saved, or a file of it has moved."""
    saved = directory / SAVED
    try:
        config = os.stat(current(directory / "config.json"))
        return config.st_ino, config.st_mtime_ns, sorted(os.listdir(saved)) if saved.is_dir() else []
    except FileNotFoundError:  # there is none, or it has just moved
        return _stamp(directory) if (directory / "config.json").exists() else ()
    except OSError:  # `read` will say what the system says
        return ()


def _flush(path: Path) -> None:
    """Have the system put a file, or the names in a directory, on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
