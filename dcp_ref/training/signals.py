"""Signals that stop a run: it stops between two steps, with all steps saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# From Ctrl-C; Slurm, docker or systemd; a closed terminal; a limit of processor time. SIGQUIT still stops at once.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal has ended a run. `code` is the exit code that shells use for it: 128 + the signal's number."""

    code: int


@contextmanager
def between_steps() -> Iterator[list[int]]:
    """Inside, the SIGNALS are only noted, in the list that is yielded; at the end the first one takes effect.

    Its effect is the caller's handler, such as Python's for Ctrl-C, which raises KeyboardInterrupt. If there is no
    handler, or it returns, Stopped is raised. An error inside comes first. An ignored signal stays ignored (nohup).
    Python handles signals in the main thread only: in other threads this does nothing.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]  # None: not set by Python
    for number in ours:
        signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number in reversed(ours):  # Ctrl-C last: its handler may end this loop
            signal.signal(number, before[number])
    if noted:
        if callable(before[signal.Signals(noted[0])]):
            signal.raise_signal(noted[0])
        raise Stopped(128 + noted[0])
