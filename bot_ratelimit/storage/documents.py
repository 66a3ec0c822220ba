"""Documents: small values beside the counts, which operators change and all instances read.

Like every key, each has a TTL: 400 days, renewed by every write and read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, MutableMapping
from typing import Any, Final, Protocol

from bot_ratelimit.storage.cache import StateCache

LIFETIME: Final = 400 * 86_400
"""Seconds."""
TIMEOUT: Final = 2.0
"""Seconds in which a server has to answer, unless the caller says otherwise."""


class Documents(Protocol):
    """Reads and writes documents.

    All methods raise StorageError if the storage is unreachable, and ConfigError if it refuses
    until a setting is changed, or if other data is stored under the key.
    """

    async def read(self, key: str) -> bytes | None:
        """Return the document or None, and renew its TTL."""
        ...

    async def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Replace the expected document by another one; return whether it was still there."""
        ...

    async def put(self, key: str, value: bytes, seconds: int) -> None:
        """Write a document that can be taken once within `seconds`."""
        ...

    async def find(self, key: str) -> bytes | None:
        """Return a document of `put`, or None, and leave its TTL as it is."""
        ...

    async def take(self, key: str) -> bytes | None:
        """Delete and return the document, or None; only one caller gets it."""
        ...

    async def push(
        self, key: str, value: bytes, keep: int, seconds: int = LIFETIME, timeout: float = TIMEOUT
    ) -> int:
        """Add a value at the head of a list, keep the first `keep`; return how many wait there."""
        ...

    async def take_list(
        self, key: str, until: float, own: bytes, seconds: int = 60, timeout: float = TIMEOUT
    ) -> list[bytes] | None:
        """Take the values of a list, the latest first; only one caller gets them.

        Nothing is taken if somebody else took `own`. After `until`, by `now`, the caller has given
        up and uses only its own value: then only that is deleted, and the answer is None; so it is
        if `own` was lost. What was taken is known for `seconds`, by its first 16 bytes.
        """
        ...

    async def listed(self, key: str) -> list[bytes]:
        """Return the values of a list, the latest first."""
        ...

    async def waiting(self, key: str, own: bytes, timeout: float = TIMEOUT) -> list[bytes] | None:
        """Return the values that wait, the latest first; `own` is not among them if it was taken.

        None if `own` neither waits nor was taken: the storage lost its data.
        """
        ...

    async def report(self, key: str, field: str, value: bytes, seconds: int) -> float:
        """Store a value under a field for `seconds`; return the storage's Unix time."""
        ...

    async def reports(self, key: str) -> dict[str, bytes]:
        """Return the reports that have not expired."""
        ...

    async def forget(self, key: str, field: str) -> None:
        """Delete a report."""
        ...

    async def now(self, key: str = "", timeout: float = TIMEOUT) -> float:
        """Return the Unix time in seconds of the storage, on a cluster where the key is."""
        ...

    async def clear(self, prefix: str, keep: Collection[str]) -> int:
        """Delete all keys with this prefix except `keep`, in slices; return how many.

        What ends with a colon in `keep` stands for all keys that begin with it.
        """
        ...

    async def replace_id(self, prefix: str, old: int, new: int) -> int:
        """Rename the keys with this prefix that name the id `old`; return how many.

        A key whose new name exists already stays as it is. So do slots and collected messages: the
        process that holds them looks for them under the old name.
        """
        ...


def with_id(key: str, prefix: str, old: int, new: int) -> str | None:
    """Return the key with `new` in place of the id `old` between colons; None if it stays."""
    parts = key.split(":")
    if str(old) not in parts or key.startswith((f"{prefix}slot:", f"{prefix}collect:")):
        return None
    return ":".join(str(new) if part == str(old) else part for part in parts)


class MemoryDocuments(Documents):
    """Documents in this process. Lists stay until they are taken or cleared, or the process ends.

    The counts are cleared and renamed with them, and the shared verdicts cleared.
    """

    def __init__(self, counts: StateCache, once: MutableMapping[str, Any]) -> None:
        self._counts, self._once = counts, once
        self._clock = time.time
        self._values: dict[str, tuple[float, bytes]] = {}  # with their ends
        self._lists: dict[str, list[bytes]] = {}
        self._reports: dict[str, dict[str, tuple[float, bytes]]] = {}

    async def read(self, key: str) -> bytes | None:
        until, value = self._values.get(key, (0.0, b""))
        return value if until > self._clock() else None

    find = read

    async def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        if await self.read(key) != expected:
            return False
        self._values[key] = math.inf, value
        return True

    async def put(self, key: str, value: bytes, seconds: int) -> None:
        now = self._clock()
        self._values = {name: each for name, each in self._values.items() if each[0] > now}
        self._values[key] = now + seconds, value

    async def take(self, key: str) -> bytes | None:
        value = await self.read(key)
        self._values.pop(key, None)
        return value

    async def push(
        self, key: str, value: bytes, keep: int, seconds: int = LIFETIME, timeout: float = TIMEOUT
    ) -> int:
        self._lists[key] = [value, *self._lists.get(key, ())][:keep]
        return len(self._lists[key])

    async def take_list(
        self, key: str, until: float, own: bytes, seconds: int = 60, timeout: float = TIMEOUT
    ) -> list[bytes] | None:
        if own not in self._lists.get(key, ()):  # somebody else took it: here, nothing is lost
            return []
        found = self._lists.pop(key)
        if self._clock() <= until:
            return found
        if left := [value for value in found if value != own]:
            self._lists[key] = left
        return None

    async def listed(self, key: str) -> list[bytes]:
        return list(self._lists.get(key, ()))

    async def waiting(self, key: str, own: bytes, timeout: float = TIMEOUT) -> list[bytes]:
        return await self.listed(key)

    async def report(self, key: str, field: str, value: bytes, seconds: int) -> float:
        now = self._clock()
        self._reports.setdefault(key, {})[field] = (now + seconds, value)
        return now

    async def reports(self, key: str) -> dict[str, bytes]:
        now, found = self._clock(), self._reports.get(key, {})
        return {field: value for field, (until, value) in found.items() if until > now}

    async def forget(self, key: str, field: str) -> None:
        self._reports.get(key, {}).pop(field, None)

    async def now(self, key: str = "", timeout: float = TIMEOUT) -> float:
        return self._clock()

    async def clear(self, prefix: str, keep: Collection[str]) -> int:
        groups = tuple(key for key in keep if key.endswith(":"))

        def goes(key: str) -> bool:
            return key.startswith(prefix) and key not in keep and not key.startswith(groups)

        deleted = 0
        for values in (self._values, self._lists, self._reports, self._once, self._counts):
            for key in filter(goes, list(values)):
                deleted += values.pop(key, None) is not None
        return deleted

    async def replace_id(self, prefix: str, old: int, new: int) -> int:
        counts, renamed = self._counts, 0
        for key in [key for key in counts if key.startswith(prefix)]:
            name, entry = with_id(key, prefix, old, new), counts[key]
            if name is not None and name not in counts and entry is not None:
                del counts[key]
                counts.put(name, None, entry.state, entry.ends, entry.retention)
                renamed += 1
        return renamed
