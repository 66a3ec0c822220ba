"""Slots: how many may run at a time over all instances, as leases that are renewed."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, Final, cast

from cachetools import LRUCache

from bot_ratelimit.errors import ConfigError, NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.limiter.decision import Decision, Source
from bot_ratelimit.limiter.failures import Failures, printable
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.limiter.turns import LONGEST_POLL, PAUSE, Turns
from bot_ratelimit.limiter.wait_queue import check_wait
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Count, Storage, leases_of
from bot_ratelimit.storage.leases import Action, Claim, Grant, Leases
from bot_ratelimit.storage.memory import MemoryStorage

log = logging.getLogger("bot_ratelimit")

MAX_WAITING: Final = 1_000
"""The maximum number of callers of a limiter that wait for a slot; further ones are refused."""
FIRST_POLL: Final = 0.05
"""The shortest pause in seconds between two attempts of a waiting process."""
RETRY_RELEASE_EVERY: Final = 1.0
"""Seconds between two attempts to release a slot in an outage; they end with the lease."""
MAX_RETRIES: Final = 1_000
"""The maximum number of releases that are tried again."""


class Slot(Decision):
    """The Decision about a slot; `remaining` is the number of slots that are still free.

    ::

        async with limiter.slot(Concurrency(1, name="report"), subject) as slot:
            if slot.allowed and not slot.lost:
                ...

    `retry_after` of a refusal is the time until the next lease ends if it is not renewed. A slot
    may be free much sooner.
    """

    _held: _HeldSlot | None = None

    @property
    def lost(self) -> bool:
        """Whether the slot was lost, so that another block may run at the same time.

        A slot is lost if the event loop was blocked for longer than the lease, if Redis was
        unreachable for that long, or if Redis lost its data. The block is not interrupted. It may
        check this before it does something that must not be done twice.
        """
        return self._held is not None and self._held.is_lost()

    async def wait_lost(self) -> None:
        """Wait until the slot is lost, for a block that wants to react to it."""
        if self._held is None:
            await asyncio.Event().wait()
        else:
            await self._held.lost.wait()


class _HeldSlot:
    """A claim on a slot, from the first attempt until the release."""

    def __init__(self, claim: Claim, concurrency: Concurrency, leases: Leases) -> None:
        self.claim = claim
        self.concurrency = concurrency
        self.leases = leases
        self.in_doubt = False  # whether the storage may have the claim although it did not answer
        self.ends = math.inf  # by the loop's clock: until then the storage certainly keeps it
        self.lost = asyncio.Event()
        self.renew_now = asyncio.Event()
        self.renewing: asyncio.Task[None] | None = None

    def is_lost(self) -> bool:
        if asyncio.get_running_loop().time() >= self.ends:
            self.lost.set()
        return self.lost.is_set()


class SlotContext:
    """The context manager that `Limiter.slot` returns; it can be entered once."""

    def __init__(
        self, slots: Slots, concurrency: Concurrency, subject: Subject, timeout: float
    ) -> None:
        self._slots = slots
        self._arguments = concurrency, subject, timeout
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
        if self._slot is not None and self._slot._held is not None:
            await self._slots.release(self._slot._held)


class Slots:
    """Implements `Limiter.slot`.

    Args:
        storage: Where leases are kept.
        standby: Where leases are kept in an outage; None unless `on_error="memory"`.
        failures: The circuit breakers and the log of failures.
        key_prefix: The prefix of every key.
        on_error: The policy in an outage.
        timeout: The time-out of the storage in seconds.
        clock: The clock of the circuit breakers.
        observer: Is told how many slots this process holds.
    """

    def __init__(
        self,
        storage: Storage,
        standby: MemoryStorage | None,
        failures: Failures,
        *,
        key_prefix: str,
        on_error: str,
        timeout: float,
        clock: Callable[[], float],
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._in_use: Counter[str] = Counter()
        self._storage = storage
        self._leases = leases_of(storage)
        self._standby = None if standby is None else leases_of(standby)
        self._failures = failures
        self._prefix = key_prefix
        self._on_error = on_error
        self._timeout = timeout
        self._clock = clock
        self._queues: dict[str, deque[asyncio.Event]] = {}
        # In memory, there are no other processes.
        self._turns = None if isinstance(storage, MemoryStorage) else Turns()
        self._waiting = 0
        self._closed = 0  # how often it was closed; callers that waited then are refused
        self._is_closed = False  # until the next slot is asked for
        self._held: dict[str, set[_HeldSlot]] = {}
        # Until when a key exists, unless the server loses its data.
        self._known: LRUCache[str, float] = LRUCache(10_000)
        self._releases: set[asyncio.Task[None]] = set()
        self._retries: set[asyncio.Task[None]] = set()

    async def acquire(self, concurrency: Concurrency, subject: Subject, timeout: float) -> Slot:
        """Return a slot, or a refusal after `timeout` seconds at most."""
        self._is_closed = False
        key = concurrency.slot_key(self._prefix, subject)
        if key is None:
            return Slot(True, concurrency, concurrency.amount, 0.0, 0.0, "none")
        claim = Claim(key, _token(), concurrency.amount, concurrency.lease)
        held = _HeldSlot(claim, concurrency, self._leases)
        if key not in self._queues and not (timeout and self._turn_is_over(key)):
            slot = await self._try(held)
            if slot.allowed or not timeout or slot.source == "policy":
                return slot
        else:  # other callers, or other processes, come first
            slot = _refused(concurrency, concurrency.lease, self._storage.source)
        if not timeout or not self._has_room():
            return slot
        began = asyncio.get_running_loop().time()
        slot = await self._wait(held, slot, timeout)
        waited = slot._replace(waited=asyncio.get_running_loop().time() - began)
        waited._held = slot._held
        return waited

    async def release(self, held: _HeldSlot) -> None:
        """Release a slot, even if the caller is being cancelled."""
        if held.renewing is not None:
            held.renewing.cancel()
        others = self._held.get(held.claim.key, set())
        if held in others:
            others.discard(held)
            self._report_in_use(held, -1)
            if self._turns is not None:
                self._turns.released(held.claim.key, asyncio.get_running_loop().time())
        if not others:
            self._held.pop(held.claim.key, None)
        await asyncio.shield(self._release_in_background(held))

    async def close(self) -> None:
        """Refuse all waiters, finish releases, and stop retrying those that failed."""
        self._closed += 1
        for queue in self._queues.values():
            for woken in queue:
                woken.set()
        loop = asyncio.get_running_loop()
        # Not cancelled: that would leave the slots taken, and cancel the callers, too.
        if releases := [task for task in self._releases if task.get_loop() is loop]:
            await asyncio.wait(releases)
        self._is_closed = True
        for task in self._retries:
            if task.get_loop() is loop:
                task.cancel()

    def _has_room(self) -> bool:
        if self._waiting < MAX_WAITING:
            return True
        if self._failures.should_log("slots full"):
            log.warning("%d callers already wait for a slot: further ones are refused", MAX_WAITING)
        return False

    async def _wait(self, held: _HeldSlot, slot: Slot, timeout: float) -> Slot:
        """Wait in the queue: its first waiter asks, and a release in this process wakes it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        queue = self._queues.setdefault(held.claim.key, deque())
        woken = asyncio.Event()
        queue.append(woken)
        self._waiting += 1
        pause = FIRST_POLL
        closed = self._closed
        try:
            while (left := deadline - loop.time()) > 0:
                first = queue[0] is woken
                patience = min(left, slot.retry_after or left, _jitter(pause)) if first else left
                was_woken = await _wait_for(woken, patience)
                if closed != self._closed:
                    return slot._replace(source="policy")
                pause = FIRST_POLL if was_woken else min(pause * 2, LONGEST_POLL)
                if queue[0] is not woken:
                    continue
                woken.clear()
                slot = await self._try_in_turn(held, woken, deadline)
                if slot.allowed or slot.source == "policy":
                    return slot
            return slot
        finally:
            self._waiting -= 1
            queue.remove(woken)
            if queue:
                queue[0].set()
            else:
                del self._queues[held.claim.key]

    def _turn_is_over(self, key: str) -> bool:
        now = asyncio.get_running_loop().time()
        return self._turns is not None and self._turns.is_over(key, now)

    async def _try_in_turn(self, held: _HeldSlot, woken: asyncio.Event, deadline: float) -> Slot:
        """Ask for a slot; if this process has had the slots for long, let others ask first."""
        key, loop, closed = held.claim.key, asyncio.get_running_loop(), self._closed
        if self._turns is None or not self._turns.is_over(key, loop.time()):
            return await self._try(held)
        ends = min(loop.time() + PAUSE, deadline)
        while (left := ends - loop.time()) > 0:
            await _wait_for(woken, left)
            if closed != self._closed:
                return _refused(held.concurrency, held.claim.lease, "policy")
            woken.clear()  # only a release in this process: the pause continues
        slot = await self._try(held)
        self._turns.resumed(key, loop.time(), granted=slot.allowed)
        return slot

    async def _try(self, held: _HeldSlot) -> Slot:
        began = asyncio.get_running_loop().time()
        held.leases = self._leases
        if held.in_doubt:  # a late release of the last attempt must not affect this one
            held.claim = held.claim._replace(token=_token())
            held.in_doubt = False
        try:
            grant = await self._ask("acquire", held)
            if grant is None:
                return await self._acquire_without_storage(held)
        except BaseException:
            self._release_in_background(held)  # the slot may have been granted
            raise
        if grant.data_lost:
            log.warning(
                "Redis has lost its data (%s): new slots are granted again in %.1f s, when the "
                "processes that still hold one have renewed them",
                printable(held.claim.key),
                grant.wait,
            )
        if not grant.granted:
            return _refused(held.concurrency, grant.wait, self._storage.source)
        return self._granted(held, grant, began, self._storage.source)

    def _granted(self, held: _HeldSlot, grant: Grant, began: float, source: Source) -> Slot:
        held.ends = began + held.claim.lease
        held.renewing = asyncio.create_task(self._renew(held), context=Context())
        self._held.setdefault(held.claim.key, set()).add(held)
        if self._turns is not None:
            self._turns.granted(held.claim.key, asyncio.get_running_loop().time())
        self._report_in_use(held, 1)
        slot = Slot(True, held.concurrency, grant.remaining, 0.0, 0.0, source)
        slot._held = held
        return slot

    def _report_in_use(self, held: _HeldSlot, change: int) -> None:
        name = held.concurrency.name
        self._in_use[name] += change
        if self._observer is not None:
            self._observer.slots_in_use(name, self._in_use[name])

    async def _acquire_without_storage(self, held: _HeldSlot) -> Slot:
        """Answer by the policy, because the storage has no answer."""
        concurrency = held.concurrency
        if self._standby is not None:
            if held.in_doubt:
                self._release_in_background(held)
            held.leases = self._standby
            began = asyncio.get_running_loop().time()
            grant = await self._standby.claim("acquire", held.claim, timeout=self._timeout)
            if not grant.granted:
                return _refused(concurrency, grant.wait, "memory")
            return self._granted(held, grant, began, "memory")
        if self._on_error == "allow":
            slot = Slot(True, concurrency, concurrency.amount, 0.0, 0.0, "policy")
            slot._held = held if held.in_doubt else None
            return slot
        if held.in_doubt:
            self._release_in_background(held)
        wait = self._breaker(held).wait(self._clock()) or self._timeout
        return _refused(concurrency, wait, "policy")

    async def _renew(self, held: _HeldSlot) -> None:
        """Renew the lease after each third of its time; in an outage more often, until it ends."""
        loop = asyncio.get_running_loop()
        third = held.claim.lease / 3
        pause = third
        while True:
            await _wait_for(held.renew_now, pause)
            held.renew_now.clear()
            began = loop.time()
            grant = await self._ask("renew", held)
            if grant is None:
                pause = min(third / 2, 1.0, max(held.ends - loop.time(), 0.01))
            else:
                pause = third
                held.ends = began + held.claim.lease
            if (grant is None and loop.time() >= held.ends) or (grant and not grant.granted):
                self._mark_lost(held)
            if held.lost.is_set():
                pause = third

    def _mark_lost(self, held: _HeldSlot) -> None:
        if held.lost.is_set():
            return
        held.lost.set()
        if self._failures.should_log(f"lost {held.claim.key}"):
            log.warning(
                "A slot was lost: %s (%s). Its block continues, and another one may run beside it",
                printable(held.claim.key),
                held.concurrency,
            )

    def _release_in_background(self, held: _HeldSlot) -> asyncio.Task[None]:
        """Release in a separate task, which the caller's cancellation does not affect."""
        held = _HeldSlot(held.claim, held.concurrency, held.leases)
        return _in_background(self._release_lease(held), self._releases)

    async def _release_lease(self, held: _HeldSlot) -> None:
        freed = await self._ask("release", held)
        if queue := self._queues.get(held.claim.key):
            queue[0].set()
        if self._is_closed:  # this has opened the connection of the storage again
            close_idle = getattr(self._storage, "close_idle", None)
            if close_idle is not None:
                await close_idle()
        elif freed is None and len(self._retries) < MAX_RETRIES:
            _in_background(self._retry_release(held), self._retries)

    async def _retry_release(self, held: _HeldSlot) -> None:
        for _ in range(math.ceil(held.claim.lease / RETRY_RELEASE_EVERY)):
            await asyncio.sleep(RETRY_RELEASE_EVERY)
            if await self._ask("release", held) is not None:
                return

    async def _ask(self, action: Action, held: _HeldSlot) -> Grant | None:
        """Ask the storage; return its answer, or None if it has none."""
        leases = held.leases
        if leases is not self._leases:
            return await leases.claim(action, held.claim, timeout=self._timeout)
        server = self._storage.server([self._charge(held)])
        breaker = self._failures.breaker(server)
        ticket = breaker.admit(self._clock())
        if ticket is None:
            return None
        now = asyncio.get_running_loop().time()
        known = self._known.get(held.claim.key, 0.0) > now
        try:
            grant = await leases.claim(action, held.claim, known=known, timeout=self._timeout)
        except StorageError as error:
            held.in_doubt |= not isinstance(error, (NotConnectedError, QueueFullError))
            self._failures.failed(server, breaker, ticket, error)
        except Exception as error:
            self._failures.rejected(server, breaker, ticket, error)
        except BaseException:
            breaker.abandoned(ticket)
            raise
        else:
            self._failures.succeeded(server, breaker, ticket)
            # A little less than a lease, because clocks do not run at exactly the same speed.
            self._known[held.claim.key] = now + held.claim.lease * 0.9
            if grant.data_lost:
                for each in self._held.get(held.claim.key, ()):
                    each.renew_now.set()
            return grant
        return None

    def _breaker(self, held: _HeldSlot) -> Any:
        return self._failures.breaker(self._storage.server([self._charge(held)]))

    @staticmethod
    def _charge(held: _HeldSlot) -> Count:
        limit: Any = held.concurrency.limit
        return Count(held.claim.key, limit)


def check_slot_wait(timeout: object) -> float:
    """Return the time-out in seconds, as `acquire` takes it; infinity for None.

    Raises:
        ConfigError: It is neither None nor a finite number from 0 up.
    """
    check_wait(timeout)
    return math.inf if timeout is None else float(cast(float, timeout))


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


def _refused(concurrency: Concurrency, wait: float, source: Source) -> Slot:
    return Slot(False, concurrency, 0, wait, wait, source)


def _jitter(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1)  # noqa: S311 - so that instances do not ask at the same time


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event; return False if it does not come in time."""
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
