"""Decision: the answer to "may this event be handled now?"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import RateLimitError
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, rule_at

Source: TypeAlias = str

NO_LIMIT: Final = Rules((rule_at("none:", Limit(1, 1.0), lambda subject: None, 1),))
"""Applies to nobody: what is decided by it is only refused to banned users."""


class Decision(NamedTuple):
    """The answer, and what a handler or a notice may want to say about it.

    `bool(decision)` is `decision.allowed`. Times are seconds, as floats.

    With `5/10s` and a third hit two seconds after the first, everything allowed:
    `remaining` is 2, `retry_after` 0.0 and `reset_after` 8.0. The sixth hit, three seconds
    after the first, is refused: `remaining` is 0, `retry_after` and `reset_after` are 7.0.

    ::

        decision = await limiter.hit("5/10s", Subject(user=42))
        if not decision:
            print(f"Try again in {decision.retry_after:.0f} s")

    Attributes:
        allowed: Whether the event may be handled.
        rule: The rule that refuses; of several the one with the longest `retry_after`. If none
            refuses, the one with the least `remaining`.
        remaining: How much more could be charged at this instant. If the policy answers, the whole
            limit, or 0 with `on_error="deny"`; if no rule applied, 1,000,000.
        retry_after: Seconds after which the same hit would be allowed; 0.0 if this one was. With
            `on_error="deny"`, seconds until the storage is asked again.
        reset_after: Seconds until nothing of the past counts any more.
        source: Who answered: `"redis"`, `"memory"`, `"policy"` (`on_error`, because the storage
            could not answer), or `"none"` (no rule applied).
        shadow: The shadow rules that would have refused; `()` if there are none.
        banned: Whether a ban refuses: a ban by hand, or one by a `Penalty`.
        waited: Seconds that `Limiter.acquire` waited; 0.0 for calls that do not wait.
    """

    allowed: bool
    rule: Rule
    remaining: int
    retry_after: float
    reset_after: float
    source: Source
    shadow: tuple[Rule, ...] = ()
    banned: bool = False
    waited: float = 0.0

    def __bool__(self) -> bool:
        """Whether the event may be handled."""
        return self.allowed


# The same as the constructor in half of the time.
_new_decision: Final[Callable[[tuple[Any, ...]], Decision]] = partial(tuple.__new__, Decision)


def said_by(rule: Rule, verdict: Verdict, source: Source) -> Decision:
    """Make the decision of a single rule that is not a shadow rule."""
    wait, remaining, reset = verdict
    return _new_decision(
        (not wait, rule, remaining, wait / 1e6, reset / 1e6, source, (), False, 0.0)
    )


def conclude(
    rules: Sequence[Rule],
    verdicts: Sequence[Verdict],
    source: Source,
    costs: Sequence[int] = (),
) -> Decision:
    """Combine the verdicts of all rules into a decision.

    It is that of the rule that refuses for the longest time, else that of the tightest rule. For a
    peek, `costs` are what the hit would charge, so that the peek reports the same rule.
    """
    said = [
        (rule, _ban(verdict) if isinstance(rule, Penalty) else verdict)
        for rule, verdict in zip(rules, verdicts, strict=True)
    ]
    refusing = [rule for rule, verdict in said if verdict.wait]
    if not costs or not all(rule.shadow for rule in refusing):  # then nothing is charged
        costs = [0] * len(said)
    weights = [
        _weight(rule, verdict, cost) for (rule, verdict), cost in zip(said, costs, strict=True)
    ]
    rule, (wait, remaining, reset) = said[weights.index(max(weights))]
    allowed = rule.shadow or not wait
    return Decision(
        allowed,
        rule,
        remaining,
        0.0 if allowed else wait / 1e6,
        reset / 1e6,
        source,
        shadow=tuple(rule for rule in refusing if rule.shadow),
        banned=any(isinstance(rule, Penalty) for rule in refusing),
    )


def _ban(verdict: Verdict) -> Verdict:
    """The verdict of a penalty after the hit, which may itself have caused the ban.

    A shared refusal stays a refusal when the ban has ended in the meantime.
    """
    return verdict._replace(wait=0 if verdict.remaining else verdict.reset or verdict.wait)


def _weight(rule: Rule, verdict: Verdict, cost: int) -> tuple[bool, int, bool, int]:
    left = verdict.remaining - cost
    says = not rule.shadow and (verdict.wait > 0 or rule.tells_left)
    return says, verdict.wait, rule.tells_left, -left


class RefusedError(RateLimitError):
    """A refusal by `Limiter.limit`, which runs a block only if it is allowed.

    ::

        try:
            async with limiter.limit("3/day", Subject(user=42)):
                ...
        except RefusedError as error:
            print(f"Try again in {error.decision.retry_after:.0f} s")

    Args:
        decision: The refusal; `retry_after` says for how long.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"refused by {decision.rule}: try again in {decision.retry_after:.1f} s")
        self.decision = decision
