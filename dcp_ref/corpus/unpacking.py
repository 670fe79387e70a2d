"""Files that may be packed, read as a stream: .gz, .xz and .zst."""

import gzip
import io
import lzma
import sys
import zlib
from pathlib import Path
from typing import Any

from dcp_ref.checkpoints import inputs

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading raises for a file that is damaged, or cut off
RAW_BYTES = 1 << 16  # read at once of a .zst file


def opened(path: str) -> Any:
    """The unpacked bytes of a file; - is standard input. Raises ValueError for what is not there, and DAMAGED."""
    if path == inputs.STANDARD:
        if sys.stdin is None:
            raise ValueError("standard input is closed: give a file")
        return sys.stdin.buffer
    if path.endswith(".zst"):
        return io.BufferedReader(Zstandard(path))
    if path.endswith(".gz"):
        return gzip.open(path)
    return lzma.open(path) if path.endswith(".xz") else open(path, "rb")


class Zstandard(io.RawIOBase):
    """The unpacked bytes of a .zst file; the package's own reader takes a file that is cut off for a whole one."""

    def __init__(self, path: str) -> None:
        try:
            import zstandard  # an optional dependency
        except ImportError:
            raise ValueError(f"{path}: the package zstandard is missing: pip install zstandard") from None
        self._package = zstandard
        self._file = Path(path).open("rb")  # noqa: SIM115 (closed by close)
        self._frame: Any = None  # the one that has begun and not ended
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._packed or self._file.read(RAW_BYTES)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file is cut off")
                return 0
            frame = self._frame or self._package.ZstdDecompressor().decompressobj()
            try:
                self._ready = frame.decompress(packed)
            except self._package.ZstdError as error:
                raise OSError(str(error)) from None
            self._packed, self._frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()
