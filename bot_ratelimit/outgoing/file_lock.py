"""FileLock: one process at a time uses a file; the system releases it when the process ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Windows lets nobody read a locked byte, so the locked one is behind the text.
_LOCKED_BYTE = 1_000
_LOCKED = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FileLock:
    """A lock on a file that contains who holds it. It stays: deleting it could let two in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> str | None:
        """Take the lock; return None, or who holds it: `process 123 on host`.

        Raises:
            OSError: The file cannot be opened.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in _LOCKED:  # a file system without locks
                self._file = file
                return None
            holder = os.read(file, _LOCKED_BYTE).decode(errors="replace").strip()
            os.close(file)
            return holder or "another process"
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._file = file
        return None

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            os.close(self._file)  # which also unlocks
            self._file = None


def _lock(file: int) -> None:
    """Lock an open file, or raise OSError if it is locked."""
    if sys.platform == "win32":
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
