"""Changing what was counted: charges afterwards, refunds, resets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from bot_ratelimit.errors import StorageError
from bot_ratelimit.limiter.bans import Bans
from bot_ratelimit.limiter.counts import counts_to_adjust, counts_to_reset
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision, conclude
from bot_ratelimit.rules.checks import check_whole
from bot_ratelimit.rules.limit import MAX_AMOUNT
from bot_ratelimit.rules.rule import RuleLike, Subject, rules_of
from bot_ratelimit.storage.base import Ask, Count, Op, Storage

log = logging.getLogger("bot_ratelimit")


class AdjustingMethods:
    """The methods of a `Limiter` that change counts without a hit.

    Unlike `hit` they raise StorageError if the storage does not answer.
    """

    _decider: Decider
    _bans: Bans

    async def charge(
        self, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int
    ) -> Decision:
        """Charge the subject even above the limit, for costs that are known only afterwards.

        ::

            await limiter.charge("2000/hour", Subject(user=42), 1830)

        Beyond the limit, a fixed window is full until it ends, a sliding window until enough has
        left it, and a token bucket is below empty until it has been refilled. A `Penalty` among the
        rules is ignored.

        Args:
            rules: One rule, or several that are charged together.
            subject: Who the charge counts for.
            cost: Charged to each rule, 1 to 1,000,000.

        Returns:
            The decision that a next hit of cost 1 would get.

        Raises:
            StorageError: The storage did not answer. It is unknown whether the cost was charged,
                except after a `NotConnectedError` or a `QueueFullError`: then it was not.
            ConfigError: The rules or the cost are invalid, or the storage refuses the command.
        """
        return await self._adjust(Op.CHARGE, rules, subject, cost)

    async def refund(
        self, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int | None = None
    ) -> Decision:
        """Give back a charge as far as it still counts; never above full. Otherwise like `charge`.

        ::

            await limiter.refund("2000/hour", Subject(user=42), 1830)

        Without a cost, each rule gets back its own, which is what `hit` has charged to it.

        A storage does not record who was charged for what: the refund is taken from what is counted
        now.
        """
        return await self._adjust(Op.REFUND, rules, subject, cost)

    async def reset(self, rule: RuleLike | Iterable[RuleLike], subject: Subject) -> bool:
        """Delete the counts of a subject; return True if there were any.

        ::

            await limiter.reset("5/10s", Subject(user=42))

        Counts that the rule has made with another algorithm are deleted too, and so are the count
        of refusals and the bans of a `Penalty`. A verdict that hits share by a token (`once`) holds
        until its 60 seconds are over.

        What this process counted while Redis was unreachable (`on_error="memory"`) is deleted even
        if Redis still is. The log then says that Redis has its own counts.

        Raises:
            StorageError: The storage is unreachable, and nothing was deleted.
            ConfigError: The storage refuses the command, or a rule is invalid.
        """
        counts = counts_to_reset(self._decider.key_prefix, rules_of(rule), subject)
        if not counts:
            return False
        found = await self._reset(self._decider.standby, counts)
        try:
            found += await self._reset(self._decider.storage, counts)
        except StorageError as error:
            if not found:
                raise
            log.warning(
                "A reset holds in this process only: %s. Repeat it when Redis answers again, to "
                "delete the counts in Redis (%s)",
                str(error).rstrip("."),
                ", ".join(count.key for count in counts),
            )
        self._bans.remove_penalty_bans(subject, counts)
        return found > 0

    async def _reset(self, storage: Storage, counts: Sequence[Count]) -> int:
        """Delete the counts; return how many of them existed."""
        verdicts = await storage.ask(Ask(counts, Op.RESET), timeout=self._decider.timeout)
        return sum(verdict.reset > 0 for verdict in verdicts)

    async def _adjust(
        self, op: Op, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int | None
    ) -> Decision:
        if cost is not None or op is Op.CHARGE:
            check_whole("cost", cost, 1, MAX_AMOUNT)
        decider = self._decider
        counts, applied = counts_to_adjust(decider.key_prefix, rules_of(rules), subject, cost)
        if not counts:
            return Decision(True, applied[0], MAX_AMOUNT, 0.0, 0.0, "none")
        verdicts = await decider.storage.ask(Ask(counts, op), timeout=decider.timeout)
        return conclude(applied, verdicts, decider.storage.source, [1] * len(counts))
