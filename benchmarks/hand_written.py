"""Hand-written limiters, and the minimum cost of a round trip."""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks.candidate import AMOUNT, DAY, Candidate, Setting, UnableError, client

SCRIPT = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return count
"""


class _HandWritten(Candidate):
    _redis: Any

    async def setup(self, setting: Setting) -> None:
        if setting.rules > 1 or setting.algorithm != "fixed window":
            raise UnableError("it supports one fixed window only")
        self._redis = client(setting)

    async def close(self) -> None:
        await self._redis.aclose()


class Multi(_HandWritten):
    """The common middleware: MULTI of INCR and TTL, then EXPIRE if the key is new."""

    name: ClassVar[str] = "hand-written MULTI"

    async def hit(self, user: int) -> bool:
        key = f"bench:ratelimit:{user}"
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.ttl(key)
            count, ttl = await pipe.execute()
        if ttl == -1:
            await self._redis.expire(key, DAY)
        return bool(count <= AMOUNT)


class Script(_HandWritten):
    """One EVALSHA for each decision."""

    name: ClassVar[str] = "hand-written EVALSHA"

    async def setup(self, setting: Setting) -> None:
        await super().setup(setting)
        self._script = self._redis.register_script(SCRIPT)

    async def hit(self, user: int) -> bool:
        return bool(await self._script([f"bench:ratelimit:{user}"], [DAY]) <= AMOUNT)


class Incr(_HandWritten):
    """A bare INCR without TTL and window: the least that any decision through redis-py can cost."""

    name: ClassVar[str] = "bare INCR"

    async def hit(self, user: int) -> bool:
        return bool(await self._redis.incr(f"bench:ratelimit:{user}") <= AMOUNT)
