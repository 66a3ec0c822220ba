"""Documents: small values beside the counts, which operators change and all instances read.

Like every key, each has a TTL: 400 days, renewed by every write and read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, ref

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

LIFETIME: Final = 400 * 86_400
"""Seconds."""

_LIFETIME: Final = b"%d" % LIFETIME
_SLICE: Final = b"500"

_SWAP: Final = b"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
_PUSH: Final = b"""
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
# A field is `<Unix time> <value>`. Fields that were not renewed within the TTL are deleted.
_REPORT: Final = b"""
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], now[1] .. ' ' .. ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at = tonumber(string.match(all[i + 1], '^%d+')) or 0
  if at + ARGV[3] < tonumber(now[1]) then redis.call('HDEL', KEYS[1], all[i]) end
end
return now
"""


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

    async def push(self, key: str, value: bytes, keep: int) -> None:
        """Add a value at the head of a list, and keep only the first `keep` values."""
        ...

    async def listed(self, key: str) -> list[bytes]:
        """Return the values of a list, the latest first."""
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

    async def now(self) -> float:
        """Return the storage's Unix time in seconds."""
        ...

    async def clear(self, prefix: str, keep: Collection[str]) -> int:
        """Delete all keys with this prefix except `keep`, in slices; return how many.

        What ends with a colon in `keep` stands for all keys that begin with it.
        """
        ...


class RedisDocuments:
    """Documents on a Redis server; see `Documents`.

    Args:
        storage: Whose connection to use.
        timeout: Seconds for each command.
    """

    def __init__(self, storage: RedisStorage, timeout: float = 2.0) -> None:
        self._storage = storage
        self._timeout = timeout

    async def read(self, key: str) -> bytes | None:
        """See `Documents.read`."""
        value: bytes | None = await self._run(key, b"GETEX", key.encode(), b"EX", _LIFETIME)
        return value

    async def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """See `Documents.swap`."""
        return bool(await self._script(_SWAP, key, expected or b"", value, _LIFETIME))

    async def put(self, key: str, value: bytes, seconds: int) -> None:
        """See `Documents.put`."""
        await self._run(key, b"SET", key.encode(), value, b"EX", b"%d" % seconds)

    async def find(self, key: str) -> bytes | None:
        """See `Documents.find`."""
        value: bytes | None = await self._run(key, b"GET", key.encode())
        return value

    async def take(self, key: str) -> bytes | None:
        """See `Documents.take`."""
        value: bytes | None = await self._run(key, b"GETDEL", key.encode())
        return value

    async def push(self, key: str, value: bytes, keep: int) -> None:
        """See `Documents.push`."""
        await self._script(_PUSH, key, value, b"%d" % keep, _LIFETIME)

    async def listed(self, key: str) -> list[bytes]:
        """See `Documents.listed`."""
        return list(await self._run(key, b"LRANGE", key.encode(), b"0", b"-1"))

    async def report(self, key: str, field: str, value: bytes, seconds: int) -> float:
        """See `Documents.report`."""
        now = await self._script(_REPORT, key, field.encode(), value, b"%d" % seconds)
        return _seconds(now)

    async def reports(self, key: str) -> dict[str, bytes]:
        """See `Documents.reports`."""
        found = await self._run(key, b"HGETALL", key.encode())
        if not isinstance(found, dict):  # RESP2
            found = dict(zip(found[::2], found[1::2], strict=True))
        return {
            field.decode(errors="replace"): value.partition(b" ")[2]
            for field, value in found.items()
        }

    async def forget(self, key: str, field: str) -> None:
        """See `Documents.forget`."""
        await self._run(key, b"HDEL", key.encode(), field.encode())

    async def now(self) -> float:
        """See `Documents.now`."""
        return _seconds(await self._run("", b"TIME"))

    async def clear(self, prefix: str, keep: Collection[str]) -> int:
        """See `Documents.clear`."""
        if self._storage.is_cluster and "{" not in prefix:
            raise ConfigError(
                f"{prefix!r}: the keys are on several nodes of a Redis Cluster, which "
                "have to be cleared one by one; a prefix with a hash tag, '{my_bot}', is on one"
            )
        kept = {key.encode() for key in keep}
        begins = tuple(key for key in kept if key.endswith(b":"))
        cursor, deleted = b"0", 0
        while True:
            scan = (b"SCAN", cursor, b"MATCH", prefix.encode() + b"*", b"COUNT", _SLICE)
            cursor, keys = await self._run(prefix, *scan)
            doomed = [key for key in keys if key not in kept and not key.startswith(begins)]
            if doomed:
                deleted += await self._run(prefix, b"UNLINK", *doomed)
            if int(cursor) == 0:
                return deleted

    async def _script(self, script: bytes, key: str, *arguments: bytes) -> Any:
        return await self._run(key, b"EVAL", script, b"1", key.encode(), *arguments)

    async def _run(self, key: str, *command: bytes) -> Any:
        return await self._storage.execute(command, key=key, timeout=self._timeout)


class MemoryDocuments:
    """Documents in this process; see `Documents`. They live as long as it does.

    Args:
        storage: Whose counts `clear` forgets, as long as it lives.
        clock: Unix time in seconds.
    """

    def __init__(self, storage: ref[MemoryStorage], clock: Callable[[], float] = time.time) -> None:
        self._storage = storage
        self._clock = clock
        self._values: dict[str, bytes] = {}
        self._once: dict[str, tuple[float, bytes]] = {}
        self._lists: dict[str, list[bytes]] = {}
        self._reports: dict[str, dict[str, tuple[float, bytes]]] = {}

    async def read(self, key: str) -> bytes | None:
        """See `Documents.read`."""
        return self._values.get(key)

    async def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """See `Documents.swap`."""
        if self._values.get(key) != expected:
            return False
        self._values[key] = value
        return True

    async def put(self, key: str, value: bytes, seconds: int) -> None:
        """See `Documents.put`."""
        now = self._clock()
        self._once = {name: each for name, each in self._once.items() if each[0] > now}
        self._once[key] = (now + seconds, value)

    async def find(self, key: str) -> bytes | None:
        """See `Documents.find`."""
        until, value = self._once.get(key, (0.0, b""))
        return value if until > self._clock() else None

    async def take(self, key: str) -> bytes | None:
        """See `Documents.take`."""
        until, value = self._once.pop(key, (0.0, b""))
        return value if until > self._clock() else None

    async def push(self, key: str, value: bytes, keep: int) -> None:
        """See `Documents.push`."""
        self._lists[key] = [value, *self._lists.get(key, ())][:keep]

    async def listed(self, key: str) -> list[bytes]:
        """See `Documents.listed`."""
        return list(self._lists.get(key, ()))

    async def report(self, key: str, field: str, value: bytes, seconds: int) -> float:
        """See `Documents.report`."""
        now = self._clock()
        self._reports.setdefault(key, {})[field] = (now + seconds, value)
        return now

    async def reports(self, key: str) -> dict[str, bytes]:
        """See `Documents.reports`."""
        now, found = self._clock(), self._reports.get(key, {})
        return {field: value for field, (until, value) in found.items() if until > now}

    async def forget(self, key: str, field: str) -> None:
        """See `Documents.forget`."""
        self._reports.get(key, {}).pop(field, None)

    async def now(self) -> float:
        """See `Documents.now`."""
        return self._clock()

    async def clear(self, prefix: str, keep: Collection[str]) -> int:
        """See `Documents.clear`; the number of deleted counts is not known."""
        storage = self._storage()
        if storage is not None:
            await storage.close()  # which only deletes all counts
        known = (*self._values, *self._once, *self._lists, *self._reports)
        begins = tuple(key for key in keep if key.endswith(":"))
        doomed = [key for key in known if key not in keep and not key.startswith(begins)]
        for key in doomed:
            self._values.pop(key, None)
            self._once.pop(key, None)
            self._lists.pop(key, None)
            self._reports.pop(key, None)
        return len(doomed)


_in_memory: Final[WeakKeyDictionary[MemoryStorage, MemoryDocuments]] = WeakKeyDictionary()


def documents_of(storage: Storage) -> Documents:
    """Return the documents of a storage; all callers share them.

    Raises:
        ConfigError: The storage keeps no documents.
    """
    if isinstance(storage, RedisStorage):
        return RedisDocuments(storage)
    if isinstance(storage, MemoryStorage):
        if storage not in _in_memory:
            _in_memory[storage] = MemoryDocuments(ref(storage))
        return _in_memory[storage]
    raise ConfigError(
        f"storage is a {type(storage).__name__}, which keeps no documents: live limits and "
        "administration need RedisStorage(client) or MemoryStorage()"
    )


def _seconds(reply: Any) -> float:
    seconds, microseconds = reply
    return int(seconds) + int(microseconds) / 1e6
