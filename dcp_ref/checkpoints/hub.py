"""Models of the Hugging Face hub: found in its local cache, or downloaded by request. Nothing is fetched unasked.

A name is REPOSITORY or REPOSITORY@REVISION: gpt2, openai-community/gpt2, gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e.
"""

import re
from pathlib import Path
from typing import Any

MISSING = "the package huggingface_hub is missing: pip install huggingface_hub"
NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?", re.ASCII)


def split(name: str) -> tuple[str, str | None]:
    """The repository and the revision of a name; None is the newest revision. Raises ValueError."""
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of the Hugging Face hub, such as gpt2, owner/name or gpt2@REVISION")
    return found[1], found[2]


def in_cache(name: str) -> Path | None:
    """The directory of a model in Hugging Face's local cache; None where it is not, or huggingface_hub is missing."""
    try:
        snapshot_download = _snapshot_download()
        repository, revision = split(name)
        found = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (ImportError, ValueError, OSError):  # its own errors are of these kinds; it raises them for bad names too
        return None
    return found if (found / "config.json").exists() else None


def download(name: str, directory: str, files: list[str]) -> None:
    """Fetch those files of a model into a directory.

    Raises ValueError for a bad name or where huggingface_hub is missing, RuntimeError when the download fails.
    """
    try:
        snapshot_download = _snapshot_download()
    except ImportError:
        raise ValueError(MISSING) from None
    repository, revision = split(name)
    try:
        snapshot_download(repository, revision=revision, local_dir=directory, allow_patterns=files)
    except Exception as error:  # the hub and its HTTP library raise too many kinds to name
        raise RuntimeError(f"{name}: {' '.join(str(error).split())}") from error  # in one line


def advice(name: str) -> str:
    """How to get a model that is nowhere on this machine; "" if the name cannot be the hub's."""
    if not NAME.fullmatch(name):
        return ""
    try:
        _snapshot_download()
    except ImportError:
        return f". If it is a model of the Hugging Face hub: pip install huggingface_hub, then dcp-ref download {name}"
    return f", nor in Hugging Face's cache. If it is a model of the hub: dcp-ref download {name}"


def _snapshot_download() -> Any:
    from huggingface_hub import snapshot_download  # an optional dependency

    return snapshot_download
