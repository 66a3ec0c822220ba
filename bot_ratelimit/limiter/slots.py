"""Slots: how many may run at a time over all instances, as leases that are renewed."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import Counter
from contextlib import suppress
from contextvars import Context
from copy import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, cast

from cachetools import LRUCache

from bot_ratelimit.errors import ConfigError, printable
from bot_ratelimit.limiter.deadline import Deadline
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Source
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.limiter.queues import Queues
from bot_ratelimit.limiter.slot import Lease, Slot
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Count, leases_of
from bot_ratelimit.storage.guarded import Missing
from bot_ratelimit.storage.leases import Action, Claim, Grant
from bot_ratelimit.storage.loops import Seldom, Tasks

log = logging.getLogger("bot_ratelimit")

MAX_WAITING: Final = 1_000
"""The maximum number of callers of a limiter that wait for a slot; further ones are refused."""
FIRST_POLL, LONGEST_POLL = 0.05, 0.5
"""Seconds between two attempts of a waiting process: another one may release its slot early."""
RETRY_RELEASE_EVERY: Final = 1.0
"""Seconds between two attempts to release a slot in an outage; they end with the lease."""
MAX_RETRIES: Final = 1_000
"""The maximum number of releases that are tried again."""


class Slots:
    """Implements `Limiter.slot`; raises ConfigError if the storage keeps no leases."""

    def __init__(self, decider: Decider, observer: Observer) -> None:
        self._decider = decider
        self._observer = observer
        self._leases = leases_of(decider.storage)
        self._standby = decider.standby.leases()
        self._source = decider.storage.source
        self._queues = Queues(MAX_WAITING)
        self._held: dict[str, set[Lease]] = {}
        self._in_use: Counter[str] = Counter()
        # Until when a key exists, unless the server loses its data.
        self._known: LRUCache[str, float] = LRUCache(10_000)
        self._is_closed = False  # until the next slot is asked for
        self._releases, self._retries = Tasks(), Tasks()
        self._seldom = Seldom()

    def lease(self, concurrency: Concurrency, subject: Subject) -> Lease | None:
        """Return a lease that nothing was asked about; None if no slot is needed."""
        key = concurrency.slot_key(self._decider.key_prefix, subject)
        if key is None:
            return None
        claim = Claim(key, _token(), concurrency.amount, concurrency.lease)
        return Lease(claim, concurrency, self._leases)

    async def acquire(self, lease: Lease, timeout: float, deadline: Deadline | None = None) -> Slot:
        """Return a slot, or a refusal after `timeout` seconds at most."""
        self._is_closed, closed = False, self._queues.closed
        is_busy = self._queues.is_busy(lease.claim.key)  # then others come first
        if is_busy:
            slot = _refused(lease, lease.claim.lease, self._source)
        else:
            slot = await self._try(lease, deadline)
        if slot.allowed or slot.source == "policy" or not timeout:
            return slot
        if not self._queues.has_room():
            if self._seldom("full"):
                log.warning(
                    "%d callers already wait for a slot: further ones are refused", MAX_WAITING
                )
            return slot
        return await self._wait(lease, slot, timeout, closed, asked=not is_busy)

    async def _wait(
        self, lease: Lease, slot: Slot, timeout: float, closed: int, *, asked: bool
    ) -> Slot:
        """Wait in the queue: its first caller asks, and a release in this process wakes it."""
        time = asyncio.get_running_loop().time
        began, pause = time(), FIRST_POLL
        async with self._queues.turn(lease.claim.key, timeout, closed) as turn:
            while turn.is_first and (left := began + timeout - time()) > 0:
                if asked:
                    poll = pause * random.uniform(0.75, 1)  # noqa: S311 - no secret
                    woken = await turn.sleep(min(left, slot.retry_after or left, poll))
                    pause = FIRST_POLL if woken else min(pause * 2, LONGEST_POLL)
                    if turn.is_closed:
                        break
                slot, asked = await self._try(lease, None), True
                if slot.allowed or slot.source == "policy":
                    break
            if turn.is_closed and not slot.allowed:
                slot = slot._replace(source="policy")
        return slot._replace(waited=time() - began)

    async def _try(self, lease: Lease, deadline: Deadline | None) -> Slot:
        """Ask for the slot once."""
        began = asyncio.get_running_loop().time()
        lease.leases = self._leases
        try:
            grant = await self._ask("acquire", lease, deadline)
        except BaseException:
            self._release_in_background(lease)  # the slot may have been granted
            raise
        if isinstance(grant, Missing):
            return await self._by_policy(lease)
        if grant.data_lost:
            log.warning(
                "Redis has lost its data (%s): new slots are granted again in %.1f s, when the "
                "processes that still hold one have renewed them",
                printable(lease.claim.key),
                grant.wait,
            )
        return self._decided(lease, grant, began, self._source)

    async def _by_policy(self, lease: Lease) -> Slot:
        """Answer without the storage."""
        concurrency = lease.concurrency
        policy = concurrency.on_error or self._decider.on_error
        if policy == "allow":  # a claim in doubt is released after the block
            return Slot(True, concurrency, concurrency.amount, 0.0, 0.0, "policy")
        if lease.is_in_doubt:
            self._release_in_background(lease)
            # The late release must not affect another attempt.
            lease.claim, lease.is_in_doubt = lease.claim._replace(token=_token()), False
        if policy == "deny":
            return _refused(lease, self._decider.wait(_counts(lease)), "policy")
        lease.leases = self._standby
        began = asyncio.get_running_loop().time()
        grant = await self._standby.claim("acquire", lease.claim, timeout=self._decider.timeout)
        return self._decided(lease, grant, began, "memory")

    def _decided(self, lease: Lease, grant: Grant, began: float, source: Source) -> Slot:
        if not grant.granted:
            return _refused(lease, grant.wait, source)
        lease.ends = began + lease.claim.lease
        lease.renewing = asyncio.create_task(self._renew(lease), context=Context())
        self._held.setdefault(lease.claim.key, set()).add(lease)
        self._report_in_use(lease, 1)
        return Slot(True, lease.concurrency, grant.remaining, 0.0, 0.0, source)

    async def _renew(self, lease: Lease) -> None:
        """Renew the lease after each third of its time; in an outage more often, until it ends."""
        time = asyncio.get_running_loop().time
        third = pause = lease.claim.lease / 3
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await lease.renew_now.wait()
            lease.renew_now.clear()
            began = time()
            grant = await self._ask("renew", lease)
            if isinstance(grant, Missing):
                pause = min(third / 2, 1.0, max(lease.ends - time(), 0.01))
                is_lost = time() >= lease.ends
            else:
                pause, lease.ends = third, began + lease.claim.lease
                is_lost = not grant.granted
            if is_lost and not lease.lost.is_set():
                lease.lost.set()
                if self._seldom(f"lost {lease.claim.key}"):
                    log.warning(
                        "A slot was lost: %s (%s). Its block continues, and another one may run "
                        "beside it",
                        printable(lease.claim.key),
                        lease.concurrency,
                    )
            if lease.lost.is_set():
                pause = third

    async def release(self, lease: Lease) -> None:
        """Release a slot if the storage has it or may have it, also if the caller is cancelled."""
        if lease.renewing is not None:
            lease.renewing.cancel()
            held = self._held[lease.claim.key]
            held.discard(lease)
            if not held:
                del self._held[lease.claim.key]
            self._report_in_use(lease, -1)
        elif not lease.is_in_doubt:
            return
        await asyncio.shield(self._release_in_background(lease))

    def _report_in_use(self, lease: Lease, change: int) -> None:
        name = lease.concurrency.name
        self._in_use[name] += change
        self._observer.slots_in_use(name, self._in_use[name])

    def _release_in_background(self, lease: Lease) -> asyncio.Task[None]:
        """Release in a separate task, which the caller's cancellation does not affect."""
        return self._releases.begin(self._release_once(copy(lease)))

    async def _release_once(self, lease: Lease) -> None:
        freed = await self._ask("release", lease)
        self._queues.wake(lease.claim.key)
        if self._is_closed:  # this has opened the connection of the storage again
            await self._decider.storage.close_idle()
        elif isinstance(freed, Missing) and len(self._retries) < MAX_RETRIES:
            self._retries.begin(self._retry_release(lease))

    async def _retry_release(self, lease: Lease) -> None:
        for _ in range(math.ceil(lease.claim.lease / RETRY_RELEASE_EVERY)):
            await asyncio.sleep(RETRY_RELEASE_EVERY)
            if not isinstance(await self._ask("release", lease), Missing):
                return

    async def _ask(
        self, action: Action, lease: Lease, deadline: Deadline | None = None
    ) -> Grant | Missing:
        """Ask who keeps the lease."""
        leases, claim = lease.leases, lease.claim
        if leases is self._standby:
            return await leases.claim(action, claim, timeout=self._decider.timeout)
        now = asyncio.get_running_loop().time()
        known = self._known.get(claim.key, 0.0) > now
        grant: Grant | Missing = await self._decider.ask(
            leases.claim, action, _counts(lease), deadline, claim=claim, known=known
        )
        if isinstance(grant, Missing):
            lease.is_in_doubt |= grant is Missing.UNKNOWN
            return grant
        # A little less than a lease, because clocks do not run at exactly the same speed.
        self._known[claim.key] = now + claim.lease * 0.9
        for each in self._held.get(claim.key, ()) if grant.data_lost else ():
            each.renew_now.set()
        return grant

    async def close(self) -> None:
        """Refuse all waiters, finish releases, and stop retrying those that failed."""
        self._queues.close()
        await self._releases.finish()
        self._is_closed = True
        await self._retries.finish(0)


@dataclass(slots=True)
class SlotContext:
    """The context manager that `Limiter.slot` returns; it can be entered once."""

    slots: Slots
    concurrency: Concurrency
    subject: Subject
    timeout: float
    deadline: Deadline | None
    slot: Slot | None = None

    async def __aenter__(self) -> Slot:
        if self.slot is not None:
            raise ConfigError("a slot was entered twice: call limiter.slot(...) for each block")
        lease = self.slots.lease(self.concurrency, self.subject)
        if lease is None:
            self.slot = Slot(True, self.concurrency, self.concurrency.amount, 0.0, 0.0, "none")
        else:
            self.slot = await self.slots.acquire(lease, self.timeout, self.deadline)
            self.slot._lease = lease
        return self.slot

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.slot is not None and self.slot._lease is not None:
            await self.slots.release(self.slot._lease)


def _refused(lease: Lease, wait: float, source: Source) -> Slot:
    return Slot(False, lease.concurrency, 0, wait, wait, source)


def _counts(lease: Lease) -> list[Count]:
    return [Count(lease.claim.key, cast(Any, lease.concurrency.limit))]


def _token() -> str:
    return secrets.token_hex(8)
