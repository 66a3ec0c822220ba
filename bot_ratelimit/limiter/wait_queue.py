"""Wait queues of `Limiter.acquire`: callers that wait until a limit allows their hit.

Only the first waiter of each queue asks the storage. When it is refused, it sleeps for as long as
it was told; `Backoff` says how much longer, so that processes take turns. Each queue has a task of
its own, so a cancelled waiter never cancels a hit in progress.

::

    process A    a1 asks, refused, sleeps ........ a1 granted, a2 granted, a3 refused, sleeps ....
                 a2, a3, a4 wait behind it
    process B    b1 asks, refused, sleeps ........ b1 granted, b2 refused, sleeps ................
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bot_ratelimit.errors import ConfigError, RateLimitError
from bot_ratelimit.limiter.backoff import JITTER, Backoff
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.rules.limit import Algorithm
from bot_ratelimit.rules.rule import Rules, Subject
from bot_ratelimit.storage.base import Count, Storage

log = logging.getLogger("bot_ratelimit")

MAX_WAITERS: Final = 10_000
"""The maximum number of waiters of a limiter; further ones are refused at once."""
_CHECK_EVERY: Final = 0.25
"""Seconds after which a sleeping waiter checks whether the server is unreachable."""
_LATE: Final = 0.25
"""Seconds after its time-out from which a waiter is refused if the process did not run in time."""


class Waiter:
    """A caller of `acquire`: what it waits for, since when, and until when at most."""

    __slots__ = ("charges", "cost", "future", "rules", "since", "subject", "until")

    def __init__(
        self,
        rules: Rules,
        subject: Subject,
        cost: int | None,
        charges: Sequence[Count],
        timeout: float | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.rules = rules
        self.subject = subject
        self.cost = cost
        self.charges = charges
        self.since = loop.time()
        self.until = float("inf") if timeout is None else self.since + timeout
        self.future: asyncio.Future[Decision] = loop.create_future()

    @property
    def apart(self) -> float:
        """The seconds in which the limits free what this waiter needs, if they are exhausted."""
        real = [charge for charge in self.charges if not charge.shadow] or self.charges
        return min(c.cost * c.limit.period / c.limit.amount for c in real)

    @property
    def is_done(self) -> bool:
        """Whether the caller has its answer or has given up."""
        return self.future.done()

    def answer(self, decision: Decision, now: float) -> None:
        """Set the answer, with the time that the caller waited."""
        if not self.is_done:
            self.future.set_result(decision._replace(waited=max(0.0, now - self.since)))


class WaitableLimiter(Protocol):
    """The part of a limiter that a queue needs."""

    @property
    def storage(self) -> Storage:
        """See `Limiter.storage`."""
        ...

    async def hit(
        self, rules: Rules, subject: Subject, cost: int | None = None, *, _notify: bool = True
    ) -> Decision:
        """See `Limiter.hit`."""
        ...

    async def refund(self, rules: Rules, subject: Subject, cost: int = 1) -> Decision:
        """See `Limiter.refund`."""
        ...


class WaitQueues:
    """The queues of a limiter, one for each set of keys.

    Args:
        limiter: Decides.
        is_unreachable: Returns whether the server of these charges is known to be unreachable.
    """

    def __init__(
        self, limiter: WaitableLimiter, is_unreachable: Callable[[Sequence[Count]], bool]
    ) -> None:
        self._limiter = limiter
        self._is_unreachable = is_unreachable
        self._queues: dict[tuple[str, ...], WaitQueue] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0

    async def wait(self, waiter: Waiter) -> Decision:
        """Wait for the decision about this waiter, in the order of the queue."""
        if self._waiting >= MAX_WAITERS:
            return Decision(False, waiter.rules[0], 0, 1.0, 1.0, "policy")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): the tasks of the last never run again
            self._queues, self._loop = {}, loop
        queues, keys = self._queues, tuple(charge.key for charge in waiter.charges)
        queue = queues.get(keys)
        if queue is None:
            queue = queues[keys] = WaitQueue(
                self._limiter, self._is_unreachable, lambda: queues.pop(keys, None)
            )
        self._waiting += 1
        try:
            return await queue.join(waiter)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Refuse all waiters."""
        await asyncio.gather(*(queue.close() for queue in list(self._queues.values())))


class WaitQueue:
    """The waiters for the same keys, first come, first served."""

    def __init__(
        self,
        limiter: WaitableLimiter,
        is_unreachable: Callable[[Sequence[Count]], bool],
        finished: Callable[[], object],
    ) -> None:
        self._limiter = limiter
        self._is_unreachable = is_unreachable
        self._finished = finished
        self._waiters: dict[Waiter, None] = {}  # ordered, and fast to remove from
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._refused: Decision | None = None
        """The last refusal of the first waiter; None if something was granted since."""
        self._due = 0.0
        self._contended = False
        self._backoff = Backoff()

    async def join(self, waiter: Waiter) -> Decision:
        """Wait until this waiter is first in the queue and has its answer."""
        if self._refused is not None:
            ahead = [0] * len(waiter.charges)
            for each in self._waiters:
                ahead = _add_costs(each, ahead)
            due = self._estimate(waiter, ahead)
            if due > waiter.until:
                return self._refusal(waiter, due)
        self._waiters[waiter] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="bot_ratelimit waiters")
            # A task that is cancelled before it has begun runs no line of its code.
            self._task.add_done_callback(lambda _: self._end())
        try:
            return await waiter.future
        except asyncio.CancelledError:
            await self._return_grant(waiter)  # cancelled in the moment in which it was granted
            raise
        finally:
            self._waiters.pop(waiter, None)
            self._changed.set()

    async def close(self) -> None:
        """Refuse all waiters."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._waiters:
                await self._serve(next(iter(self._waiters)))
        finally:
            self._end()

    def _end(self) -> None:
        """Refuse those who still wait, because the limiter was closed; nobody joins any more."""
        if self._is_over:
            return
        self._is_over = True
        self._finished()
        now = asyncio.get_running_loop().time()
        for waiter in list(self._waiters):
            wait = self._estimate(waiter, [0] * len(waiter.charges))
            waiter.answer(self._refusal(waiter, wait)._replace(source="policy"), now)

    async def _serve(self, first: Waiter) -> None:
        """Ask for the first waiter and act on the answer."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            decision = await self._limiter.hit(
                first.rules, first.subject, first.cost, _notify=False
            )
        except Exception as error:  # of a custom limit; it belongs to this caller
            self._waiters.pop(first, None)
            if not first.is_done:
                first.future.set_exception(error)
            return
        if decision.source == self._limiter.storage.source:
            self._backoff.answered(loop.time() - asked)
        if decision.allowed:
            self._refused = None
            self._backoff.granted()
            await self._grant(first, decision)
            if not self._waiters or decision.source == "policy":
                return
            following = next(iter(self._waiters))
            refusal = _predicted_refusal(decision, first, following)
            if refusal is not None:
                await self._refuse(refusal)
            elif self._contended:
                await asyncio.sleep(random.uniform(0, self._pause(first)))  # noqa: S311 - no secret
        elif decision.source == "policy" or decision.banned:
            self._waiters.pop(first, None)
            first.answer(decision, loop.time())
        else:
            self._backoff.refused(decision.retry_after, first.apart)
            await self._refuse(decision)

    async def _refuse(self, decision: Decision) -> None:
        """Refuse the waiters that cannot wait so long, and sleep until the first one may ask."""
        loop = asyncio.get_running_loop()
        now, wait = loop.time(), decision.retry_after
        self._contended = True
        self._refused = decision
        self._due = now + wait
        self._refuse_late_waiters()
        if self._waiters:
            first = next(iter(self._waiters))
            pause = self._backoff.pause(wait, first.apart, first.until - self._due)
            await self._sleep(first, now + pause)
            self._refuse_overdue_waiters()

    async def _grant(self, first: Waiter, decision: Decision) -> None:
        """Give the granted hit to the first waiter, or to the next one that wants the same."""
        successor = next(iter(self._waiters), first) if first.is_done else first
        if successor.charges != first.charges:
            successor = first
        self._waiters.pop(successor, None)
        if not successor.is_done:
            successor.answer(decision, asyncio.get_running_loop().time())
        elif decision.source == self._limiter.storage.source:
            await self._refund(first)

    async def _return_grant(self, waiter: Waiter) -> None:
        """Pass a grant that nobody received to the next waiter that wants the same, or refund it.

        Nothing happens if the waiter has not been granted anything.
        """
        future = waiter.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return
        decision = future.result()
        if not decision.allowed or decision.source != self._limiter.storage.source:
            return
        successor = next(iter(self._waiters), None)
        if successor is not None and successor.charges == waiter.charges and not successor.is_done:
            self._waiters.pop(successor)
            successor.answer(decision, asyncio.get_running_loop().time())
        else:
            await asyncio.shield(asyncio.create_task(self._refund(waiter)))

    async def _refund(self, waiter: Waiter) -> None:
        """Refund a waiter that left while it was being charged."""
        try:
            for rule, charge in zip(waiter.rules, waiter.charges, strict=True):
                await self._limiter.refund(Rules((rule,)), waiter.subject, charge.cost)
        except RateLimitError as error:
            log.warning(
                "A cancelled caller of acquire was charged and could not be refunded: %s", error
            )

    def _refuse_late_waiters(self) -> None:
        """Refuse the waiters that would have to wait too long."""
        now = asyncio.get_running_loop().time()
        ahead: list[int] = []
        for waiter in list(self._waiters):
            ahead = ahead or [0] * len(waiter.charges)
            due = self._estimate(waiter, ahead)
            if due > waiter.until:
                self._waiters.pop(waiter)
                waiter.answer(self._refusal(waiter, due), now)
            else:
                ahead = _add_costs(waiter, ahead)

    def _refuse_overdue_waiters(self) -> None:
        """Refuse the waiters whose time-out passed while the process was stopped or blocked."""
        now = asyncio.get_running_loop().time()
        for waiter in [each for each in self._waiters if each.until + _LATE < now]:
            self._waiters.pop(waiter)
            waiter.answer(self._refusal(waiter, self._due), now)

    def _refusal(self, waiter: Waiter, due: float) -> Decision:
        now = asyncio.get_running_loop().time()
        wait = max(due - now, 0.001)
        refused = self._refused
        if refused is None:  # compared with None, because a refusal is false
            refused = Decision(False, waiter.rules[0], 0, wait, wait, "policy")
        reset = max(wait, refused.reset_after)
        return refused._replace(retry_after=wait, reset_after=reset, waited=now - waiter.since)

    def _estimate(self, waiter: Waiter, ahead: Sequence[int]) -> float:
        """The earliest time at which this waiter can be granted its hit.

        Args:
            waiter: The waiter.
            ahead: What the waiters before it take from each rule.
        """
        latest = self._due
        first = next(iter(self._waiters), waiter)
        for own, of_first, before in zip(waiter.charges, first.charges, ahead, strict=True):
            limit, units = own.limit, before + own.cost
            if own.shadow or not before:
                continue
            if limit.algorithm is Algorithm.TOKEN_BUCKET:
                later = (units - of_first.cost) * limit.period / limit.amount
            else:
                later = (units - 1) // limit.amount * limit.period
            latest = max(latest, self._due + later)
        return latest

    def _pause(self, waiter: Waiter) -> float:
        return min(JITTER, *(c.limit.period / c.limit.amount / 4 for c in waiter.charges))

    async def _sleep(self, first: Waiter, wakes: float) -> None:
        """Sleep until the first waiter may ask, or until one with other charges is first."""
        loop = asyncio.get_running_loop()
        while (left := wakes - loop.time()) > 0 and self._waiters:
            self._changed.clear()
            try:
                async with asyncio.timeout(min(left, _CHECK_EVERY)):
                    await self._changed.wait()
            except TimeoutError:
                if left > _CHECK_EVERY and self._is_unreachable(first.charges):
                    return
            successor = next(iter(self._waiters), first)
            if successor is not first and (
                successor.charges != first.charges or successor.until < wakes
            ):
                return


def _predicted_refusal(decision: Decision, granted: Waiter, following: Waiter) -> Decision | None:
    """The refusal that the next waiter would get, if the last grant already tells it."""
    charge = following.charges[0]
    if (
        len(following.charges) > 1
        or granted.charges[0].limit != charge.limit
        or charge.shadow
        or decision.remaining >= charge.cost
    ):
        return None
    limit, wait = charge.limit, decision.reset_after
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        wait -= (limit.capacity - charge.cost) * limit.period / limit.amount
    elif limit.algorithm is Algorithm.SLIDING_WINDOW and limit.amount > 1:
        return None  # it does not say when the oldest entry expires
    return decision._replace(allowed=False, retry_after=max(wait, 0.0))


def _add_costs(waiter: Waiter, ahead: Sequence[int]) -> list[int]:
    return [before + charge.cost for before, charge in zip(ahead, waiter.charges, strict=True)]


def check_wait(timeout: object) -> None:
    """Raise ConfigError unless this is a valid time to wait."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 <= timeout < float("inf")):  # type: ignore[operator]  # a number
        raise ConfigError(
            f"timeout={timeout!r}: expected seconds from 0 up, or None to wait as long as it takes"
        )
