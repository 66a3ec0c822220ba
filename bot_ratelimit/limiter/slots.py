"""Slots: how many may run at a time over all instances, as leases that are renewed."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import Counter
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, cast

from bot_ratelimit.errors import ConfigError, RateLimitError, printable
from bot_ratelimit.limiter.arguments import check_subject
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.limiter.queues import Queues
from bot_ratelimit.limiter.slot import Lease, Slot
from bot_ratelimit.rules.checks import check_wait
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.rule import Rule, Subject
from bot_ratelimit.storage.base import Count
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.guarded import Missing
from bot_ratelimit.storage.leases import Action, Claim, Grant, Leases
from bot_ratelimit.storage.loops import Seldom, Tasks

log = logging.getLogger("bot_ratelimit")

MAX_WAITING: Final = 1_000
"""The maximum number of callers of a limiter that wait for a slot; further ones are refused."""
FIRST_POLL, LONGEST_POLL = 0.05, 0.5
"""Seconds between two attempts of a waiting process: another one may release its slot early."""


class Slots:
    """Implements `Limiter.slot`."""

    def __init__(self, decider: Decider, observer: Observer) -> None:
        self._decider, self._observer = decider, observer
        self._standby: Leases = decider.standby.leases()
        self._queues = Queues(MAX_WAITING)
        self._in_use: Counter[str] = Counter()
        self._releases = Tasks()
        self._seldom = Seldom()

    def context(
        self,
        concurrency: Concurrency,
        subject: Subject,
        timeout: float | None,
        deadline: Deadline | None,
    ) -> SlotContext:
        """See `Limiter.slot`."""
        if not isinstance(concurrency, Concurrency):
            raise ConfigError(
                f"concurrency={concurrency!r}: expected Concurrency(1, name='report')"
            )
        key = Rule.key(concurrency, self._decider.key_prefix, check_subject(subject))
        leases = self._decider.storage.leases()  # a ConfigError if it keeps none
        return SlotContext(self, key, concurrency, leases, check_wait(timeout), deadline)

    async def acquire(self, wanted: SlotContext, key: str) -> Slot:
        """Return a slot, or a refusal after its time-out at most."""
        time = asyncio.get_running_loop().time
        closed, began = self._queues.closed, time()
        slot = _refusal(wanted.concurrency, wanted.concurrency.lease, self._decider.storage.source)
        if not self._queues.is_busy(key):  # else others come first
            slot = await self._try(wanted, key, wanted.deadline)
        if wanted.timeout and closed != self._queues.closed and slot._lease is None:
            return _refusal(wanted.concurrency, slot.retry_after, "policy")
        if slot.allowed or slot.source == "policy" or not wanted.timeout:
            return slot
        if not self._queues.has_room():
            return slot
        pause, until = FIRST_POLL, began + wanted.timeout
        async with self._queues.turn(key, wanted.timeout) as turn:
            while turn.is_first and not turn.is_closed and (left := until - time()) > 0:
                slot = await self._try(wanted, key)
                if slot.allowed or slot.source == "policy":
                    break
                poll = pause * random.uniform(0.75, 1)  # noqa: S311 - no secret
                woken = await turn.sleep(min(left, slot.retry_after or left, poll))
                pause = FIRST_POLL if woken else min(pause * 2, LONGEST_POLL)
            if turn.is_closed and slot._lease is None:
                slot = _refusal(wanted.concurrency, slot.retry_after, "policy")
        return slot.with_lease(slot._lease, waited=time() - began)

    async def _try(self, wanted: SlotContext, key: str, deadline: Deadline | None = None) -> Slot:
        """Ask for the slot once; without an answer the policy decides."""
        concurrency, decider, leases = wanted.concurrency, self._decider, wanted.leases
        began, source = asyncio.get_running_loop().time(), decider.storage.source
        claim = Claim(key, secrets.token_hex(8), concurrency.amount, concurrency.lease)
        grant: Grant | Missing = Missing.UNKNOWN
        try:
            grant = await self._ask("acquire", leases, claim, deadline)
        finally:
            if grant is Missing.UNKNOWN:  # the slot may have been granted
                self._releases.begin(self._give_up(leases, claim))
        if isinstance(grant, Missing):
            policy = concurrency.on_error or decider.on_error
            if policy == "allow":
                return Slot(True, concurrency, concurrency.amount, 0.0, 0.0, "policy")
            if policy == "deny":
                return _refusal(concurrency, decider.wait(_counts(claim)), "policy")
            leases, source = self._standby, "memory"
            grant = await leases.claim("acquire", claim, timeout=decider.timeout)
        if not grant.granted:
            return _refusal(concurrency, grant.wait, source)
        lease = Lease(claim, leases, began + claim.lease)
        lease.renewing = asyncio.create_task(self._renew(lease, concurrency), context=Context())
        self._report_in_use(concurrency, 1)
        slot = Slot(True, concurrency, grant.remaining, 0.0, 0.0, source)
        return slot.with_lease(lease)

    async def _renew(self, lease: Lease, concurrency: Concurrency) -> None:
        """Renew the lease after each third of its time; in an outage more often, until it ends."""
        time, claim = asyncio.get_running_loop().time, lease.claim
        third = pause = claim.lease / 3
        while True:
            await asyncio.sleep(pause)
            began = time()
            grant = await self._ask("renew", lease.leases, claim)
            if isinstance(grant, Missing):
                pause = min(third / 2, 1.0, max(lease.ends - time(), 0.01))
                is_lost = time() >= lease.ends
            else:
                pause, lease.ends = third, began + claim.lease
                is_lost = not grant.granted
            if is_lost and not lease.lost.is_set():
                lease.lost.set()
                if self._seldom(f"lost {claim.key}"):
                    log.warning(
                        "A slot was lost: %s (%s). Its block continues, and another one may run "
                        "beside it",
                        printable(claim.key),
                        concurrency,
                    )
            if lease.lost.is_set():
                pause = third

    async def release(self, lease: Lease, concurrency: Concurrency) -> None:
        """Release a slot, also if the caller is cancelled."""
        if lease.renewing is not None:
            lease.renewing.cancel()
        self._report_in_use(concurrency, -1)
        # A task, which the caller's cancellation does not affect.
        await asyncio.shield(self._releases.begin(self._release(lease)))

    async def _release(self, lease: Lease) -> None:
        await self._ask("release", lease.leases, lease.claim)
        self._queues.wake(lease.claim.key)

    async def _give_up(self, leases: Leases, claim: Claim) -> None:
        """Release a slot that may be granted late, even in an outage: nobody waits for this."""
        with suppress(RateLimitError):
            await leases.claim("release", claim, timeout=self._decider.timeout)
        self._queues.wake(claim.key)

    def _report_in_use(self, concurrency: Concurrency, change: int) -> None:
        name = concurrency.name
        self._in_use[name] += change
        self._observer.slots_in_use(name, self._in_use[name])
        if not self._in_use[name]:
            del self._in_use[name]

    async def _ask(
        self, action: Action, leases: Leases, claim: Claim, deadline: Deadline | None = None
    ) -> Grant | Missing:
        """Ask who keeps the lease."""
        if leases is self._standby:
            return await leases.claim(action, claim, timeout=self._decider.timeout)
        guard = self._decider.guard
        return await guard.run(_counts(claim), leases.claim, action, claim, deadline=deadline)

    async def close(self) -> None:
        """Refuse all waiters, and finish releases."""
        self._queues.close()
        await self._releases.finish()


@dataclass(slots=True)
class SlotContext:
    """The context manager that `Limiter.slot` returns; it can be entered once."""

    slots: Slots
    key: str | None
    concurrency: Concurrency
    leases: Leases
    timeout: float
    deadline: Deadline | None
    slot: Slot | None = None

    async def __aenter__(self) -> Slot:
        if self.slot is not None:
            raise ConfigError("a slot was entered twice: call limiter.slot(...) for each block")
        if self.key is None:
            self.slot = Slot(True, self.concurrency, self.concurrency.amount, 0.0, 0.0, "none")
        else:
            self.slot = await self.slots.acquire(self, self.key)
        return self.slot

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.slot is not None and self.slot._lease is not None:
            await self.slots.release(self.slot._lease, self.concurrency)


def _refusal(concurrency: Concurrency, wait: float, source: str) -> Slot:
    return Slot(False, concurrency, 0, wait, wait, source)


def _counts(claim: Claim) -> list[Count]:
    """What says which server keeps a claim."""
    return [Count(claim.key, cast(Any, None))]
