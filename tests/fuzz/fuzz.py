"""Coverage-guided bytes for one of targets.py: python tests/fuzz/fuzz.py NAME [options of libFuzzer], by `make fuzz`.

It needs atheris. The input of a finding is in build/fuzz-NAME/: give that file as an option to repeat it.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dcp_ref", "json"]):
    import targets

from changes import changed

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    name, *options = sys.argv[1:]
    run, seeds = targets.TARGETS[name]
    found = ROOT / "build" / f"fuzz-{name}"
    kept = found / "kept"
    kept.mkdir(parents=True, exist_ok=True)
    for n, seed in enumerate(seeds()):
        (kept / f"seed-{n}").write_bytes(seed)
    with targets.in_memory() as scratch:
        def one(data: bytes) -> None:
            if wrong := targets.finding(run, data, Path(scratch)):
                raise AssertionError(wrong)

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            """Half of the changes are made to JSON, the others to bytes."""
            new = changed(data, seed) if seed % 2 else None
            return atheris.Mutate(data, most) if new is None or len(new) > most else new

        limits = ["-timeout=30", "-rss_limit_mb=3000", "-max_len=20000", "-len_control=0", f"-artifact_prefix={found}/"]
        inputs = [] if any(not option.startswith("-") for option in options) else [str(kept)]
        atheris.Setup([sys.argv[0], *inputs, *limits, *options], one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
