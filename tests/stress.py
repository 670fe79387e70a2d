"""Programs drawn at random, whose engines, generators, finalizers and threads live until the interpreter ends.

None may end by a signal, hang, or print an error: `make stress` runs 500. A program is made from its number alone.
"""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

import dcp_ref

PACKAGE, TOOLS = Path(dcp_ref.__file__).parents[1], Path(__file__).parent / "tools"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PACKAGE, TOOLS)))}
START = """
import atexit, gc, random, signal, sys, threading, weakref
from models import SMALL, random_model
from dcp_ref import CacheFull, Engine, generate
gc.set_threshold({threshold})
model, kept = random_model(SMALL, 0, 1.0), []
backend = {backend!r}

def stream(engine):
    sequence = engine.new_sequence()
    try:
        for token in range(SMALL.n_positions):
            yield engine.feed([sequence], [[token]])
    finally:
        engine.release(sequence)

class Holder:
    def __init__(self, engine, method):
        self.engine, self.method, self.s = engine, method, engine.new_sequence()
        engine.feed([self.s], [[1, 2]])
    def __del__(self):
        s, engine = self.s, self.engine
        {{"release": lambda: engine.release(s), "fork": lambda: engine.fork(s), "feed": lambda: engine.feed([s], [[1]]),
          "ask": lambda: (engine.stats(), engine.live_counts([s]), engine.live_positions(s, 0)),
          "trim": engine.trim, "new": engine.new_sequence}}[self.method]()

def work(engine, n):
    for _ in range(n):
        s = engine.new_sequence()
        engine.feed([s], [[1, 2, 3]])
        engine.release(engine.fork(s))
        engine.release(s)

engines = [Engine(model, backend) for _ in range({engines})]
"""
ACTIONS = (
    "s = stream({engine}); next(s); kept.append(s)",
    "s = stream({engine}); next(s); next(s); del s",
    "s = stream({engine}); next(s); {engine}.stream = s",
    "s = stream({engine}); next(s); atexit.register(s.close)",
    "kept.append(Holder({engine}, {method!r}))",
    "h = Holder({engine}, {method!r}); h.me = h; del h",
    "h = Holder({engine}, {method!r}); {engine}.holder = h; del h",
    "weakref.finalize({engine}, print, end='')",
    "threading.Thread(target=work, args=({engine}, {n}), daemon={daemon}).start()",
    "t = threading.Thread(target=lambda: list(stream({engine})), daemon={daemon}); t.start()",
    "atexit.register(work, {engine}, 2)",
    "generate(model, [[1], [2, 3]], max_new_tokens=4, backend=backend)",
    "signal.signal(signal.SIGALRM, lambda *_, e={engine}: e.release(e.new_sequence())); "
    "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002); atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)",
    "gc.collect()",
    "engines.append(Engine(model, backend, max_cache_bytes=10**6)); work(engines[-1], 1)",
    "del engines[{index}]; engines.append(Engine(model, backend))",
    "{engine}.trim(); {engine}.stats()",
)
ENDS = ("", "sys.exit(0)", "del engines, kept; gc.collect()", "gc.disable()", "kept.append(engines); kept.append(kept)")


def program(number: int) -> str:
    """The text of a program."""
    draw = random.Random(number)
    engines = draw.randint(1, 3)
    text = START.format(threshold=draw.choice([1, 50, 700]), engines=engines,
                        backend=draw.choice(["native", "native", "numpy"]))
    for _ in range(draw.randint(3, 12)):
        index = draw.randrange(engines)
        text += draw.choice(ACTIONS).format(
            engine=f"engines[{index}]", index=index, n=draw.randint(1, 30), daemon=draw.choice([True, False]),
            method=draw.choice(["release", "fork", "feed", "ask", "trim", "new"])) + "\n"
    return text + draw.choice(ENDS) + "\n"


def failure(number: int) -> str | None:
    """What went wrong with a program, or None."""
    try:
        done = subprocess.run([sys.executable, "-c", program(number)], cwd=TOOLS.parents[1], capture_output=True,
                              text=True, timeout=120, env=ENVIRONMENT, check=False)
    except subprocess.TimeoutExpired:
        return f"program {number} hangs"
    said = done.stderr.replace("Exception ignored in", "", done.stderr.count("InterpreterEnds"))
    if done.returncode != 0 or "ignored in" in said or ("Traceback" in said and "InterpreterEnds" not in said):
        return f"program {number} ends with {done.returncode}: {done.stderr[-2000:]}"
    return None


def run(numbers: Sequence[int]) -> None:
    """Raises AssertionError, naming the programs that fail."""
    with ThreadPoolExecutor(2) as pool:
        failures = [text for text in tqdm(pool.map(failure, numbers), total=len(numbers), disable=None) if text]
    assert not failures, "\n".join(failures)


if __name__ == "__main__":
    run(range(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
