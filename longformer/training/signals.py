"""SIGTERM and Ctrl-C during training. They are recorded, and all processes obey them after the same step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from longformer.distributed import Processes

HANDLED = (signal.SIGTERM, signal.SIGINT)  # if processes receive different ones, the first of these counts


class Signals:
    """The signals that this process received. Only inside :meth:`recorded`; elsewhere signals act as usual.

    Args:
        group: the processes. A signal to one of them is obeyed by all.
    """

    def __init__(self, group: Processes) -> None:
        self.group = group
        self.received: list[int] = []
        self.previous_handlers: dict[int, Any] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record signals instead of ending the process. A signal that was ignored, as under nohup, stays ignored."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
            for number in HANDLED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.previous_handlers[number] = signal.signal(number, self._record)
        try:
            yield
        finally:
            for caught, handler in self.previous_handlers.items():
                signal.signal(caught, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        # The terminal sends Ctrl-C to all processes, and torchrun sends it to them again. So under torchrun a second
        # signal means nothing; torchrun itself kills processes that take too long.
        if self.received and not self.group.joined:
            signal.signal(number, self.previous_handlers[number])
            signal.raise_signal(number)
        self.received.append(number)
        if self.group.is_first:
            # sys.stderr may be in the middle of writing when the signal arrives, so it is not used here.
            again = "" if self.group.joined else "; a second signal stops at once, and only the last checkpoint remains"
            os.write(2, f"\nstopping after this step{again}\n".encode())

    def agreed(self) -> signal.Signals | None:
        """The signal that any process received, the same answer in all processes. All of them must call this."""
        counts = self.group.sum([float(number in self.received) for number in HANDLED])
        return next((number for number, count in zip(HANDLED, counts, strict=True) if count), None)


def exit_by_signal(number: signal.Signals) -> None:
    """End as if signal ``number`` had ended the process: KeyboardInterrupt, or exit status 128 + ``number``."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
