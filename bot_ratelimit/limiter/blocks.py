"""Blocks that run only if they may: `limit` and `slot`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_subject
from bot_ratelimit.limiter.deadline import Deadline
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision, RefusedError
from bot_ratelimit.limiter.observer import Observers
from bot_ratelimit.limiter.slots import SlotContext, Slots
from bot_ratelimit.rules.checks import check_wait
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.rule import RuleLike, Subject


class BlockMethods:
    """The methods of a `Limiter` that stand around a block of code."""

    hit: Callable[..., Awaitable[Decision]]
    _decider: Decider
    _observer: Observers
    _slots: Slots | None

    def slot(
        self,
        concurrency: Concurrency,
        subject: Subject,
        timeout: float | None = 0,
        *,
        deadline: Deadline | None = None,
    ) -> SlotContext:
        """Hold a slot while a block runs; `concurrency` limits the slots over all instances.

        ::

            async with limiter.slot(Concurrency(1, name="report"), subject, timeout=5) as slot:
                if slot.allowed:
                    ...

        The slot is released when the block ends in any way. If the process is killed, the slot is
        free when its lease ends. `slot` is a Decision that also says when the slot is lost; see
        `Slot`.

        Args:
            concurrency: How many slots there are, and who shares them.
            subject: Who takes the slot.
            timeout: The maximum wait in seconds, 0 by default; None waits without a limit. The
                callers of a process are served in order; between instances chance decides.
            deadline: The time that the first attempt shares with other steps of one update.

        Raises:
            ConfigError: An argument is invalid. A failing storage never raises: `on_error` answers.
        """
        if not isinstance(concurrency, Concurrency):
            raise ConfigError(
                f"concurrency={concurrency!r}: expected Concurrency(1, name='report')"
            )
        check_subject(subject)
        if self._slots is None:
            self._slots = Slots(self._decider, self._observer)
        return SlotContext(self._slots, concurrency, subject, check_wait(timeout), deadline)

    @asynccontextmanager
    async def limit(
        self, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int | None = None
    ) -> AsyncIterator[Decision]:
        """Run a block only if a `hit` with these arguments is allowed; outside of handlers.

        ::

            async with limiter.limit("5/minute", Subject(user=42)):
                ...

        Raises:
            RefusedError: The hit was refused, and the block does not run. The error contains the
                Decision.
            ConfigError: The rules or the cost are invalid.
        """
        decision = await self.hit(rules, subject, cost)
        if not decision.allowed:
            raise RefusedError(decision)
        yield decision
