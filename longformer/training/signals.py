"""SIGTERM and Ctrl-C while a run trains: noted, and answered between two steps, by all processes at the same one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from longformer.distributed import Processes

ANSWERED = (signal.SIGTERM, signal.SIGINT)  # in order of precedence, where processes got different ones


class Signals:
    """What this process was sent. In use only inside :meth:`noted`; elsewhere signals do what they always do.

    Args:
        group: the processes, any of which may have been sent a signal that all must answer.
    """

    def __init__(self, group: Processes) -> None:
        self.group = group
        self.received: list[int] = []
        self.before: dict[int, Any] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals instead of ending the process; what is set to be ignored, as under nohup, stays so."""
        if threading.current_thread() is threading.main_thread():  # Python lets no other one set handlers
            for number in ANSWERED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for caught, handler in self.before.items():
                signal.signal(caught, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes a Ctrl-C on that the terminal has sent its processes already; it kills them if they linger.
        if self.received and not self.group.joined:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
        self.received.append(number)
        if self.group.is_first:
            # Not through sys.stderr, in the midst of whose own writing a signal may come.
            again = "" if self.group.joined else "; once more stops at once, and goes back to the last checkpoint"
            os.write(2, f"\nstopping after this step{again}\n".encode())

    def agreed(self) -> signal.Signals | None:
        """The signal that some process was sent, the same in all processes, all of which must call this."""
        counts = self.group.sum([float(number in self.received) for number in ANSWERED])
        return next((number for number, count in zip(ANSWERED, counts, strict=True) if count), None)


def leave(number: signal.Signals) -> None:
    """End as a process does that ``number`` ends: KeyboardInterrupt, or exit status 128 + ``number``."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
