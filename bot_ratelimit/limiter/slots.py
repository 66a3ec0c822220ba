"""Slots: how many may run at a time over all instances, as leases that are renewed."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import Counter
from collections.abc import Coroutine
from contextvars import Context
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
from bot_ratelimit.storage.loops import Seldom

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
    """Implements `Limiter.slot`.

    Args:
        decider: The storage with its guard, and the policy.
        observer: Is told how many slots this process holds.

    Raises:
        ConfigError: The storage keeps no leases.
    """

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
        self._releases: set[asyncio.Task[None]] = set()
        self._retries: set[asyncio.Task[None]] = set()
        self._seldom = Seldom()

    async def acquire(
        self,
        concurrency: Concurrency,
        subject: Subject,
        timeout: float,
        deadline: Deadline | None = None,
    ) -> Slot:
        """Return a slot, or a refusal after `timeout` seconds at most."""
        self._is_closed = False
        key = concurrency.slot_key(self._decider.key_prefix, subject)
        if key is None:
            return Slot(True, concurrency, concurrency.amount, 0.0, 0.0, "none")
        claim = Claim(key, _token(), concurrency.amount, concurrency.lease)
        lease = Lease(claim, concurrency, self._leases)
        slot = Slot.refused(concurrency, concurrency.lease, self._source)
        is_busy = self._queues.is_busy(key)  # then others come first
        if not is_busy:
            slot = await self._try(lease, deadline)
            if slot.allowed or slot.source == "policy":
                return slot
        if not timeout:
            return slot
        if not self._queues.has_room():
            if self._seldom("full"):
                log.warning(
                    "%d callers already wait for a slot: further ones are refused", MAX_WAITING
                )
            return slot
        return await self._wait(lease, slot, timeout, asked=not is_busy)

    async def _wait(self, lease: Lease, slot: Slot, timeout: float, *, asked: bool) -> Slot:
        """Wait in the queue: its first caller asks, and a release in this process wakes it."""
        time = asyncio.get_running_loop().time
        began, pause = time(), FIRST_POLL
        async with self._queues.turn(lease.claim.key, timeout) as turn:
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
        return slot.after(time() - began)

    async def _try(self, lease: Lease, deadline: Deadline | None) -> Slot:
        """Ask for the slot once."""
        began = asyncio.get_running_loop().time()
        lease.leases = self._leases
        if lease.is_in_doubt:  # a late release of the last attempt must not affect this one
            lease.claim = lease.claim._replace(token=_token())
            lease.is_in_doubt = False
        try:
            grant = await self._ask("acquire", lease, deadline)
            if isinstance(grant, Missing):
                return await self._by_policy(lease)
        except BaseException:
            self._release_in_background(lease)  # the slot may have been granted
            raise
        if grant.data_lost:
            log.warning(
                "Redis has lost its data (%s): new slots are granted again in %.1f s, when the "
                "processes that still hold one have renewed them",
                printable(lease.claim.key),
                grant.wait,
            )
        if not grant.granted:
            return Slot.refused(lease.concurrency, grant.wait, self._source)
        return self._granted(lease, grant, began, self._source)

    async def _by_policy(self, lease: Lease) -> Slot:
        """Answer without the storage."""
        concurrency = lease.concurrency
        policy = concurrency.on_error or self._decider.on_error
        if policy == "allow":
            return Slot.granted(lease, concurrency.amount, "policy", held=lease.is_in_doubt)
        if lease.is_in_doubt:
            self._release_in_background(lease)
        if policy == "deny":
            wait = self._decider.wait(_counts(lease))
            return Slot.refused(concurrency, wait, "policy")
        lease.leases = self._standby
        began = asyncio.get_running_loop().time()
        grant = await self._standby.claim("acquire", lease.claim, timeout=self._decider.timeout)
        if not grant.granted:
            return Slot.refused(concurrency, grant.wait, "memory")
        return self._granted(lease, grant, began, "memory")

    def _granted(self, lease: Lease, grant: Grant, began: float, source: Source) -> Slot:
        lease.ends = began + lease.claim.lease
        lease.renewing = asyncio.create_task(self._renew(lease), context=Context())
        self._held.setdefault(lease.claim.key, set()).add(lease)
        self._report_in_use(lease, 1)
        return Slot.granted(lease, grant.remaining, source)

    async def _renew(self, lease: Lease) -> None:
        """Renew the lease after each third of its time; in an outage more often, until it ends."""
        time = asyncio.get_running_loop().time
        third = lease.claim.lease / 3
        pause = third
        while True:
            await _wait_for(lease.renew_now, pause)
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
                self._lose(lease)
            if lease.lost.is_set():
                pause = third

    def _lose(self, lease: Lease) -> None:
        lease.lost.set()
        if self._seldom(f"lost {lease.claim.key}"):
            log.warning(
                "A slot was lost: %s (%s). Its block continues, and another one may run beside it",
                printable(lease.claim.key),
                lease.concurrency,
            )

    async def release(self, lease: Lease) -> None:
        """Release a slot, even if the caller is being cancelled."""
        if lease.renewing is not None:
            lease.renewing.cancel()
        held = self._held.get(lease.claim.key, set())
        if lease in held:
            held.discard(lease)
            self._report_in_use(lease, -1)
        if not held:
            self._held.pop(lease.claim.key, None)
        await asyncio.shield(self._release_in_background(lease))

    def _report_in_use(self, lease: Lease, change: int) -> None:
        name = lease.concurrency.name
        self._in_use[name] += change
        self._observer.slots_in_use(name, self._in_use[name])

    def _release_in_background(self, lease: Lease) -> asyncio.Task[None]:
        """Release in a separate task, which the caller's cancellation does not affect."""
        copy = Lease(lease.claim, lease.concurrency, lease.leases)
        return _in_background(self._release_once(copy), self._releases)

    async def _release_once(self, lease: Lease) -> None:
        freed = await self._ask("release", lease)
        self._queues.wake(lease.claim.key)
        if self._is_closed:  # this has opened the connection of the storage again
            await self._decider.storage.close_idle()
        elif isinstance(freed, Missing) and len(self._retries) < MAX_RETRIES:
            _in_background(self._retry_release(lease), self._retries)

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
        loop = asyncio.get_running_loop()
        # Not cancelled: that would leave the slots taken, and cancel the callers, too.
        if releases := [task for task in self._releases if task.get_loop() is loop]:
            await asyncio.wait(releases)
        self._is_closed = True
        for task in self._retries:
            if task.get_loop() is loop:
                task.cancel()


class SlotContext:
    """The context manager that `Limiter.slot` returns; it can be entered once."""

    def __init__(
        self,
        slots: Slots,
        concurrency: Concurrency,
        subject: Subject,
        timeout: float,
        deadline: Deadline | None,
    ) -> None:
        self._slots = slots
        self._arguments = concurrency, subject, timeout, deadline
        self._slot: Slot | None = None

    async def __aenter__(self) -> Slot:
        if self._slot is not None:
            raise ConfigError("a slot was entered twice: call limiter.slot(...) for each block")
        self._slot = await self._slots.acquire(*self._arguments)
        return self._slot

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._slot is not None and self._slot._lease is not None:
            await self._slots.release(self._slot._lease)


def _counts(lease: Lease) -> list[Count]:
    return [Count(lease.claim.key, cast(Any, lease.concurrency.limit))]


def _in_background(
    work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]
) -> asyncio.Task[None]:
    """Run it as a task, which is in this set until it ends."""
    task = asyncio.create_task(work, context=Context())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def _token() -> str:
    return secrets.token_hex(8)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
