"""Journal: a file that records a broadcast, so that the next run can continue it."""

from __future__ import annotations

import logging
import os
from io import FileIO
from pathlib import Path
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.outgoing.file_lock import FileLock
from bot_ratelimit.outgoing.sent import Status
from bot_ratelimit.rules.checks import check_flag

log = logging.getLogger("bot_ratelimit")

LEAVING: Final = "leaving"
REFUSED: Final = "refused"
_WORDS: Final = {LEAVING, REFUSED, *(status.value for status in Status)}
_NAMED: Final = 20


class Journal:
    """A file that says to which chats a broadcast was sent, a line for each step.

    `Journal("news.journal")` writes::

        42 leaving
        42 sent
        43 leaving
        43 refused
        44 leaving

    `leaving` is written before a request is sent, and the outcome when it is known, both without
    a buffer in this process. `refused` is a 429: Telegram did not take the message, and it is sent
    again later. So after a crash, even by SIGKILL, the file has every chat to which something was
    sent. Chats that end with `leaving` may or may not have got it; these are `in_flight`. (After a
    power failure, data that the system had not written yet is missing.)

    While a broadcast runs, `news.journal.lock` keeps other processes from using the file.

    Args:
        path: The file; it is created before the first request. A broadcast closes it at its end.
        repeat_in_flight: Whether chats that were in flight get the message again. By default they
            are skipped, so that no chat gets it twice.

    Raises:
        ConfigError: An argument is invalid, or the file is not a journal, or cannot be read.
    """

    def __init__(self, path: str | Path, *, repeat_in_flight: bool = False) -> None:
        if not isinstance(path, (str, Path)):
            raise ConfigError(f"path={path!r}: expected the path of a file, such as 'news.journal'")
        self.path = Path(path)
        self.done: set[str] = set()
        """The chats that need no further request."""
        self.in_flight: tuple[int | str, ...] = ()
        """The chats to which an earlier run was sending when it ended."""
        self._repeat_in_flight = check_flag("repeat_in_flight", repeat_in_flight)
        self._lock = FileLock(self.path.with_name(f"{self.path.name}.lock"))
        self._file: FileIO | None = None
        self._read()

    def __contains__(self, chat: object) -> bool:
        return str(chat) in self.done

    def open(self) -> None:
        """Begin a broadcast: keep other processes from using the file, and log what is in flight.

        Raises:
            ConfigError: Another process broadcasts with this file.
        """
        if self._lock.is_held:
            return
        try:
            holder = self._lock.acquire()
        except OSError as error:
            raise ConfigError(f"the journal {self.path}: its lock: {error.strerror}") from None
        if holder is not None:
            raise ConfigError(
                f"the journal {self.path}: {holder} is broadcasting with it; wait until it ends, "
                "or give another path"
            )
        whole = self._read()  # another process may have written since this object was made
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)
        if self.in_flight:
            self._name_in_flight()

    def leaving(self, chat: int | str) -> None:
        """Record that a request to this chat is about to be sent."""
        self._write(f"{chat} {LEAVING}")

    def refused(self, chat: int | str) -> None:
        """Record that Telegram did not take the request: it answered with 429."""
        self._write(f"{chat} {REFUSED}")

    def finished(self, chat: int | str, status: Status) -> None:
        """Record the outcome."""
        self._write(f"{chat} {status.value}")

    def close(self) -> None:
        """Close the file, and let other processes use it; writing opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def _write(self, line: str) -> None:
        if self._file is None:
            self.open()
            self._file = FileIO(self.path, "ab")
        self._file.write(f"{line}\n".encode())

    def _read(self) -> int:
        """Read the file; return how many bytes are whole lines."""
        begun: dict[str, None] = {}
        whole = 0
        try:
            if self.path.exists():
                whole = self._read_lines(begun)
        except OSError as error:
            raise ConfigError(f"the journal {self.path}: {error.strerror}") from None
        self.in_flight = tuple(map(_chat, begun))
        if not self._repeat_in_flight:
            self.done.update(begun)
        return whole

    def _read_lines(self, begun: dict[str, None]) -> int:
        whole = 0
        with self.path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.endswith(b"\n"):  # an incomplete line, of a process that was killed
                    break
                whole += len(raw)
                chat, _, word = raw.decode(errors="replace").strip().rpartition(" ")
                if not chat or word not in _WORDS:
                    raise ConfigError(
                        f"the journal {self.path}: line {number} is not a line of a journal; "
                        "give the path of a new file"
                    )
                if word == LEAVING:
                    begun[chat] = None
                    continue
                begun.pop(chat, None)
                if word not in (REFUSED, Status.FAILED.value):
                    self.done.add(chat)
        return whole

    def _name_in_flight(self) -> None:
        named = ", ".join(map(str, self.in_flight[:_NAMED]))
        more = len(self.in_flight) - _NAMED
        log.warning(
            "%s: %d chats were in flight when the last run ended. They may have got the message "
            "and are skipped (repeat_in_flight=True sends it again): %s%s",
            self.path,
            len(self.in_flight),
            named,
            f" and {more} more" if more > 0 else "",
        )


def _chat(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
