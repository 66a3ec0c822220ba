"""RedisTallies: statistics on a Redis server.

==========================================  =======================================================
`<prefix>:ratelimit:stats:{<hour>}`          a hash: `<outcome> <rule>` to a number, and for each
                                             process the number of its last write that is included
`<prefix>:ratelimit:stats:{<hour>}:minutes`  a hash: `<minute> <outcome> <rule>` to a number
`<prefix>:ratelimit:stats:{<hour>}:refused`  a sorted set: users by how often they were refused
==========================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bot_ratelimit.storage.redis.scripts import Execute, Script, text_of
from bot_ratelimit.storage.tallies import KEPT_HOURS, MAX_USERS, Tallies, Tally

TTL: Final = (KEPT_HOURS + 1) * 3_600
MINUTES_TTL: Final = 2 * 3_600

# A write whose answer was lost is sent again and must not count twice. So each process numbers its
# writes, and the hash stores the last number. ARGV: process, number, TTL, users to keep, number of
# counts, number of counts by minute, TTL of these; then pairs of field and count, then pairs of
# minute with field and count, then pairs of user and refusals.
_ADD: Final = Script("""
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return 0 end
local last = 7 + 2 * ARGV[5]
for i = 8, last, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
local first = last + 1
last = last + 2 * ARGV[6]
for i = first, last, 2 do redis.call('HINCRBY', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[3], ARGV[7])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
if #ARGV > last then
  for i = last + 1, #ARGV, 2 do redis.call('ZINCRBY', KEYS[2], ARGV[i + 1], ARGV[i]) end
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -ARGV[4] - 1)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return 1
""")
# Scripts, because their replies are flat lists with every protocol version.
_COUNTS: Final = Script("return redis.call('HGETALL', KEYS[1])")
_REFUSED: Final = Script("return redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')")


class RedisTallies(Tallies):
    """Tallies of all processes; see `Tallies`."""

    def __init__(self, execute: Execute, prefix: str) -> None:
        self._execute, self._prefix = execute, prefix

    async def add(self, tally: Tally, writer: str, number: int, *, timeout: float) -> None:
        counts = [part for pair in tally.counts.items() for part in pair]
        minutes = [part for pair in tally.minutes.items() for part in pair]
        users = [part for pair in tally.refused.items() for part in pair]
        lengths = (len(counts) // 2, len(minutes) // 2, MINUTES_TTL)
        arguments = [f"#{writer}", number, TTL, MAX_USERS, *lengths, *counts, *minutes, *users]
        key = self._key(tally.hour)
        keys = [key, f"{key}:refused", f"{key}:minutes"]
        await _ADD.run(self._execute, keys, *arguments, timeout=timeout)

    async def counts(
        self, hour: int, *, by_minute: bool = False, timeout: float
    ) -> Mapping[str, int]:
        key = f"{self._key(hour)}:minutes" if by_minute else self._key(hour)
        found = _pairs(await _COUNTS.run(self._execute, [key], timeout=timeout))
        return {field: count for field, count in found.items() if not field.startswith("#")}

    async def refused(self, hour: int, *, timeout: float) -> Mapping[int, int]:
        found = await _REFUSED.run(self._execute, [f"{self._key(hour)}:refused"], timeout=timeout)
        return {int(user): count for user, count in _pairs(found).items()}

    def _key(self, hour: int) -> str:
        return f"{self._prefix}:ratelimit:stats:{{{hour}}}"


def _pairs(reply: list[Any]) -> dict[str, int]:
    texts = [*map(text_of, reply)]
    return {name: int(float(count)) for name, count in zip(texts[::2], texts[1::2], strict=True)}
