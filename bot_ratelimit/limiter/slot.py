"""Slot: the answer of `Limiter.slot`, and the lease behind it."""

from __future__ import annotations

import asyncio
from typing import Any

from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.storage.leases import Claim, Leases


class Lease:
    """What stands behind a slot while its block runs."""

    def __init__(self, claim: Claim, leases: Leases, ends: float) -> None:
        self.claim = claim
        self.leases = leases
        """Who keeps it: the storage, or this process."""
        self.ends = ends
        """By the loop's clock: until then the storage certainly keeps it."""
        self.lost = asyncio.Event()
        self.renewing: asyncio.Task[None] | None = None


class Slot(Decision):
    """The Decision about a slot; `remaining` is the number of slots that are still free.

    ::

        async with limiter.slot(Concurrency(1, name="report"), subject) as slot:
            if slot.allowed and not slot.lost:
                ...

    `retry_after` of a refusal is the time until the next lease ends if it is not renewed. A slot
    may be free much sooner.
    """

    _lease: Lease | None = None

    def with_lease(self, lease: Lease | None, **fields: Any) -> Slot:
        """A copy that has this lease, and other values of some fields."""
        slot = self._replace(**fields)
        slot._lease = lease
        return slot

    @property
    def lost(self) -> bool:
        """Whether the slot was lost, so that another block may run at the same time.

        A slot is lost if the event loop was blocked for longer than the lease, if Redis was
        unreachable for that long, or if Redis lost its data. The block is not interrupted. It may
        check this before it does something that must not be done twice.
        """
        lease = self._lease
        if lease is not None and asyncio.get_running_loop().time() >= lease.ends:
            lease.lost.set()
        return lease is not None and lease.lost.is_set()

    async def wait_lost(self) -> None:
        """Wait until the slot is lost, for a block that wants to react to it."""
        await (asyncio.Event() if self._lease is None else self._lease.lost).wait()
