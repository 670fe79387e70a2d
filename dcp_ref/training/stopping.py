"""Signals that ask a run to stop: it does so between two steps, with all steps saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ctrl-C; Slurm, docker and systemd; a terminal that goes away; a limit on processor time. SIGQUIT still stops at once.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name)]



class Stopped(SystemExit):
    """A signal has ended a run. `code` is the exit code that a shell reports for it: 128 + its number."""

    code: int


@contextmanager
def between_steps() -> Iterator[list[int]]:
    """Inside, such signals are only noted, in the list that is yielded; at the end they have their effect.

    That is the caller's handler, such as Ctrl-C's, which raises KeyboardInterrupt. Where there is none, and where it
    returns, Stopped is raised; an error inside has priority. An ignored signal stays ignored (nohup). Python gives
    signals to the main thread alone: in others nothing changes.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]  # None: another language's
    for number in ours:
        signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number in reversed(ours):  # Ctrl-C last: it may end this loop
            signal.signal(number, before[number])
    if noted:
        if callable(before[signal.Signals(noted[0])]):
            signal.raise_signal(noted[0])
        raise Stopped(128 + noted[0])
