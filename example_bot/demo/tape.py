"""Tape: what the package logs, kept for the story instead of written across the display."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

Records = list[logging.LogRecord]


class Tape(logging.Handler):
    """Keeps log records."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: Records = []
        self._shown = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._records.append(record)

    def take(self) -> Records:
        """What came since this was asked last."""
        new = self._records[self._shown :]
        self._shown = len(self._records)
        return new

    def has(self, text: str) -> bool:
        """Whether a record contains a text."""
        return any(text in record.getMessage() for record in self._records)


@contextmanager
def recorded(name: str = "bot_ratelimit") -> Iterator[Tape]:
    """Put what a logger gets onto a tape, and nowhere else."""
    tape = Tape()
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(tape)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield tape
    finally:
        logger.removeHandler(tape)
        logger.setLevel(level)
        logger.propagate = propagate
