"""Limiter: rules, a storage and what to do when it fails, put together into a Decision."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, TypeAlias, get_args

from cachetools import TTLCache

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.breaker import Breaker
from bot_ratelimit.decision import Decision, Source, conclude
from bot_ratelimit.errors import ConfigError, StorageError
from bot_ratelimit.limit import MAX_AMOUNT, Limit
from bot_ratelimit.penalty import Penalty
from bot_ratelimit.rule import (
    Rule,
    RuleLike,
    Rules,
    Subject,
    check_cost,
    check_prefix,
    rules_of,
)
from bot_ratelimit.storage.base import Charge, Storage, new_charge
from bot_ratelimit.storage.memory import MemoryStorage

log = logging.getLogger("bot_ratelimit")

OnError: TypeAlias = Literal["allow", "deny", "memory"]

# The same fault is logged once in this many seconds, not once for every update.
LOG_EVERY: Final = 60.0


class Limiter:
    """Decides about hits, and answers whatever happens to the storage.

    Args:
        storage: Where counts are kept.
        key_prefix: What every key begins with; bots that share a server need different ones.
        on_error: Who answers when the storage cannot: `"allow"` and `"deny"` say the same to
            everybody, `"memory"` applies the rules in this process, so that n instances let n
            times as much through.
        timeout: Seconds that a decision may take, above 0; 0.25 unless given.
        clock: Seconds from any starting point; times the pauses between attempts in an outage.

    Raises:
        ConfigError: An argument is not one of these.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        key_prefix: str = "bot",
        on_error: OnError = "allow",
        timeout: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ConfigError(f"on_error={on_error!r}: expected 'allow', 'deny' or 'memory'")
        self.key_prefix = check_prefix(key_prefix)
        self.on_error = on_error
        self.timeout = check_timeout(timeout)
        self._storage = storage
        self._memory = storage if type(storage) is MemoryStorage else None
        self._standby = MemoryStorage() if on_error == "memory" else None
        self._breaker = Breaker()
        self._clock = clock
        self._opened = 0.0
        self._logged: TTLCache[str, bool] = TTLCache(64, LOG_EVERY, timer=clock)

    @property
    def storage(self) -> Storage:
        """The storage that answers while all is well."""
        return self._storage

    async def hit(
        self,
        rules: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
        once: str | None = None,
    ) -> Decision:
        """Decide whether the subject may go on now, and charge it if so.

        Args:
            rules: One rule, or several that are decided together: all are charged, or none is.
            subject: Who asks. A rule that lacks an id of it does not apply.
            cost: Taken from each rule instead of the rule's own cost; 0 looks without charging.
            once: A token (an album, an update): hits with the same token, rules and subject
                within 60 seconds share one verdict and one charge, on every instance.

        Raises:
            ConfigError: The rules or the cost make no sense. A failing storage never raises.
        """
        if not isinstance(rules, Rules):
            rules = rules_of(rules)
        charges, applied = self._charges(rules, subject, cost or None)
        if not charges:
            return Decision(True, rules[0], MAX_AMOUNT, 0.0, 0.0, "policy")
        look = cost == 0
        token = None if once is None or look else self._once_key(once, charges)
        if self._memory is not None and not look:  # it answers at once and cannot fail
            verdicts: Sequence[Verdict] = self._memory.decide(charges, token)
            return self._concluded(charges, applied, verdicts, "memory")
        ticket = self._breaker.admit(self._clock())
        if ticket is None:
            return await self._answer_without(charges, applied, token, look)
        storage = self._storage
        try:
            if look:
                verdicts = await storage.peek(charges, timeout=self.timeout)
            else:
                verdicts = await storage.hit(charges, once=token, timeout=self.timeout)
        except StorageError as error:
            self._failed(ticket, error)
        except Exception as error:
            # The server did answer: asking it less often would not help.
            if self._breaker.succeeded(ticket):
                self._recovered()
            self._faulty(error)
        except BaseException:
            self._breaker.abandoned(ticket)
            raise
        else:
            if self._breaker.succeeded(ticket):
                self._recovered()
            return self._concluded(charges, applied, verdicts, storage.source)
        return await self._answer_without(charges, applied, token, look)

    async def peek(self, rule: RuleLike | Iterable[RuleLike], subject: Subject) -> Decision:
        """What `hit` would answer now; charges nothing and counts no attempt."""
        return await self.hit(rule, subject, cost=0)

    async def reset(self, rule: RuleLike | Iterable[RuleLike], subject: Subject) -> bool:
        """Forget what the subject was charged; True if there was something.

        Raises:
            StorageError: The storage is out of reach; nothing was forgotten.
            ConfigError: The storage refuses the command, or the rule makes no sense.
        """
        charges, _ = self._charges(rules_of(rule), subject, None)
        found = await self._storage.reset(charges, timeout=self.timeout)
        if self._standby is not None:
            found += await self._standby.reset(charges, timeout=self.timeout)
        return found > 0

    async def close(self) -> None:
        """Close the storage."""
        await self._storage.close()

    def _charges(
        self, rules: Rules, subject: Subject, cost: int | None
    ) -> tuple[list[Charge], list[Rule]]:
        charges: list[Charge] = []
        applied: list[Rule] = []
        for rule in rules:
            key = rule.key(self.key_prefix, subject)
            if key is None:
                continue
            limit = rule.limit if isinstance(rule.limit, Limit) else rule.limit_for(subject)
            if limit is None:
                continue
            if isinstance(rule, Penalty):
                charges.append(Charge(key, limit, penalty=rule))
            else:
                if cost is not None or limit is not rule.limit:
                    check_cost(rule.cost if cost is None else cost, limit, rule)
                charges.append(new_charge((key, limit, cost or rule.cost, rule.shadow, None)))
            applied.append(rule)
        return charges, applied

    def _once_key(self, token: str, charges: Sequence[Charge]) -> str:
        """`bot:ratelimit:once:<token>:<what follows "bot:ratelimit:" in each key>`."""
        stem = f"{self.key_prefix}:ratelimit:"
        counted = "|".join(charge.key.removeprefix(stem) for charge in charges)
        return f"{stem}once:{token}:{counted}"

    async def _answer_without(
        self, charges: list[Charge], rules: list[Rule], once: str | None, look: bool
    ) -> Decision:
        """The answer of the policy, when the storage has none."""
        if self._standby is not None:
            if look:
                verdicts = await self._standby.peek(charges, timeout=self.timeout)
            else:
                verdicts = self._standby.decide(charges, once)
            return self._concluded(charges, rules, verdicts, self._standby.source)
        rule, limit = rules[0], charges[0].limit
        if self.on_error == "allow":
            return Decision(True, rule, limit.capacity, 0.0, 0.0, "policy")
        wait = self._breaker.wait(self._clock()) or self.timeout
        return Decision(False, rule, 0, wait, wait, "policy")

    def _concluded(
        self,
        charges: Sequence[Charge],
        rules: Sequence[Rule],
        verdicts: Sequence[Verdict],
        source: Source,
    ) -> Decision:
        decision = conclude(rules, verdicts, source)
        if decision.shadow or decision.banned:
            self._report(decision, charges, verdicts)
        return decision

    def _report(
        self, decision: Decision, charges: Sequence[Charge], verdicts: Sequence[Verdict]
    ) -> None:
        for rule in decision.shadow:
            if self._first_in_a_while(f"shadow {rule}"):
                log.info("The shadow rule '%s' would have refused a hit", rule)
        if decision.banned:
            for charge, verdict in zip(charges, verdicts, strict=True):
                penalty = charge.penalty
                if penalty is None or penalty.imposed:  # who imposed it has more to say
                    continue
                if not verdict.wait and not verdict.remaining:
                    # Not refused by the ban yet, and no strike left: this hit brought it on.
                    seconds = verdict.reset / 1_000_000
                    log.warning("Banned for %g s: %s (%s)", seconds, charge.key, penalty)

    def _recovered(self) -> None:
        log.warning(
            "Redis answers again after %.1f s: limits hold on every instance",
            self._clock() - self._opened,
        )

    def _failed(self, ticket: int, error: StorageError) -> None:
        now = self._clock()
        reason = str(error).rstrip(".")
        if self._breaker.failed(ticket, now):
            self._opened = now
            log.error(
                "Redis rate limit check failed: %s. It is left alone for %.1f s and then tried "
                "now and then; until it answers, %s",
                reason,
                self._breaker.wait(now),
                _CONSEQUENCES[self.on_error],
            )
        elif self._breaker.closed and self._first_in_a_while("outage"):
            log.warning(
                "Redis rate limit check failed: %s. Without its answer, %s",
                reason,
                _CONSEQUENCES[self.on_error],
            )

    def _faulty(self, error: Exception) -> None:
        if self._first_in_a_while(f"{type(error).__name__} {error}"[:200]):
            expected = isinstance(error, ConfigError)
            log.error(
                "Redis rate limit check failed: %s. Until that is mended, %s",
                error if expected else repr(error),
                _CONSEQUENCES[self.on_error],
                exc_info=None if expected else error,
            )

    def _first_in_a_while(self, what: str) -> bool:
        if what in self._logged:
            return False
        self._logged[what] = True
        return True


_CONSEQUENCES: Final = {
    "allow": "updates are handled without a limit (on_error='allow')",
    "deny": "updates are refused (on_error='deny')",
    "memory": "each instance limits by its own memory (on_error='memory')",
}


def check_timeout(value: object) -> float:
    """The time-out itself, if it is a positive number of seconds.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 3600:
        raise ConfigError(
            f"timeout={value!r}: expected seconds above 0, at most 3600, for example 0.25"
        )
    return float(value)
