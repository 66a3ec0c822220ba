"""LogCapture: keeps log records, so that the demo can show them between its own lines."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

Records = list[logging.LogRecord]


class LogCapture(logging.Handler):
    """Keeps log records."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: Records = []
        self._shown = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._records.append(record)

    def take(self) -> Records:
        """The records since the last call."""
        new = self._records[self._shown :]
        self._shown = len(self._records)
        return new

    def has(self, text: str) -> bool:
        """Whether a record contains a text."""
        return any(text in record.getMessage() for record in self._records)


@contextmanager
def captured_logs(name: str = "bot_ratelimit") -> Iterator[LogCapture]:
    """Capture what a logger receives, and pass it on to no other handler."""
    logs = LogCapture()
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(logs)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield logs
    finally:
        logger.removeHandler(logs)
        logger.setLevel(level)
        logger.propagate = propagate
