"""BoundDecision: a Decision that knows what it was about, so that a handler can pay afterwards."""

from __future__ import annotations

import time
from typing import Any

from bot_ratelimit.decision import Decision
from bot_ratelimit.limiter import Limiter
from bot_ratelimit.penalty import Penalty
from bot_ratelimit.rule import Rules, Subject


class BoundDecision(Decision):
    """What a handler finds in `data["rate_limit"]`: the Decision, and a way to pay more or less.

    ::

        async def ask(message: Message, rate_limit: BoundDecision | None) -> None:
            answer = await model(message.text)
            if rate_limit is not None:
                await rate_limit.charge(answer.tokens)
    """

    _limiter: Any
    _rules: Rules
    _subject: Subject
    _charged_at: float
    """When the last charge was confirmed, by `time.monotonic`."""

    @classmethod
    def of(
        cls, decision: Decision, limiter: Limiter, rules: Rules, subject: Subject
    ) -> BoundDecision:
        """The decision, bound to what was asked."""
        bound = tuple.__new__(cls, decision)
        bound._limiter, bound._rules, bound._subject = limiter, rules, subject
        bound._charged_at = time.monotonic()
        return bound

    async def charge(self, cost: int) -> Decision:
        """Charge what the work has cost, whatever is left; see `Limiter.charge`.

        Args:
            cost: On top of what the update itself was charged.
        """
        charged: Decision = await self._limiter.charge(self._limits, self._subject, cost)
        self._charged_at = time.monotonic()
        return charged

    async def refund(self, cost: int | None = None) -> Decision:
        """Give back what was charged, when the work has failed; see `Limiter.refund`.

        Nothing is given back of a window that was opened after the last charge.

        Args:
            cost: How much; what the update itself was charged, unless given.
        """
        cost = self.rule.cost if cost is None else cost
        age = time.monotonic() - self._charged_at
        refunded: Decision = await self._limiter.refund(self._limits, self._subject, cost, age=age)
        return refunded

    @property
    def _limits(self) -> tuple[Any, ...]:
        """The rules of the decision without its penalty, which counts refusals."""
        return tuple(rule for rule in self._rules if not isinstance(rule, Penalty))
