"""RedisDocuments: documents on a Redis server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any, Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.documents import LIFETIME, TIMEOUT, Documents, with_id
from bot_ratelimit.storage.redis.scripts import Execute, Script

_LIFETIME: Final = b"%d" % LIFETIME
_SLICE: Final = b"500"

_SWAP: Final = Script("""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
""")
_PUSH: Final = Script("""
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('LPOS', KEYS[1], '') or redis.call('LLEN', KEYS[1])
""")
# A list has the values that wait, an empty one, and the first 16 bytes of those that were taken.
_MARK: Final = b""
_TAKE: Final = Script("""
local now, key, beginning = redis.call('TIME'), KEYS[1], string.sub(ARGV[2], 1, 16)
local count = redis.call('LPOS', key, '') or redis.call('LLEN', key)
local own = redis.call('LPOS', key, ARGV[2]) or redis.call('LPOS', key, beginning)
if own and own >= count then return {} end
if not own or now[1] + now[2] / 1000000 > tonumber(ARGV[1]) then
  redis.call('LREM', key, 0, ARGV[2])
  return false
end
local found = redis.call('LPOP', key, count)
redis.call('LREM', key, 1, '')
for i = #found, 1, -1 do redis.call('LPUSH', key, string.sub(found[i], 1, 16)) end
redis.call('LPUSH', key, '')
redis.call('LTRIM', key, 0, 1000)
redis.call('EXPIRE', key, ARGV[3])
return found
""")
# A field is `<Unix time> <value>`. Fields that were not renewed within the TTL are deleted.
_REPORT: Final = Script("""
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], now[1] .. ' ' .. ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at = tonumber(string.match(all[i + 1], '^%d+')) or 0
  if at + ARGV[3] < tonumber(now[1]) then redis.call('HDEL', KEYS[1], all[i]) end
end
return now
""")


class RedisDocuments(Documents):
    """Documents on a Redis server; on a cluster the keys may be on several nodes."""

    def __init__(self, execute: Execute, is_cluster: bool) -> None:
        self._execute = execute
        self._is_cluster = is_cluster

    async def read(self, key: str) -> bytes | None:
        value: bytes | None = await self._run(key, b"GETEX", key.encode(), b"EX", _LIFETIME)
        return value

    async def swap(self, key: str, expected: bytes | None, value: bytes) -> bool:
        return bool(await self._script(_SWAP, key, expected or b"", value, LIFETIME))

    async def put(self, key: str, value: bytes, seconds: int) -> None:
        await self._run(key, b"SET", key.encode(), value, b"EX", b"%d" % seconds)

    async def find(self, key: str) -> bytes | None:
        value: bytes | None = await self._run(key, b"GET", key.encode())
        return value

    async def take(self, key: str) -> bytes | None:
        value: bytes | None = await self._run(key, b"GETDEL", key.encode())
        return value

    async def push(
        self, key: str, value: bytes, keep: int, seconds: int = LIFETIME, timeout: float = TIMEOUT
    ) -> int:
        return int(await self._script(_PUSH, key, value, keep, seconds, timeout=timeout))

    async def take_list(
        self, key: str, until: float, own: bytes, seconds: int = 60, timeout: float = TIMEOUT
    ) -> list[bytes] | None:
        arguments = f"{until:.6f}", own, seconds
        found: list[bytes] | None = await self._script(_TAKE, key, *arguments, timeout=timeout)
        return found

    async def listed(self, key: str, timeout: float = TIMEOUT) -> list[bytes]:
        return list(await self._run(key, b"LRANGE", key.encode(), b"0", b"-1", timeout=timeout))

    async def waiting(self, key: str, own: bytes, timeout: float = TIMEOUT) -> list[bytes] | None:
        found = await self.listed(key, timeout)
        waiting = found[: found.index(_MARK)] if _MARK in found else found
        return waiting if own in waiting or own[:16] in found else None

    async def report(self, key: str, field: str, value: bytes, seconds: int) -> float:
        now = await self._script(_REPORT, key, field, value, seconds)
        return _seconds(now)

    async def reports(self, key: str) -> dict[str, bytes]:
        found = await self._run(key, b"HGETALL", key.encode())
        if not isinstance(found, dict):  # RESP2
            found = dict(zip(found[::2], found[1::2], strict=True))
        return {
            field.decode(errors="replace"): value.partition(b" ")[2]
            for field, value in found.items()
        }

    async def forget(self, key: str, field: str) -> None:
        await self._run(key, b"HDEL", key.encode(), field.encode())

    async def now(self, key: str = "", timeout: float = TIMEOUT) -> float:
        return _seconds(await self._run(key, b"TIME", timeout=timeout))

    async def clear(self, prefix: str, keep: Collection[str]) -> int:
        self._check_one_node(prefix)
        kept = {key.encode() for key in keep}
        begins = tuple(key for key in kept if key.endswith(b":"))
        deleted = 0
        async for keys in self._slices(prefix, prefix.encode() + b"*"):
            doomed = [key for key in keys if key not in kept and not key.startswith(begins)]
            if doomed:
                deleted += await self._run(prefix, b"UNLINK", *doomed)
        return deleted

    async def replace_id(self, prefix: str, old: int, new: int) -> int:
        self._check_one_node(prefix)
        renamed = 0
        async for keys in self._slices(prefix, b"%b*%d*" % (prefix.encode(), old)):
            for key in keys:
                name = with_id(key.decode(errors="surrogateescape"), prefix, old, new)
                if name is not None:
                    target = name.encode(errors="surrogateescape")
                    renamed += await self._run(prefix, b"RENAMENX", key, target)
        return renamed

    async def _slices(self, prefix: str, pattern: bytes) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            scan = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SLICE)
            cursor, keys = await self._run(prefix, *scan)
            yield keys
            if int(cursor) == 0:
                return

    def _check_one_node(self, prefix: str) -> None:
        if self._is_cluster and "{" not in prefix:
            raise ConfigError(
                f"{prefix!r}: the keys are on several nodes of a Redis Cluster, which "
                "have to be changed one by one; a prefix with a hash tag, '{my_bot}', is on one"
            )

    async def _script(
        self, script: Script, key: str, *arguments: bytes | str | int, timeout: float = TIMEOUT
    ) -> Any:
        return await script.run(self._execute, [key], *arguments, timeout=timeout)

    async def _run(self, key: str, *command: bytes, timeout: float = TIMEOUT) -> Any:
        return await self._execute(command, key=key, timeout=timeout)


def _seconds(reply: Any) -> float:
    seconds, microseconds = reply
    return int(seconds) + int(microseconds) / 1e6
