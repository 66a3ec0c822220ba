"""Slot: the answer of `Limiter.slot`, and the lease behind it."""

from __future__ import annotations

import asyncio
import math

from bot_ratelimit.limiter.decision import Decision, Source
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.storage.leases import Claim, Leases


class Lease:
    """A claim on a slot, from the first attempt until the release."""

    def __init__(self, claim: Claim, concurrency: Concurrency, leases: Leases) -> None:
        self.claim = claim
        self.concurrency = concurrency
        self.leases = leases
        """Who keeps it: the storage, or this process."""
        self.is_in_doubt = False
        """Whether the storage may have the claim although it did not answer."""
        self.ends = math.inf
        """By the loop's clock: until then the storage certainly keeps it."""
        self.lost = asyncio.Event()
        self.renew_now = asyncio.Event()
        self.renewing: asyncio.Task[None] | None = None

    def is_lost(self) -> bool:
        """Whether another block may have the slot now."""
        if asyncio.get_running_loop().time() >= self.ends:
            self.lost.set()
        return self.lost.is_set()


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

    @classmethod
    def granted(cls, lease: Lease, remaining: int, source: Source, *, held: bool = True) -> Slot:
        """Return a slot of this lease; `held` if the lease is to be released."""
        slot = cls(True, lease.concurrency, remaining, 0.0, 0.0, source)
        slot._lease = lease if held else None
        return slot

    @classmethod
    def refused(cls, concurrency: Concurrency, wait: float, source: Source) -> Slot:
        """Return a refusal."""
        return cls(False, concurrency, 0, wait, wait, source)

    def after(self, waited: float) -> Slot:
        """Return the same slot, with the time that its caller waited."""
        slot = self._replace(waited=waited)
        slot._lease = self._lease
        return slot

    @property
    def lost(self) -> bool:
        """Whether the slot was lost, so that another block may run at the same time.

        A slot is lost if the event loop was blocked for longer than the lease, if Redis was
        unreachable for that long, or if Redis lost its data. The block is not interrupted. It may
        check this before it does something that must not be done twice.
        """
        return self._lease is not None and self._lease.is_lost()

    async def wait_lost(self) -> None:
        """Wait until the slot is lost, for a block that wants to react to it."""
        if self._lease is None:
            await asyncio.Event().wait()
        else:
            await self._lease.lost.wait()
