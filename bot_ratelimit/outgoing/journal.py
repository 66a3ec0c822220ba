"""Journal: a file that records a broadcast, so that the next run can continue it."""

from __future__ import annotations

import errno
import logging
import os
import sys
from io import FileIO
from pathlib import Path
from typing import Final, SupportsIndex

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.outgoing.sent import Status
from bot_ratelimit.rules.checks import check_flag, describe_type

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger("bot_ratelimit")

LEAVING: Final = "leaving"
REFUSED: Final = "refused"
_WORDS: Final = {LEAVING, REFUSED, *(status.value for status in Status)}
_NAMED: Final = 20
# Windows lets nobody read a locked byte, so the locked one is far behind the text.
_LOCKED_BYTE: Final = 2**30
_LOCKED: Final = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Journal:
    """A file that says to which chats a broadcast was sent, a line for each step.

    `Journal("news.journal")` writes::

        42 leaving
        42 sent
        43 leaving
        43 refused
        44 leaving

    `leaving` is written before a request is sent, and the outcome when it is known, both without
    a buffer in this process. `refused` means that Telegram did not take the message: there was a
    429, another error, or no connection. So after a crash, even by SIGKILL, the file has every chat
    to which something was sent. Chats that end with `leaving` may or may not have got it; these are
    `in_flight`. (After a power failure, data that the system had not written yet is missing.)

    Chats are ids: numbers, or text, in which blanks and line ends at the sides mean nothing.

    While a broadcast runs, the file is locked, so that no other broadcast uses it.

    Args:
        path: The file; a broadcast creates it, and closes it at its end.
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
        self._file: FileIO | None = None
        self._read()

    def __contains__(self, chat: object) -> bool:
        return _name(chat) in self.done

    def open(self) -> None:
        """Begin a broadcast: keep others from using the file, and log what is in flight.

        Raises:
            ConfigError: Another broadcast uses the file, in this process or in another.
        """
        try:
            file = FileIO(self.path, "ab")
        except OSError as error:
            raise ConfigError(f"the journal {self.path}: {error.strerror}") from None
        try:
            _lock(file.fileno())
            file.truncate(self._read())  # another broadcast may have written in the meantime
        except OSError as error:
            file.close()
            if error.errno not in _LOCKED:
                raise ConfigError(f"the journal {self.path}: {error.strerror}") from None
            raise ConfigError(
                f"the journal {self.path}: another broadcast is using it; wait until it ends, "
                "or give another path"
            ) from None
        except ConfigError:
            file.close()
            raise
        self._file = file
        if self.in_flight:
            self._name_in_flight()

    def write(self, chat: int | str, word: str) -> None:
        """Record what happens: `leaving`, `refused`, or the value of a `Status`.

        Raises:
            OSError: The disk is full: nothing was recorded.
        """
        is_late = self._file is None  # a request that a finished broadcast has left behind
        if is_late:
            self.open()
        if self._file is not None:
            line = f"{_name(chat)} {word}\n".encode()
            if (written := self._file.write(line)) != len(line):
                self._file.truncate(self._file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if is_late:
            self.close()

    def close(self) -> None:
        """Close the file, and let other broadcasts use it."""
        if self._file is not None:
            self._file.close()  # which also unlocks
            self._file = None

    def _read(self) -> int:
        """Read the file; return how many bytes are whole lines, and not cut off by a kill."""
        try:
            text = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise ConfigError(f"the journal {self.path}: {error.strerror}") from None
        whole = text.rfind(b"\n") + 1
        begun: dict[str, None] = {}
        for number, line in enumerate(text[:whole].split(b"\n")[:-1], 1):
            chat, _, word = line.decode(errors="replace").strip().rpartition(" ")
            chat = chat.strip()
            if word not in _WORDS:
                raise ConfigError(
                    f"the journal {self.path}: line {number} is not a line of a journal; give the "
                    "path of the right file, or of a new one: then every chat gets the message"
                )
            if word == LEAVING:
                begun[chat] = None
                continue
            begun.pop(chat, None)
            if word not in (REFUSED, Status.FAILED.value):
                self.done.add(chat)
        self.in_flight = tuple(map(_chat, begun))
        if not self._repeat_in_flight:
            self.done.update(begun)
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


def _name(chat: object) -> str:
    """The id as text on one line, the same for a number and for a line of a file."""
    if not isinstance(chat, (int, str, SupportsIndex, type(None))):  # the third one takes 10 µs
        raise ConfigError(
            f"a chat is {describe_type(chat)}: the journal needs ids in chats, for example "
            "[user.id for user in users]"
        )
    return " ".join(str(chat).split())


def _chat(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _lock(file: int) -> None:
    """Lock an open file until it is closed; raise OSError if it is already locked."""
    try:
        if sys.platform == "win32":
            os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LOCKED:  # and not a file system without locks
            raise
