"""Journal: a file that records a broadcast, so that the next run can continue it."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.outgoing.sent import Status

LEAVING: Final = "leaving"
_WORDS: Final = {LEAVING, *(status.value for status in Status)}


class Journal:
    """A file that says to which chats a broadcast was sent, a line for each step.

    `Journal("news.journal")` writes::

        42 leaving
        42 sent
        43 leaving

    `leaving` is written before a request is sent, and the outcome when it is known, both without
    a buffer in this process. So after a crash, even by SIGKILL, the file has every chat to which
    something was sent. Chats without an outcome may or may not have got it; these are
    `in_flight`. (After a power failure, data that the system had not written yet is missing.)

    Args:
        path: The file; it is created before the first request. A broadcast closes it at its end.
        repeat_in_flight: Whether chats that were in flight get the message again. By default they
            are skipped, so that no chat gets it twice.

    Raises:
        ConfigError: The file is not a journal, or cannot be read.
    """

    def __init__(self, path: str | Path, *, repeat_in_flight: bool = False) -> None:
        self.path = Path(path)
        self.done: set[str] = set()
        """The chats that need no further request."""
        self._file: FileIO | None = None
        try:
            begun = self._read() if self.path.exists() else []
        except OSError as error:
            raise ConfigError(f"the journal {self.path}: {error.strerror}") from None
        self.in_flight: tuple[int | str, ...] = tuple(map(_chat, begun))
        """The chats to which an earlier run was sending when it ended."""
        if not repeat_in_flight:
            self.done.update(begun)

    def __contains__(self, chat: object) -> bool:
        return str(chat) in self.done

    def leaving(self, chat: int | str) -> None:
        """Record that a request to this chat is about to be sent."""
        self._write(f"{chat} {LEAVING}")

    def finished(self, chat: int | str, status: Status) -> None:
        """Record the outcome."""
        self._write(f"{chat} {status.value}")

    def close(self) -> None:
        """Close the file; writing opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is None:
            self._file = FileIO(self.path, "ab")
        self._file.write(f"{line}\n".encode())

    def _read(self) -> list[str]:
        """Read the file; return the chats without an outcome."""
        begun: dict[str, None] = {}
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
                else:
                    begun.pop(chat, None)
                    if word != Status.FAILED.value:
                        self.done.add(chat)
        os.truncate(self.path, whole)
        return list(begun)


def _chat(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
