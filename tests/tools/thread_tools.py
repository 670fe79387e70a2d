"""What tests of threads share: more threads than there are processors, and children with a deadline."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import dcp_ref
from dcp_ref import native

SANITIZED = "san.so" in os.environ.get("LD_PRELOAD", "")  # memory is then counted with all that a sanitizer holds
DEADLINE = 480  # seconds: a child that hangs is a failure; a sanitizer on a busy machine makes it slow


@contextmanager
def omp_threads(n):
    """OpenMP gives n threads to what this thread starts; skips where it has none."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(n, user_api="openmp"):
        if native.threads() != n:
            pytest.skip("built without OpenMP, or it does not obey threadpoolctl")
        yield


def is_free(lock):
    """Whether another thread finds a lock free."""
    taken = []

    def take():
        taken.append(lock.acquire(timeout=5))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(10)
    return taken == [True]


def run_python(code, *arguments, **environment):
    """What a new Python prints that imports the very package which is tested."""
    path = os.pathsep.join([str(Path(dcp_ref.__file__).parents[1]), str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False,
                          env=os.environ | {"PYTHONPATH": path} | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
