"""Waiting for a limit: callers of `acquire`.

Only the first caller of each queue asks the storage. When it is refused, it sleeps for as long as
it was told, and a little longer, so that the processes which wait for one limit do not all ask at
the same moment::

    process A    a1 asks, refused, sleeps ........ a1 granted, a2 asks, refused, sleeps .......
                 a2, a3, a4 wait behind it
    process B    b1 asks, refused, sleeps ........ b1 asks, refused, sleeps ...... b1 granted ...

Callers of one process are served in order. Between processes chance decides.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

from bot_ratelimit.errors import RateLimitError
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision, Source
from bot_ratelimit.limiter.queues import Queues, Turn
from bot_ratelimit.rules.rule import Rules, Subject
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.storage.loops import Tasks

log = logging.getLogger("bot_ratelimit")

Decide: TypeAlias = Callable[[Rules, Subject, int | None], Coroutine[Any, Any, Decision]]

MAX_WAITERS: Final = 10_000
"""The maximum number of callers of a limiter that wait; further ones are refused at once."""
JITTER: Final = 0.02
"""By how many seconds a caller sleeps longer than it was told, at most."""
_CHECK_EVERY: Final = 0.25
"""Seconds after which a caller that sleeps looks whether there is an outage; with 1,000 callers
that wait twice as long, and so on."""
_LATE: Final = 0.25
"""Seconds after its time-out from which a caller is refused if the process did not run in time."""


class Waiters:
    """Lets callers wait until a hit of theirs is allowed; `decide` decides about each attempt."""

    def __init__(self, decider: Decider, decide: Decide) -> None:
        self._decider = decider
        self._decide = decide
        self.queues: Final = Queues(MAX_WAITERS)
        self._refused: dict[tuple[str, ...], tuple[float, Decision]] = {}
        """The last refusal in each queue that is not empty, and until when it holds."""
        self._returns = Tasks()

    async def acquire(
        self,
        rules: Rules,
        subject: Subject,
        cost: int | None,
        counts: Sequence[Count],
        timeout: float,
    ) -> Decision:
        """Wait for `timeout` seconds at most, or forever; a cancelled call is not charged.

        The rules have no penalties. Callers whose counts have the same keys wait in one queue.
        """
        time = asyncio.get_running_loop().time
        began, keys = time(), _keys(counts)
        if not self.queues.has_room():
            return Decision(False, rules[0], 0, 1.0, 1.0, "policy")
        if self.queues.is_busy(keys) and self._refused.get(keys, (0.0,))[0] > began + timeout:
            return self._refusal(rules, keys, 0.0)
        async with self.queues.turn(keys, timeout) as turn:
            if not turn.is_first and not turn.is_closed and keys not in self._refused:
                decision = await self._attempt(rules, subject, cost, counts)  # nobody was refused
                return decision._replace(waited=time() - began)
            try:
                while turn.is_first:
                    decision = await self._attempt(rules, subject, cost, counts)
                    wait, left = decision.retry_after, began + timeout - time()
                    if turn.is_closed and decision.source == "policy":  # nobody answers
                        break
                    is_final = decision.allowed or decision.banned or decision.source == "policy"
                    if is_final or wait > left:
                        return decision._replace(waited=time() - began)
                    self._refused[keys] = time() + wait, decision
                    pause = min(wait + self._jitter(counts), max(left, wait))
                    await self._sleep(turn, pause, counts, decision.source)
                    if turn.is_closed or time() - began > timeout + _LATE:
                        break
                return self._refusal(rules, keys, time() - began, closed=turn.is_closed)
            finally:
                if turn.is_first:
                    self._refused.pop(keys, None)

    async def close(self) -> None:
        """Refuse all callers that wait, and finish the refunds."""
        self.queues.close()
        await self._returns.finish()

    async def _attempt(
        self, rules: Rules, subject: Subject, cost: int | None, counts: Sequence[Count]
    ) -> Decision:
        """Ask in a task of its own: a cancelled caller must not leave a charge behind."""
        asking = asyncio.ensure_future(self._decide(rules, subject, cost))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._returns.begin(self._return(asking, rules, counts))
            raise

    async def _return(
        self, asking: asyncio.Future[Decision], rules: Rules, counts: Sequence[Count]
    ) -> None:
        """Refund a hit whose caller is gone, and let the next caller ask."""
        await asyncio.wait([asking])
        if asking.cancelled() or asking.exception() is not None:
            return
        decision, decider = asking.result(), self._decider
        by = {"memory": decider.standby, decider.storage.source: decider.storage}
        storage = by.get(decision.source)
        if not decision.allowed or storage is None:
            return
        pairs = zip(rules, counts, strict=True)
        charged = [count for rule, count in pairs if rule not in decision.shadow]
        try:
            await storage.ask(Ask(charged, Op.REFUND), timeout=decider.timeout)
            self.queues.wake(_keys(counts))
        except RateLimitError as error:
            log.warning(
                "A cancelled caller of acquire was charged and could not be refunded: %s", error
            )

    def _refusal(
        self, rules: Rules, keys: tuple[str, ...], waited: float, *, closed: bool = False
    ) -> Decision:
        """The refusal of a caller that did not ask, or asked for the last time a while ago."""
        now, source = asyncio.get_running_loop().time(), self._decider.storage.source
        default = Decision(False, rules[0], 0, 0.0, 0.0, source)
        due, refused = self._refused.get(keys, (now, default))
        wait = max(due - now, 0.001)
        reset = max(wait, refused.reset_after)
        source = "policy" if closed else refused.source
        return refused._replace(retry_after=wait, reset_after=reset, source=source, waited=waited)

    async def _sleep(
        self, turn: Turn, seconds: float, counts: Sequence[Count], source: Source
    ) -> None:
        """Sleep, but not through an outage that begins meanwhile, in which the policy answers."""
        time, decider = asyncio.get_running_loop().time, self._decider
        by_storage = source == decider.storage.source  # else the policy has said how long
        watches = by_storage and not decider.is_local and not decider.guard.is_out(counts)
        wakes, every = time() + seconds, _CHECK_EVERY * (1 + len(self.queues) / 1_000)
        while (left := wakes - time()) > 0 and not (watches and decider.guard.is_out(counts)):
            if await turn.sleep(min(left, every) if watches else left):  # a refund, the end
                return

    def _jitter(self, counts: Sequence[Count]) -> float:
        """So that processes do not ask together; a part of the time for one unit at most."""
        if self._decider.storage.source == "memory":
            return 0.0
        unit = min(count.limit.period / count.limit.amount for count in counts)
        return random.uniform(0, min(JITTER, unit / 4))  # noqa: S311 - no secret


def _keys(counts: Sequence[Count]) -> tuple[str, ...]:
    return tuple(count.key for count in counts)
