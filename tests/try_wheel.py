"""Tries what `make wheel` built: each file of a directory, installed in empty environments without a compiler.

A wheel must decode in C with every Python that is found. The source distribution must be installable with no compiler,
and then run on NumPy and say so.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = range(11, 20)  # Python 3.11 and later
PROMPT = ["generate", "The old man", "--max-new-tokens", "20", "--temperature", "0"]


def main() -> int:
    """Returns the exit code."""
    [directory] = sys.argv[1:]
    [wheel], [source] = (glob.glob(f"{directory}/{pattern}") for pattern in ("*.whl", "*.tar.gz"))
    found = pythons()
    tried = [(wheel, python) for python in found] + [(source, found[0])]
    texts = set()
    for file, python in tried:
        info, text = installed(file, python)
        backend = "native" if file == wheel else "numpy"
        print(f"{Path(file).name}, Python {info['python']}: {info['backend']}, {text!r}")
        if info["backend"] != backend or ("not built" in info["simd"]) != (file == source):
            print(f"expected the backend {backend}; simd says: {info['simd']}")
            return 1
        texts.add(text)
    if len(texts) > 1:
        print("they do not generate the same text")
    return len(texts) > 1


def pythons() -> list[str]:
    """An interpreter of each version: on the path, or installed by pyenv."""
    result = []
    for version in VERSIONS:
        on_path = shutil.which(f"python3.{version}")
        built = sorted(Path.home().glob(f".pyenv/versions/3.{version}.*/bin/python3.{version}"))
        candidates = [str(python) for python in built] + [on_path] * bool(on_path)
        result += [python for python in candidates if runs(python)][:1]
    return result


def runs(python: str) -> bool:
    """Whether it starts: pyenv puts commands on the path that do not."""
    return subprocess.run([python, "-c", "import venv, ssl"], capture_output=True, check=False).returncode == 0


def installed(file: str, python: str) -> tuple[dict[str, str], str]:
    """What `dcp-ref info` says, by name, and the text that is generated, after installing only this file."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([python, "-m", "venv", scratch], check=True)
        bare = {"PATH": f"{scratch}/bin", "HOME": scratch, "LANG": "C.UTF-8", "CC": "no-compiler"}
        bare |= {name: os.environ[name] for name in os.environ if name.startswith("PIP_")}
        subprocess.run([f"{scratch}/bin/pip", "install", "-q", os.path.abspath(file)], env=bare, check=True)

        def run(*arguments: str) -> str:
            command = [f"{scratch}/bin/dcp-ref", *arguments]
            return subprocess.run(command, cwd=scratch, env=bare, check=True, capture_output=True, text=True).stdout

        lines = (line.split(maxsplit=1) for line in run("info").splitlines())
        return dict(lines), run(*PROMPT)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
