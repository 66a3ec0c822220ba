"""RedisLeases: leases on a Redis server, by its clock."""

from __future__ import annotations

from typing import Final

from bot_ratelimit.storage.leases import Action, Claim, Grant, Leases
from bot_ratelimit.storage.redis.scripts import Execute, script_in

_SCRIPT: Final = script_in("leases")


class RedisLeases(Leases):
    """Leases on a Redis server, by its clock."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    async def claim(self, action: Action, claim: Claim, *, timeout: float) -> Grant:
        lease_ms = round(claim.lease * 1_000)
        arguments = (action, claim.token, claim.amount, lease_ms)
        reply = await _SCRIPT.run(self._execute, [claim.key], *arguments, timeout=timeout)
        granted, remaining, wait_ms = map(int, reply)
        return Grant(granted == 1, remaining, wait_ms / 1_000)
