"""BoundDecision: a Decision that a handler can charge more for, or refund."""

from __future__ import annotations

from typing import Any

from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rules, Subject


class BoundDecision(Decision):
    """The Decision that a handler finds in `data["rate_limit"]`; it can be charged and refunded.

    ::

        async def ask(message: Message, rate_limit: BoundDecision | None) -> None:
            answer = await model(message.text)
            if rate_limit is not None:
                await rate_limit.charge(answer.tokens)
    """

    _limiter: Any
    _rules: Rules
    _subject: Subject

    @classmethod
    def of(
        cls, decision: Decision, limiter: Limiter, rules: Rules, subject: Subject
    ) -> BoundDecision | None:
        """Bind a decision to its limiter, rules and subject; None if nothing limits the subject.

        No rule applies then, or only one that refuses nothing now and never tells what is left,
        such as a penalty.
        """
        if decision.source == "none" or (decision.allowed and not decision.rule.tells_left):
            return None
        bound = tuple.__new__(cls, decision)
        bound._limiter, bound._rules, bound._subject = limiter, rules, subject
        return bound

    async def charge(self, cost: int) -> Decision:
        """Charge the cost of the work, even above the limit; see `Limiter.charge`.

        Args:
            cost: In addition to what the update itself was charged.

        Raises:
            StorageError: The storage did not answer; see `Limiter.charge`.
            ConfigError: The cost is invalid.
        """
        charged: Decision = await self._limiter.charge(self._limits, self._subject, cost)
        return charged

    async def refund(self, cost: int | None = None) -> Decision:
        """Refund a charge, for example when the work has failed; see `Limiter.refund`.

        Args:
            cost: How much to refund to each limit; by default what the update itself was charged.

        Raises:
            StorageError: The storage did not answer; see `Limiter.refund`.
            ConfigError: The cost is invalid.
        """
        refunded: Decision = await self._limiter.refund(self._limits, self._subject, cost)
        return refunded

    @property
    def _limits(self) -> tuple[Any, ...]:
        """The rules of the decision without the penalty, which counts refusals."""
        return tuple(rule for rule in self._rules if not isinstance(rule, Penalty))
