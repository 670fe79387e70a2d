"""The end of the interpreter, while a daemon thread holds an engine's lock and never goes on."""

import pytest
from thread_tools import run_python

from dcp_ref import native

CODE = """
import os, threading, time
from models import moderate_model
from dcp_ref import Engine

class Last:
    def __init__(self, engine):
        self.engine, self.sequence, self.write = engine, engine.new_sequence(), os.write

    def __del__(self):
        try:
            self.engine.fork(self.sequence)
        except RuntimeError as error:
            self.write(1, type(error).__name__.encode())

others = {}  # globals of its own: a thread that never ends would keep `last` alive with ours
exec("def hold(lock, held, sleep):\\n with lock: held.set(); sleep(1000)", others)
engine, held = Engine(moderate_model(), "native"), threading.Event()
last = Last(engine)
threading.Thread(target=others["hold"], args=[engine._cache.lock.held, held, time.sleep], daemon=True).start()
held.wait(60)
"""


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_a_finalizer_does_not_wait():
    assert run_python(CODE) == "InterpreterEnds"
