"""Limiter: rules, a storage and what to do when it fails, put together into a Decision."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final, Literal, TypeAlias, get_args

from bot_ratelimit.algorithms import Undecided, Verdict
from bot_ratelimit.decision import Decision, Source, conclude
from bot_ratelimit.errors import ConfigError, StorageError
from bot_ratelimit.failures import Failures, printable
from bot_ratelimit.limit import MAX_AMOUNT, MAX_PERIOD_MS, Limit
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


class Limiter:
    """Decides about hits, and answers whatever happens to the storage.

    Args:
        storage: Where counts are kept.
        key_prefix: What every key begins with; bots that share a server need different ones.
        on_error: Who answers when the storage cannot: `"allow"` and `"deny"` say the same to
            everybody, `"memory"` applies the rules in this process, so that n instances let n
            times as much through.
        timeout: Seconds that a decision may take, above 0; 0.25 unless given.
        memory_size: The most keys that `on_error="memory"` keeps; see `MemoryStorage`.
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
        memory_size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ConfigError(f"on_error={on_error!r}: expected 'allow', 'deny' or 'memory'")
        _check_storage(storage)
        self.key_prefix = check_prefix(key_prefix)
        self.on_error = on_error
        self.timeout = check_timeout(timeout)
        self._storage = storage
        self._memory = storage if type(storage) is MemoryStorage else None
        standby = MemoryStorage(memory_size)
        self._standby = standby if on_error == "memory" else None
        self._clock = clock
        self._failures = Failures(on_error, clock)

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
        *,
        _look: bool = False,  # what `peek` asks for
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
            return Decision(True, rules[0], MAX_AMOUNT, 0.0, 0.0, "none")
        look = _look or cost == 0
        token = None if once is None or look else self._once_key(once, charges)
        if self._memory is not None and not look:  # it answers at once and cannot fail
            verdicts: Sequence[Verdict] = self._memory.decide(charges, token)
            return self._concluded(charges, applied, verdicts, "memory")
        storage = self._storage
        server = storage.server(charges)
        breaker = self._failures.breaker(server)
        ticket = breaker.admit(self._clock())
        if ticket is None:
            return await self._answer_without(charges, applied, token, look)
        try:
            if look:
                verdicts = await storage.peek(charges, timeout=self.timeout)
            else:
                verdicts = await storage.hit(charges, once=token, timeout=self.timeout)
        except StorageError as error:
            self._failures.failed(server, breaker, ticket, error)
        except Exception as error:
            self._failures.faulty(server, breaker, ticket, error)
        except BaseException:
            breaker.abandoned(ticket)
            raise
        else:
            self._failures.succeeded(server, breaker, ticket)
            return self._concluded(charges, applied, verdicts, storage.source, look)
        return await self._answer_without(charges, applied, token, look)

    async def peek(
        self,
        rule: RuleLike | Iterable[RuleLike],
        subject: Subject,
        cost: int | None = None,
    ) -> Decision:
        """What `hit` would answer now; charges nothing and counts no attempt.

        A ban that the hit would bring on is part of the answer. Only `remaining` is what is left
        now, before the hit: an allowed hit leaves its cost less.

        Args:
            rule: One rule, or several that are decided together.
            subject: Who would ask.
            cost: What the hit would take from each rule instead of the rule's own cost.
        """
        return await self.hit(rule, subject, cost, _look=True)

    async def reset(self, rule: RuleLike | Iterable[RuleLike], subject: Subject) -> bool:
        """Forget what the subject was charged; True if there was something.

        Verdicts that hits with one token (`once`) share are forgotten too. Strikes and bans of a
        `Penalty` are forgotten if it is among the rules.

        With `on_error="memory"`, what this process counted is forgotten also while Redis is out
        of reach; the log then says that Redis still has its own counts.

        Raises:
            StorageError: The storage is out of reach; nothing was forgotten.
            ConfigError: The storage refuses the command, or the rule makes no sense.
        """
        charges = self._counted(rules_of(rule), subject)
        if not charges:
            return False
        found = 0
        if self._standby is not None:
            found = await self._standby.reset(charges, timeout=self.timeout)
        try:
            found += await self._storage.reset(charges, timeout=self.timeout)
        except StorageError as error:
            if not found:
                raise
            log.warning(
                "A reset holds in this process only: %s. Repeat it when Redis answers again, to "
                "forget what Redis has counted (%s)",
                str(error).rstrip("."),
                ", ".join(charge.key for charge in charges),
            )
        return found > 0

    def open(self) -> None:
        """Begin to connect, so that the first decision need not wait for it."""
        self._storage.open()

    async def close(self) -> None:
        """Close the storage."""
        await self._storage.close()

    def _charges(
        self, rules: Rules, subject: Subject, cost: int | None
    ) -> tuple[list[Charge], list[Rule]]:
        _check_subject(subject)
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

    def _counted(self, rules: Rules, subject: Subject) -> list[Charge]:
        """What may be counted of the subject, also by rules that do not apply to it now."""
        _check_subject(subject)
        charges = []
        for rule in rules:
            key = rule.key(self.key_prefix, subject)
            if key is not None:
                penalty = rule if isinstance(rule, Penalty) else None
                limit = rule.limit_for(subject) or _ANY_LIMIT
                charges.append(Charge(key, limit, shadow=rule.shadow, penalty=penalty))
        return charges

    def _once_key(self, token: str, charges: Sequence[Charge]) -> str:
        """`bot:ratelimit:once:<hash of the token and of each key>`.

        Tokens and keys are texts of any length and content, so each is hashed with its length.
        """
        if not isinstance(token, str):
            raise ConfigError(f"once={token!r}: expected a text, for example once=str(update_id)")
        parts = [
            part.encode("utf-8", "surrogatepass") for part in (token, *(c.key for c in charges))
        ]
        text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
        return f"{self.key_prefix}:ratelimit:once:{blake2b(text, digest_size=16).hexdigest()}"

    async def _answer_without(
        self, charges: list[Charge], rules: list[Rule], once: str | None, look: bool
    ) -> Decision:
        """The answer of the policy, when the storage has none."""
        if self._standby is not None:
            if look:
                verdicts = await self._standby.peek(charges, timeout=self.timeout)
            else:
                verdicts = self._standby.decide(charges, once)
            return self._concluded(charges, rules, verdicts, self._standby.source, look)
        # A shadow rule never refuses, whatever the policy.
        real = [i for i, rule in enumerate(rules) if not rule.shadow]
        first = real[0] if real else 0
        rule, limit = rules[first], charges[first].limit
        if self.on_error == "allow" or not real:
            return Decision(True, rule, limit.capacity, 0.0, 0.0, "policy")
        breaker = self._failures.breaker(self._storage.server(charges))
        wait = breaker.wait(self._clock()) or self.timeout
        return Decision(False, rule, 0, wait, wait, "policy")

    def _concluded(
        self,
        charges: Sequence[Charge],
        rules: Sequence[Rule],
        verdicts: Sequence[Verdict],
        source: Source,
        look: bool = False,
    ) -> Decision:
        if look:
            costs = [0 if charge.penalty else charge.cost for charge in charges]
            return conclude(rules, verdicts, source, costs)
        decision = conclude(rules, verdicts, source)
        if decision.shadow or decision.banned:
            self._report(decision, charges, verdicts)
        if (len(rules) > 1 or rules[0].shadow) and Undecided in map(type, verdicts):
            self._report_undecided(rules, verdicts)
        return decision

    def _report(
        self, decision: Decision, charges: Sequence[Charge], verdicts: Sequence[Verdict]
    ) -> None:
        for rule in decision.shadow:
            if self._failures.first_in_a_while(f"shadow {rule}"):
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

    def _report_undecided(self, rules: Sequence[Rule], verdicts: Sequence[Verdict]) -> None:
        for rule, verdict in zip(rules, verdicts, strict=True):
            if isinstance(verdict, Undecided) and self._failures.first_in_a_while(f"un {rule}"):
                log.error(
                    "The shadow rule '%s' cannot be decided: %s. It refuses nobody, and the other "
                    "rules are decided without it",
                    rule,
                    printable(str(verdict.reason)),
                )


# For the counts of a rule that does not apply to a subject any more.
_ANY_LIMIT: Final = Limit(MAX_AMOUNT, MAX_PERIOD_MS / 1_000)


def _check_storage(storage: object) -> None:
    """Raise ConfigError for what is no storage; it would fail only later, and for every update."""
    kind = storage if isinstance(storage, type) else type(storage)
    if kind is not storage and all(
        hasattr(storage, name) for name in ("source", "hit", "peek", "reset", "close")
    ):
        return
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name.startswith("redis."):
        fix = "pass RedisStorage(client)"
    elif kind is storage:
        fix = f"pass an instance, for example {kind.__name__}(...)"
    else:
        fix = "pass RedisStorage(client) or MemoryStorage()"
    what = "the class" if kind is storage else "a"
    raise ConfigError(f"storage is {what} {name}, which is no storage: {fix}")


def _check_subject(subject: object) -> None:
    if not isinstance(subject, Subject):
        raise ConfigError(f"subject={subject!r}: expected a Subject, for example Subject(user=42)")


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
