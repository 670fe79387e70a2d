"""Sets of files that are replaced together or not at all, by a single rename.

    .saving-*   a set that is being written; one left by a killed process may be deleted
    .saved      a complete set on the disk, renamed from .saving-*: this rename decides

After the rename, the files of .saved move to their places one by one. `current` finds a file in .saved until it has
moved: so readers see the new set from the rename on, whatever interrupts the moves: a failure, a kill or a power cut.
The next save moves the files that are left.
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
TRIES = 100  # of a reader, when save after save comes in between

Result = TypeVar("Result")


def current(file: Path) -> Path:
    """The path of the newest version of `file`: its own, or one in .saved."""
    saved = file.parent / SAVED / file.name
    return saved if saved.exists() else file


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yields a temporary directory; the files written there replace those in `directory` if no exception is raised.

    Raises OSError. If it comes before the rename that decides, nothing has changed; after it, readers see the new set.
    """
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory, prefix=".saving-"))
    try:
        yield temporary
        for file in sorted(temporary.iterdir()):
            if (directory / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(directory / file.name))
            _flush(file)
        temporary.chmod(directory.stat().st_mode & 0o777)  # mkdtemp's mode is for this user only
        _flush(temporary)
        _decide(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # does nothing after the rename to .saved
    finish(directory)


def finish(directory: Path) -> None:
    """Move the files of .saved, if there is one, to their places. Several processes may do so at the same time."""
    saved = directory / SAVED
    try:
        names = sorted(os.listdir(saved))
    except FileNotFoundError:
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another process has moved it
            os.replace(saved / name, directory / name)
    _flush(directory)
    with contextlib.suppress(OSError):  # gone, or another process's next set
        saved.rmdir()


def replace_file(file: Path, data: bytes, keep: bool = False) -> None:
    """Write one file whole: on the disk under a temporary name, .writing-*, then renamed. It needs no set.

    With `keep`, a file that is there already stays. A killed process may leave a .writing-* file. Raises OSError.
    """
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as output:
            output.write(data)
            output.flush()
            os.fsync(output.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's mode is for this user only
        if not keep or not _linked(temporary, file):
            os.replace(temporary, file)
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed
            os.unlink(temporary)
    _flush(file.parent)


def _linked(temporary: str, file: Path) -> bool:
    """Give a file a second name, unless that is taken; False where the disk knows no second names."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        return True
    except OSError:
        return file.exists()
    return True


def steady(directory: Path, read: Callable[[Path], Result]) -> Result:
    """The result of read(directory), repeated until no save came in between: so all files read are of one set.

    Raises what `read` raises, and OSError when saves keep coming.
    """
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
        _decide(temporary, directory)  # another process's set came first
    _flush(directory)


def _stamp(directory: Path) -> tuple:
    """A value that changes when a set with a config.json is saved, or one of its files moves."""
    saved = directory / SAVED
    try:
        config = os.stat(current(directory / "config.json"))
        return config.st_ino, config.st_mtime_ns, sorted(os.listdir(saved)) if saved.is_dir() else []
    except FileNotFoundError:  # no config.json, or it has just moved
        return _stamp(directory) if (directory / "config.json").exists() else ()
    except OSError:  # `read` will raise it
        return ()


def _flush(path: Path) -> None:
    """Make the system write a file, or the names in a directory, to the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
