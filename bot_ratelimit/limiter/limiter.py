"""Limiter: decides about hits, and always answers, even when the storage fails."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from bot_ratelimit.limiter.arguments import check_storage, check_subject
from bot_ratelimit.limiter.bans import Bans
from bot_ratelimit.limiter.counts import counts_of_hit
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision, RefusedError
from bot_ratelimit.limiter.health import Watch
from bot_ratelimit.limiter.observer import ObserverLike, observers_of
from bot_ratelimit.limiter.operators import OperatorMethods
from bot_ratelimit.limiter.slots import SlotContext, Slots
from bot_ratelimit.limiter.statistics import Statistics
from bot_ratelimit.limiter.waiting import Waiters
from bot_ratelimit.rules.checks import (
    check_flag,
    check_policy,
    check_prefix,
    check_timeout,
    check_wait,
    check_whole,
)
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import OnError, RuleLike, Rules, Subject, rules_of
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.deadline import Deadline


class Limiter(OperatorMethods):
    """Decides about hits, and always answers, even when the storage fails.

    ::

        limiter = Limiter(RedisStorage(redis), key_prefix="my_bot")
        decision = await limiter.hit("5/10s", Subject(user=42))
        if decision.allowed:
            ...
        await limiter.close()

    Args:
        storage: Where counts are kept.
        key_prefix: The prefix of every key. Bots that share a server need different prefixes.
        on_error: The answer when the storage fails. `"allow"` (the default) and `"deny"` answer all
            hits the same way; `"memory"` applies the rules in this process, so that n instances let
            n times as much through.
        timeout: How many seconds a decision waits for the storage, above 0 and at most 3600; 0.25
            by default.
        memory_size: The maximum number of keys for `on_error="memory"`, 10,000 by default; see
            `MemoryStorage`.
        clock: Returns seconds from any starting point; used for the pauses between attempts in an
            outage.
        observer: One or several observers of every decision; see `Observer`.
        statistics: Whether decisions are counted by hour over all instances; see `statistics`.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        key_prefix: str = "bot",
        on_error: OnError = "allow",
        timeout: float = 0.25,
        memory_size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        observer: ObserverLike = None,
        statistics: bool = False,
    ) -> None:
        check_policy(on_error)
        self.storage: Final = check_storage(storage)
        """The storage that decides unless it fails."""
        self.key_prefix = check_prefix(key_prefix)
        self.on_error = on_error
        check_timeout(timeout)
        self.keeps_statistics: Final = check_flag("statistics", statistics)
        """Whether decisions are counted by hour, see `statistics`."""
        self._statistics = Statistics(storage, key_prefix, timeout) if statistics else None
        self.observer: Final = observers_of(observer, self._statistics)
        """All observers of this limiter as one that never raises."""
        for each in self.observer.each:
            storage.observe(each)
        self._bans = Bans(storage, key_prefix, timeout, self.observer, clock)
        self.decider = Decider(
            storage,
            key_prefix,
            on_error=on_error,
            timeout=timeout,
            clock=clock,
            memory_size=check_whole("memory_size", memory_size, 1),
            events=self.observer.each,
            on_ban=self._bans.report,
        )
        """Decides without bans and observers: for what the bot does itself."""
        self._waiters = Waiters(self.decider, self._decide)
        self._slots = Slots(self.decider, self.observer)
        self._watch = Watch(self.decider)

    @property
    def timeout(self) -> float:
        """Seconds that a decision waits for the storage."""
        return self.decider.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self.decider.guard.timeout = check_timeout(seconds)

    def hit(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
        once: str | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Coroutine[Any, Any, Decision]:
        """Decide whether a hit of the subject is allowed now, and charge it if so.

        ::

            decision = await limiter.hit(["1/s", Rule("20/day", name="ai")], Subject(user=42))

        Args:
            rules: One rule, or several that are decided together: either all are charged or none.
            subject: Who the hit counts for. A rule whose scope needs an id that the subject lacks
                does not apply.
            cost: Charged to each rule instead of the rule's own cost; 0 only looks and charges
                nothing.
            once: A token, for example of an album or an update. Hits with the same token, rules and
                subject within 60 seconds share one verdict and one charge, on all instances.
            deadline: The time that this hit shares with other steps of one update.

        Raises:
            ConfigError: The rules or the cost are invalid, at the call or when it is awaited. A
                failing storage never raises.
        """
        if not isinstance(rules, Rules):
            rules = rules_of(rules)
        bans = self._bans
        if cost != 0 and self.observer.times_decisions:
            return self._hit_observed(rules, subject, cost, once, deadline)
        if bans.current or bans.is_stale:
            return self._decide(rules, subject, cost, once, deadline=deadline)
        bans.used = True
        return self.decider.hit(rules, subject, cost, once, deadline=deadline)

    async def peek(
        self,
        rule: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
    ) -> Decision:
        """Return what `hit` would answer now, without charging or counting anything.

        ::

            decision = await limiter.peek("5/10s", Subject(user=42))
            print(decision.remaining, "left")

        The answer includes a ban that the hit would cause. `remaining` and `reset_after` are those
        before the hit: an allowed hit would leave its cost less. The arguments are those of `hit`.
        """
        return await self._decide(rules_of(rule), subject, cost, peek=True)

    async def acquire(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
        timeout: float | None = None,
    ) -> Decision:
        """Wait until a hit of the subject is allowed, and charge it then. Otherwise like `hit`.

        ::

            decision = await limiter.acquire("10/s", Subject(user=42), timeout=5)

        Within a process callers are served in order; between processes chance decides. A caller
        that would have to wait longer than `timeout` seconds (None: as long as it takes) is refused
        as soon as this is known, and is not charged. The same happens if 10,000 callers already
        wait, or if the limiter is closed. If Redis fails in the meantime, `on_error` answers. A
        cancelled call is not charged. A refund or a reset is noticed when the wait was to end.
        Waiting never causes a ban, but a user who is banned by a `Penalty` among the rules when the
        wait begins is refused. `Decision.waited` is the time that it took.
        """
        patience = check_wait(timeout)
        given = rules_of(rules)
        counts, applied = counts_of_hit(self.key_prefix, given, subject, cost)
        limits = Rules(rule for rule in applied if not isinstance(rule, Penalty))
        if not counts:
            return await self.hit(given, subject, cost)  # this checks bans, and waits for nothing
        if bans := Rules(rule for rule in applied if isinstance(rule, Penalty)):
            closed = self._waiters.queues.closed
            decision = await self.peek(bans, subject)
            if not limits or not decision:
                self.observer.decided(decision, subject, 0.0)
                return decision
            if closed != self._waiters.queues.closed:
                return decision._replace(allowed=False, source="policy")
        counts = [count for count in counts if count.penalty is None]
        decision = await self._waiters.acquire(limits, subject, cost, counts, patience)
        self.observer.decided(decision, subject, decision.waited)
        self.observer.waited(decision, subject, decision.waited)
        return decision

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
        return self._slots.context(concurrency, subject, timeout, deadline)

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
        """
        decision = await self.hit(rules, subject, cost)
        if not decision.allowed:
            raise RefusedError(decision)
        yield decision

    def open(self) -> None:
        """Start to connect, so that the first decision need not wait for it.

        The log then says when there is a connection, or why there is none, and whether the server
        can decide by the rules of this bot.
        """
        self.storage.open()
        if not self.decider.is_local:
            self._watch.open()
            self._bans.open()

    async def close(self) -> None:
        """Tell the observers what is left, write the statistics, and close the storage.

        Callers of `acquire` and `slot` that wait are refused. The limiter can be used again, which
        opens the connection; a block that still holds a slot does so to renew and release it.
        """
        await self._watch.close()
        await self._waiters.close()
        await self._bans.close()
        await self._slots.close()
        if self._statistics is not None:
            await self._statistics.flush_at_end()
        self.observer.close()
        await self.storage.close()

    async def _hit_observed(
        self,
        rules: Rules,
        subject: Subject,
        cost: int | None,
        once: str | None,
        deadline: Deadline | None,
    ) -> Decision:
        """Decide like `hit`, and tell observers how long it took."""
        began = time.perf_counter()
        decision = await self._decide(rules, subject, cost, once, deadline=deadline)
        self.observer.decided(decision, subject, time.perf_counter() - began)
        return decision

    async def _decide(
        self,
        rules: Rules,
        subject: Subject,
        cost: int | None = None,
        once: str | None = None,
        *,
        peek: bool = False,
        deadline: Deadline | None = None,
    ) -> Decision:
        """Decide about a hit of a user, to whom bans by hand apply."""
        bans = self._bans
        bans.used = True
        is_stale = bans.is_stale  # at the first hit, and at the first after a pause
        if is_stale:
            deadline = deadline or Deadline(self.timeout)
        if bans.current:
            banned = self._refusal_of_banned(rules, subject)
            if banned is not None and is_stale:  # it may have been lifted elsewhere
                await bans.ensure_fresh(deadline)
                banned = self._refusal_of_banned(rules, subject)
            if banned is not None:
                return banned
        decision = await self.decider.hit(rules, subject, cost, once, peek=peek, deadline=deadline)
        if not is_stale:
            return decision
        # The hit comes first: if the storage does not answer it, nobody waits for the bans either.
        await bans.ensure_fresh(deadline)
        banned = self._refusal_of_banned(rules, subject)
        return decision if banned is None else banned

    def _refusal_of_banned(self, rules: Rules, subject: Subject) -> Decision | None:
        """The refusal of a subject that is banned by hand; None if it is not banned."""
        left = self._bans.left(check_subject(subject))
        if not left:
            return None
        return Decision(False, rules[0], 0, left, left, self.storage.source, banned=True)
