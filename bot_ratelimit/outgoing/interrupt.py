"""Interrupt: notices Ctrl-C, so that a broadcast can end with a line and not with a traceback."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Notices SIGINT while a block runs; its earlier handler still gets it.

    `asyncio.run` cancels its main task at SIGINT. If something else handles it, such as aiogram's
    polling, that decides what happens.
    """

    def __init__(self) -> None:
        self.came = False
        """Whether Ctrl-C was pressed during the block."""
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = signal.getsignal(signal.SIGINT)
            if self._before is signal.default_int_handler:
                self._before = None  # no asyncio.run: it raises where it is, so not through here
            if callable(self._before):
                signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_: object) -> None:
        if callable(self._before) and signal.getsignal(signal.SIGINT) == self._on_signal:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self._before(number, frame)
