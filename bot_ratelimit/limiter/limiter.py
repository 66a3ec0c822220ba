"""Limiter: combines rules, a storage and a failure policy into a Decision."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal, TypeAlias, get_args

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import ConfigError, StorageError
from bot_ratelimit.limiter.bans import (
    BanLog,
    Bans,
    check_ban_length,
    check_bannable,
    check_page,
    check_target,
    check_text,
    penalty_charges,
)
from bot_ratelimit.limiter.charges import (
    adjustment_charges,
    check_subject,
    hit_charges,
    once_key,
    reset_charges,
)
from bot_ratelimit.limiter.decision import Decision, RefusedError, Source, conclude
from bot_ratelimit.limiter.failures import Failures, printable
from bot_ratelimit.limiter.health import Health, health_of
from bot_ratelimit.limiter.observer import Observer, ObserverLike, observers_of
from bot_ratelimit.limiter.slots import SlotContext, Slots, check_slot_wait
from bot_ratelimit.limiter.statistics import HourCount, Refusals, Statistics
from bot_ratelimit.limiter.wait_queue import Waiter, WaitQueues, check_wait
from bot_ratelimit.rules.checks import check_adjustment, check_prefix
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.limit import MAX_AMOUNT, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, RuleLike, Rules, Subject, rules_of
from bot_ratelimit.storage.banlist import Ban
from bot_ratelimit.storage.base import Ask, Count, Op, Storage
from bot_ratelimit.storage.memory import MemoryStorage, check_size

log = logging.getLogger("bot_ratelimit")

OnError: TypeAlias = Literal["allow", "deny", "memory"]


class Limiter:
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
        if on_error not in get_args(OnError):
            raise ConfigError(f"on_error={on_error!r}: expected 'allow', 'deny' or 'memory'")
        if not isinstance(statistics, bool):
            raise ConfigError(f"statistics={statistics!r}: expected True or False")
        _check_storage(storage)
        self.key_prefix = check_prefix(key_prefix)
        self.on_error = on_error
        self.timeout = check_timeout(timeout)
        self._storage = storage
        self._memory = storage if type(storage) is MemoryStorage else None
        check_size("memory_size", memory_size)
        self._standby = MemoryStorage(memory_size) if on_error == "memory" else None
        self._clock = clock
        self._statistics = (
            Statistics(storage, self.key_prefix, self.timeout) if statistics else None
        )
        self._observer = observers_of(observer, self._statistics)
        self._failures = Failures(on_error, clock, storage.server, self._observer)
        if self._observer is not None:
            storage.observe(self._observer)
        self._bans = Bans(storage, self.key_prefix, self.timeout)
        self._ban_log = BanLog(clock)
        self._slots: Slots | None = None
        self._queues = WaitQueues(self, self._is_unreachable)

    @property
    def observer(self) -> Observer | None:
        """All observers of this limiter as one that never raises; None if there are none."""
        return self._observer

    @property
    def keeps_statistics(self) -> bool:
        """Whether decisions are counted by hour, see `statistics`."""
        return self._statistics is not None

    @property
    def storage(self) -> Storage:
        """The storage that decides unless it fails."""
        return self._storage

    async def hit(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
        once: str | None = None,
        *,
        _peek: bool = False,  # used by `peek`
        _notify: bool = True,  # whether observers are told
        _bans_loaded: bool = False,  # whether the copy of the bans has been checked
        _outgoing: bool = False,  # for requests of the bot, to which bans do not apply
    ) -> Decision:
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

        Raises:
            ConfigError: The rules or the cost are invalid. A failing storage never raises.
        """
        if self._observer is not None and _notify:
            return await self._observed_hit(rules, subject, cost, once, _peek)
        if not isinstance(rules, Rules):
            rules = rules_of(rules)
        charges, applied = hit_charges(self.key_prefix, rules, subject, cost or None)
        bans = self._bans
        bans.used = bans.used or not _outgoing
        if bans.is_stale and not (_bans_loaded or _outgoing):
            return await self._hit_and_load_bans(rules, subject, cost, once, _peek)
        if bans.current and not _outgoing:
            banned = self._refusal_of_banned(rules, subject)
            if banned is not None:
                return banned
        if not charges:
            return Decision(True, rules[0], MAX_AMOUNT, 0.0, 0.0, "none")
        peek = _peek or cost == 0
        token = None if once is None or peek else once_key(self.key_prefix, once, charges)
        if self._memory is not None and not peek:  # memory answers at once and cannot fail
            verdicts: Sequence[Verdict] = self._memory.decide(charges, token)
            return self._conclude(subject, charges, applied, verdicts, "memory")
        storage = self._storage
        server = storage.server(charges)
        breaker = self._failures.breaker(server)
        ticket = breaker.admit(self._clock())
        if ticket is None:
            return await self._answer_by_policy(subject, charges, applied, token, peek)
        try:
            op = Op.PEEK if peek else Op.HIT
            verdicts = await storage.ask(Ask(charges, op, token), timeout=self.timeout)
        except StorageError as error:
            self._failures.failed(server, breaker, ticket, error, charges)
        except Exception as error:
            self._failures.rejected(server, breaker, ticket, error)
        except BaseException:
            breaker.abandoned(ticket)
            raise
        else:
            self._failures.succeeded(server, breaker, ticket)
            return self._conclude(subject, charges, applied, verdicts, storage.source, peek)
        return await self._answer_by_policy(subject, charges, applied, token, peek)

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

        The answer includes a ban that the hit would cause. Only `remaining` is the value before the
        hit: an allowed hit would leave its cost less.

        Args:
            rule: One rule, or several that are decided together.
            subject: Who the hit would count for.
            cost: What the hit would charge to each rule instead of the rule's own cost.

        Raises:
            ConfigError: The rules or the cost are invalid. A failing storage never raises.
        """
        return await self.hit(rule, subject, cost, _peek=True)

    async def acquire(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
        timeout: float | None = None,
    ) -> Decision:
        """Wait until a hit of the subject is allowed, and charge it then.

        `Decision.waited` is the time that it took.

        ::

            decision = await limiter.acquire("10/s", Subject(user=42), timeout=5)

        Within a process callers are served in order; instances take turns. A caller that would
        have to wait longer than `timeout` is refused as soon as this is known, and is not charged.
        The same happens if 10,000 callers already wait, or if the limiter is closed. If Redis fails
        in the meantime, `on_error` answers. A cancelled call is not charged.

        Args:
            rules: One rule, or several. Waiting never causes a ban, but a user who is banned by a
                `Penalty` among the rules when the wait begins is refused.
            subject: Who the hit counts for. A rule whose scope needs an id that the subject lacks
                does not apply.
            cost: Charged to each rule instead of the rule's own cost.
            timeout: The maximum wait in seconds, 0 or more; None (the default) waits as long as it
                takes.

        Raises:
            ConfigError: An argument is invalid. A failing storage never raises.
        """
        check_wait(timeout)
        rules = rules_of(rules)
        charges, applied = hit_charges(self.key_prefix, rules, subject, cost)
        if not charges:
            return await self.hit(rules, subject, cost)  # this checks bans, and waits for nothing
        bans = Rules(rule for rule in applied if isinstance(rule, Penalty))
        limits = Rules(rule for rule in applied if not isinstance(rule, Penalty))
        if bans:
            decision = await self.peek(bans, subject)
            if not limits or not decision:
                return decision
            charges = [charge for charge in charges if charge.penalty is None]
        decision = await self._queues.wait(Waiter(limits, subject, cost, charges, timeout))
        if self._observer is not None:
            self._observer.decided(decision, subject, decision.waited)
            self._observer.waited(decision, subject, decision.waited)
        return decision

    async def charge(
        self, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int
    ) -> Decision:
        """Charge the subject even above the limit, for costs that are known only afterwards.

        ::

            await limiter.charge("2000/hour", Subject(user=42), 1830)

        What exceeds the limit becomes a debt: everything is refused until the debt is paid, which
        takes as long as the limit needs to grant the same amount. A debt is at most what the limit
        grants in 366 days, and at most 1,000,000. docs/algorithms.md has an example for each
        algorithm.

        Args:
            rules: One rule, or several that are charged together. A `Penalty` is ignored.
            subject: Who the charge counts for. A rule whose scope needs an id that the subject
                lacks does not apply.
            cost: Charged to each rule, 1 to 1,000,000.

        Returns:
            The decision that a next hit of cost 1 would get.

        Raises:
            StorageError: The storage did not answer. It is unknown whether the cost was charged,
                except after a `NotConnectedError` or a `QueueFullError`: then it was not.
            ConfigError: The rules or the cost are invalid, or the storage refuses the command.
        """
        check_adjustment(cost)
        charges, applied = adjustment_charges(self.key_prefix, rules, subject, cost)
        if not charges:
            return Decision(True, applied[0], MAX_AMOUNT, 0.0, 0.0, "none")
        verdicts = await self._storage.ask(Ask(charges, Op.CHARGE), timeout=self.timeout)
        return conclude(applied, verdicts, self._storage.source, [1] * len(charges))

    async def refund(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int = 1,
    ) -> Decision:
        """Refund a charge as far as it still counts; never above full.

        ::

            await limiter.refund("2000/hour", Subject(user=42), 1830)

        A storage does not record who was charged for what: it takes from what is there.

        Args:
            rules: One rule, or several that are refunded together. A `Penalty` is ignored.
            subject: Who the charge counted for.
            cost: Refunded to each rule, 1 to 1,000,000; 1 by default.

        Returns:
            The decision that a next hit of cost 1 would get.

        Raises:
            StorageError: The storage did not answer; see `charge`.
            ConfigError: An argument is invalid, or the storage refuses the command.
        """
        check_adjustment(cost)
        charges, applied = adjustment_charges(self.key_prefix, rules, subject, cost)
        if not charges:
            return Decision(True, applied[0], MAX_AMOUNT, 0.0, 0.0, "none")
        ask = Ask(charges, Op.REFUND)
        verdicts = await self._storage.ask(ask, timeout=self.timeout)
        return conclude(applied, verdicts, self._storage.source, [1] * len(charges))

    async def reset(self, rule: RuleLike | Iterable[RuleLike], subject: Subject) -> bool:
        """Delete the counts of a subject; return True if there were any.

        ::

            await limiter.reset("5/10s", Subject(user=42))

        Verdicts that hits share by a token (`once`) are deleted too. If a `Penalty` is among the
        rules, its count of refusals and its bans are deleted.

        With `on_error="memory"`, the counts of this process are deleted even while Redis is
        unreachable. The log then says that Redis still has its own counts.

        Raises:
            StorageError: The storage is unreachable, and nothing was deleted.
            ConfigError: The storage refuses the command, or a rule is invalid.
        """
        charges = reset_charges(self.key_prefix, rules_of(rule), subject)
        if not charges:
            return False
        found = 0
        if self._standby is not None:
            found = await self._reset(self._standby, charges)
        try:
            found += await self._reset(self._storage, charges)
        except StorageError as error:
            if not found:
                raise
            log.warning(
                "A reset holds in this process only: %s. Repeat it when Redis answers again, to "
                "delete the counts in Redis (%s)",
                str(error).rstrip("."),
                ", ".join(charge.key for charge in charges),
            )
        self._bans.remove_penalty_bans(subject, charges)
        return found > 0

    def slot(
        self, concurrency: Concurrency, subject: Subject, timeout: float | None = 0
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
                callers of a process are served in order; instances take turns.

        Raises:
            ConfigError: An argument is invalid. A failing storage never raises: `on_error` answers.
        """
        if not isinstance(concurrency, Concurrency):
            raise ConfigError(
                f"concurrency={concurrency!r}: expected Concurrency(1, name='report')"
            )
        check_subject(subject)
        if self._slots is None:
            self._slots = Slots(
                self._storage,
                self._standby,
                self._failures,
                key_prefix=self.key_prefix,
                on_error=self.on_error,
                timeout=self.timeout,
                clock=self._clock,
                observer=self._observer,
            )
        return SlotContext(self._slots, concurrency, subject, check_slot_wait(timeout))

    @asynccontextmanager
    async def limit(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
    ) -> AsyncIterator[Decision]:
        """Run a block only if a hit of the subject is allowed; for code outside of handlers.

        ::

            async with limiter.limit("5/minute", Subject(user=42)):
                ...

        Args:
            rules: One rule, or several that are decided together.
            subject: Who the hit counts for.
            cost: Charged to each rule instead of the rule's own cost.

        Raises:
            RefusedError: The hit was refused, and the block does not run. The error contains the
                Decision.
            ConfigError: The rules or the cost are invalid.
        """
        decision = await self.hit(rules, subject, cost)
        if not decision.allowed:
            raise RefusedError(decision)
        yield decision

    async def ban(
        self, subject: Subject, length: float | str | None = None, reason: str = "", by: str = ""
    ) -> Ban:
        """Ban a user, a chat, or a user in a chat: all their hits are refused.

        ::

            await limiter.ban(Subject(user=42), "1h", reason="spam", by="Anna")

        This limiter applies the ban at once, other limiters with this storage and prefix within a
        second. A ban replaces an earlier one; it needs no `Penalty`.

        Args:
            subject: Who is banned: by all bots that share the prefix, or by the bot that the
                subject names.
            length: Seconds, or a period such as `"1h"`, at most ten years; None (the default) bans
                permanently.
            reason: Why, for the list of bans.
            by: Who imposed the ban, for the list of bans.

        Returns:
            The ban, with its end.

        Raises:
            ConfigError: An argument is invalid, or there are already 100,000 bans.
            StorageError: The storage is unreachable; it is unknown whether the ban is in force.
        """
        check_bannable(subject)
        seconds = check_ban_length(length)
        return await self._bans.ban(
            subject, seconds, check_text("reason", reason), check_text("by", by)
        )

    def is_banned(self, subject: Subject) -> bool:
        """Whether a subject is banned by hand, as far as this process knows; sends no request."""
        return bool(self._bans.current) and self._bans.left(subject) > 0

    async def unban(self, subject: Subject) -> bool:
        """Lift all bans of a subject, also those of a `Penalty`; return True if there were any.

        ::

            await limiter.unban(Subject(user=42))

        Raises:
            ConfigError: The subject names neither a user nor a chat.
            StorageError: The storage is unreachable; some of the bans may be lifted.
        """
        dropped = await self._bans.unban(check_target(subject))
        charges = penalty_charges(self.key_prefix, subject, dropped)
        found = await self._reset(self._storage, charges) if charges else 0
        if self._standby is not None and charges:
            found += await self._reset(self._standby, charges)
        return bool(dropped) or found > 0

    async def bans(self, offset: int = 0, limit: int = 100) -> list[Ban]:
        """Return one page of the current bans, including those of a `Penalty`.

        ::

            for ban in await limiter.bans(offset=0, limit=50):
                print(ban.subject.user, ban.until, ban.reason)

        The ban that ends first comes first.

        Args:
            offset: How many bans to skip.
            limit: The size of the page, 1 to 1000.

        Raises:
            ConfigError: `offset` or `limit` is invalid.
            StorageError: The storage is unreachable.
        """
        return await self._bans.page(*check_page(offset, limit))

    async def bans_of(self, subject: Subject) -> list[Ban]:
        """Return the bans that refuse a subject, the one that ends last first.

        They are those of the user, of the chat and of the user in the chat, by hand and by a
        `Penalty`.

        Raises:
            ConfigError: The subject names neither a user nor a chat.
            StorageError: The storage is unreachable.
        """
        return await self._bans.of(check_target(subject))

    def open(self) -> None:
        """Start to connect, so that the first decision need not wait for it."""
        self._storage.open()

    async def health(self) -> Health:
        """Return the state of the limiter as far as it is known, without a request."""
        return health_of(self._storage, self._failures, self.on_error)

    async def check(self) -> Health:
        """Return the state of the limiter after a test call, which charges no user.

        ::

            health = await limiter.check()
            print(health.ok, health.problem)

        The call is a real hit on the key `<prefix>:ratelimit:check`, even if the circuit breaker is
        open. So it also detects missing permissions, a read-only server and full memory.
        A server that refuses scripts is fine until a rule needs a script: then `problem` names what
        could not be decided.
        """
        problem, began = "", time.perf_counter()
        try:
            if self._memory is None:
                charge = Count(f"{self.key_prefix}:ratelimit:check", _CHECK_LIMIT)
                await self._storage.ask(Ask([charge]), timeout=self.timeout)
        except Exception as error:
            problem = printable(str(error) or repr(error))
        seconds = time.perf_counter() - began
        return health_of(self._storage, self._failures, self.on_error, (seconds, problem))

    async def statistics(self, hours: int = 24) -> tuple[HourCount, ...]:
        """Return the decisions by hour, rule and outcome over all instances.

        ::

            for each in await limiter.statistics(hours=24):
                print(each.hour, each.rule, each.outcome, each.count)

        It needs `statistics=True`.

        Args:
            hours: How many hours, 1 to 48, including the current one; 24 by default.

        Raises:
            StorageError: Redis is unreachable.
            ConfigError: Statistics are off, or `hours` is invalid.
        """
        return await self._require_statistics().read(hours)

    async def top_refused(self, n: int = 10, hours: int = 24) -> tuple[Refusals, ...]:
        """Return the users who were refused most often, the worst first; needs `statistics=True`.

        ::

            for worst in await limiter.top_refused(10):
                print(worst.user, worst.count)

        Args:
            n: How many users, 1 to 1000; 10 by default.
            hours: How many hours, 1 to 48, including the current one; 24 by default.

        Raises:
            StorageError: Redis is unreachable.
            ConfigError: Statistics are off, or an argument is invalid.
        """
        return await self._require_statistics().top_refused(n, hours)

    async def refused(self, user: int, hours: int = 24) -> int | None:
        """Return how often a user was refused; needs `statistics=True`.

        For each hour, only the 1000 users who were refused most often are known. None if the user
        is not among them, in an hour in which so many were refused.

        Args:
            user: The user's id.
            hours: How many hours, 1 to 48, including the current one; 24 by default.

        Raises:
            StorageError: Redis is unreachable.
            ConfigError: Statistics are off, or an argument is invalid.
        """
        return await self._require_statistics().refused(user, hours)

    async def close(self) -> None:
        """Tell the observers what is left, write the statistics, and close the storage.

        Callers of `acquire` and `slot` that wait are refused. A block that still holds a slot keeps
        it until it ends, and then releases it. The limiter can be used again.
        """
        await self._queues.close()
        await self._bans.close()
        if self._slots is not None:
            await self._slots.close()
        if self._statistics is not None:
            await self._statistics.flush_at_end()
        if self._observer is not None:
            self._observer.close()
        await self._storage.close()

    async def _reset(self, storage: Storage, counts: Sequence[Count]) -> int:
        """Delete the counts; return how many of them existed."""
        verdicts = await storage.ask(Ask(counts, Op.RESET), timeout=self.timeout)
        return sum(verdict.reset > 0 for verdict in verdicts)

    def _require_statistics(self) -> Statistics:
        if self._statistics is None:
            raise ConfigError(
                "statistics are off: pass statistics=True to Limiter or RateLimitMiddleware"
            )
        return self._statistics

    async def _observed_hit(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None,
        once: str | None,
        peek: bool,
    ) -> Decision:
        """Decide a hit and tell the observers. Only here decisions are timed."""
        began = time.perf_counter()
        decision = await self.hit(rules, subject, cost, once, _peek=peek, _notify=False)
        if not peek and cost != 0 and self._observer is not None:
            self._observer.decided(decision, subject, time.perf_counter() - began)
        return decision

    async def _hit_and_load_bans(
        self, rules: Rules, subject: Subject, cost: int | None, once: str | None, peek: bool
    ) -> Decision:
        """Decide the first hit, or the first after a pause: the copy of the bans is outdated.

        The hit comes first: if the storage does not answer it, nobody waits for the bans either.
        """
        began = self._clock()
        decision = await self.hit(
            rules, subject, cost, once, _peek=peek, _notify=False, _bans_loaded=True
        )
        if decision.source == self._storage.source:
            await self._bans.ensure_fresh(self.timeout - (self._clock() - began))
        else:
            self._bans.refresh_soon()
        banned = self._refusal_of_banned(rules, subject)
        return decision if banned is None else banned

    def _refusal_of_banned(self, rules: Rules, subject: Subject) -> Decision | None:
        """The refusal of a subject that is banned by hand; None if it is not banned."""
        left = self._bans.left(subject)
        if not left:
            return None
        return Decision(False, rules[0], 0, left, left, self._storage.source, banned=True)

    def _is_unreachable(self, charges: Sequence[Count]) -> bool:
        """Whether the server of these charges is known to be unreachable."""
        server = self._storage.server(charges)
        # If there is no connection to a server, it is in an outage although its circuit is closed.
        return not self._failures.breaker(server).closed or bool(self._failures.outage(server))

    async def _answer_by_policy(
        self,
        subject: Subject,
        charges: list[Count],
        rules: list[Rule],
        once: str | None,
        peek: bool,
    ) -> Decision:
        """Answer by the policy, because the storage has no answer."""
        if self._standby is not None:
            verdicts = self._standby.answer(Ask(charges, Op.PEEK if peek else Op.HIT, once))
            return self._conclude(subject, charges, rules, verdicts, self._standby.source, peek)
        # A shadow rule never refuses, whatever the policy is.
        real = [i for i, rule in enumerate(rules) if not rule.shadow]
        first = real[0] if real else 0
        rule, limit = rules[first], charges[first].limit
        if self.on_error == "allow" or not real:
            return Decision(True, rule, limit.capacity, 0.0, 0.0, "policy")
        breaker = self._failures.breaker(self._storage.server(charges))
        wait = breaker.wait(self._clock()) or self.timeout
        return Decision(False, rule, 0, wait, wait, "policy")

    def _conclude(
        self,
        subject: Subject,
        charges: Sequence[Count],
        rules: Sequence[Rule],
        verdicts: Sequence[Verdict],
        source: Source,
        peek: bool = False,
    ) -> Decision:
        if peek:
            costs = [0 if charge.penalty else charge.cost for charge in charges]
            return conclude(rules, verdicts, source, costs)
        decision = conclude(rules, verdicts, source)
        if decision.shadow:
            self._failures.would_have_refused(decision.shadow)
        if decision.banned:
            self._report_bans(subject, charges, verdicts)
        return decision

    def _report_bans(
        self, subject: Subject, charges: Sequence[Count], verdicts: Sequence[Verdict]
    ) -> None:
        for charge, verdict in zip(charges, verdicts, strict=True):
            self._bans.add_penalty_ban(subject, charge, verdict)
            penalty = charge.penalty
            if penalty is None or penalty.imposed:  # the code that imposes it reports it
                continue
            if not verdict.wait and not verdict.remaining:
                # The ban did not refuse this hit, and no strike is left: this hit caused the ban.
                seconds = verdict.reset / 1_000_000
                self._ban_log.banned(seconds, charge.key, penalty)
                if self._observer is not None:
                    self._observer.banned(charge.key, seconds)


_CHECK_LIMIT: Final = Limit(MAX_AMOUNT, 1.0)


def _check_storage(storage: object) -> None:
    """Raise ConfigError for an object that is not a storage; otherwise every update would fail."""
    if isinstance(storage, Storage):
        return
    kind = storage if isinstance(storage, type) else type(storage)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name.startswith("redis."):
        fix = "pass RedisStorage(client)"
    elif kind is storage:
        fix = f"pass an instance, for example {kind.__name__}(...)"
    else:
        fix = (
            "pass RedisStorage(client) or MemoryStorage(); a custom storage derives from "
            "bot_ratelimit.storage.base.Storage"
        )
    what = "the class" if kind is storage else "a"
    raise ConfigError(f"storage is {what} {name}, which is not a storage: {fix}")


def check_timeout(value: object) -> float:
    """Return the time-out if it is a valid number of seconds.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 3600:
        raise ConfigError(
            f"timeout={value!r}: expected seconds above 0, at most 3600, for example 0.25"
        )
    return float(value)
