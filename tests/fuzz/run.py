"""Every target for a number of seconds, then C's entry points: python tests/fuzz/run.py SECONDS [NAME ...].

A finding does not end the run; it is repeated by fuzz.py NAME FILE, or by build/fuzz-decode/decode FILE.
"""

import subprocess
import sys
from pathlib import Path

import targets

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=gnu11", "-g", "-O1", "-DDCP_BASELINE", "-Wno-unknown-pragmas", "-I", "csrc"]
SANITIZED = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
SOURCES = [f"csrc/{name}.c" for name in (
    "slots", "sequence", "cache", "judge", "attend", "step", "decode", "layers", "threads")]


def build_decode(directory: Path) -> Path:
    """The program that tries C. clang takes minutes to compile linear.c with a sanitizer: `make asan` tries that."""
    linear, program = directory / "linear.o", directory / "decode"
    subprocess.run(["clang", *FLAGS, "-c", "csrc/linear.c", "-o", linear], cwd=ROOT, check=True)
    subprocess.run(["clang", *FLAGS, *SANITIZED, "tests/fuzz/decode.c", *SOURCES, linear, "-lm", "-o", program],
                   cwd=ROOT, check=True)
    return program


def run(name: str, seconds: str) -> bool:
    """Whether a target ran to its end without a finding."""
    kept = ROOT / "build" / f"fuzz-{name}"
    (kept / "kept").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "tests/fuzz/fuzz.py", name]
    if name == "decode":
        command = [str(build_decode(kept)), str(kept / "kept"), f"-artifact_prefix={kept}/", "-max_len=1000"]
    return subprocess.run([*command, f"-max_total_time={seconds}"], cwd=ROOT, check=False).returncode == 0


def main() -> None:
    seconds, *names = sys.argv[1:]
    found = [name for name in names or [*targets.TARGETS, "decode"] if not run(name, seconds)]
    sys.exit(f"findings: {', '.join(found)}; their inputs are in build/fuzz-NAME/" if found else 0)


if __name__ == "__main__":
    main()
