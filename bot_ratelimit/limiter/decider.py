"""Decider: rules + storage + policy -> Decision. Bans and observers stand around it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.limiter.arguments import check_subject
from bot_ratelimit.limiter.counts import counts_of_hit, once_key, trial_of
from bot_ratelimit.limiter.decision import Decision, Source, conclude, said_by
from bot_ratelimit.rules.limit import MAX_AMOUNT, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Ids, OnError, Rule, Rules, Scope, Subject
from bot_ratelimit.storage.base import Ask, Count, Op, ServerEvents, Storage, new_ask, new_count
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.guarded import Guard
from bot_ratelimit.storage.loops import Seldom
from bot_ratelimit.storage.memory import MemoryStorage

log = logging.getLogger("bot_ratelimit")

Only: TypeAlias = "tuple[Rule, Limit, str, Ids]"
Banned: TypeAlias = Callable[[Subject, Sequence[Count], Sequence[Verdict]], None]

_UPDATES: Final = {
    "allow": "updates are handled without a limit (on_error='allow')",
    "deny": "updates are refused (on_error='deny')",
    "memory": "each instance limits updates by its own counts (on_error='memory')",
}
"""What happens to updates without an answer, by policy."""
_EXCEPT: Final = ", unless a rule has its own on_error"
_MAX_KNOWN: Final = 100
_HIT: Final = Op.HIT


class Decider:
    """Decides about hits for one part of the bot.

    The arguments are those of `Limiter`, and of the `Guard` around the storage. `on_ban` is called
    with the counts and verdicts of a hit that a penalty refuses. With `remembers` this process also
    counts what the storage grants, so that it knows it when it decides by the policy `"memory"`.
    """

    def __init__(
        self,
        storage: Storage,
        key_prefix: str,
        *,
        on_error: OnError = "allow",
        timeout: float = 0.25,
        part: str = "updates",
        consequence: str = "",
        clock: Callable[[], float] = time.monotonic,
        memory_size: int = 10_000,
        events: Sequence[ServerEvents] = (),
        on_ban: Banned = lambda *_: None,
        remembers: bool = False,
    ) -> None:
        self.storage = storage
        self.key_prefix = key_prefix
        self.on_error = on_error
        self.standby: Final = MemoryStorage(memory_size)
        """Decides by the policy `"memory"`."""
        consequence = consequence or _UPDATES[on_error]
        self.guard: Final = Guard(
            storage, part, consequence, timeout=timeout, clock=clock, events=events
        )
        self._on_ban = on_ban
        self._remembers = remembers
        self._memory = storage if type(storage) is MemoryStorage else None
        self._known: dict[tuple[str, ...], Rules] = {}  # by what their keys have in common
        self._last: Rules | None = None
        self._only: Only | None = None  # of the last rules
        self._seldom = Seldom(clock=clock)

    @property
    def timeout(self) -> float:
        """Seconds that a decision waits for the storage."""
        return self.guard.timeout

    @property
    def is_local(self) -> bool:
        """Whether the storage is in this process, and cannot fail."""
        return self._memory is not None

    def hit(
        self,
        rules: Rules,
        subject: Subject,
        cost: int | None = None,
        once: str | None = None,
        *,
        peek: bool = False,
        deadline: Deadline | None = None,
    ) -> Coroutine[Any, Any, Decision]:
        """Decide about a hit; see `Limiter.hit`. With `peek` it is only looked at."""
        if rules is not self._last:
            self.expect(rules)
        only, memory = self._only, self._memory
        if only is None or cost is not None or once is not None or peek:
            return self._hit_any(rules, subject, cost, once, peek, deadline)
        # Nearly always.
        if type(subject) is not Subject:
            check_subject(subject)
        rule, limit, head, ids_of = only
        ids, (_, _, _, bot, business) = ids_of(subject), subject
        if type(ids) is int and bot is None and business is None:
            key: str | None = f"{head}{ids}"
        else:
            key = rule.key(self.key_prefix, subject, limit)
        if memory is not None and key is not None:
            return _decide_in(memory, rule, limit, key)
        counts = [] if key is None else [new_count((key, limit, rule.cost, False, None))]
        return self._decide(subject, new_ask((counts, _HIT, None)), rules, deadline)

    async def _hit_any(
        self,
        rules: Rules,
        subject: Subject,
        cost: int | None,
        once: str | None,
        peek: bool,
        deadline: Deadline | None,
    ) -> Decision:
        """Decide about a hit of any rules."""
        ask, applied = self._asked(rules, subject, cost, once, peek)
        return await self._decide(subject, ask, applied or rules, deadline)

    async def _decide(
        self, subject: Subject, ask: Ask, rules: Sequence[Rule], deadline: Deadline | None
    ) -> Decision:
        """Decide about the counts of a hit, which are those of the rules."""
        if not ask.counts:
            return _unlimited(rules[0])
        if self._memory is not None:
            return self._conclude(subject, ask, rules, self._memory.answer(ask), "memory")
        # As `Guard.run` does, but without another coroutine: this is what every update costs.
        guard = self.guard
        left, began = guard.timeout, 0.0
        if deadline is not None:
            left, began = deadline.left(), time.monotonic()
        verdicts: Sequence[Verdict] | None = None
        admitted = guard.admit(ask.counts) if left else None
        if admitted is not None:
            try:
                verdicts = await self.storage.ask(ask, timeout=left)
            except BaseException as error:
                guard.failed(admitted, ask.counts, error)
            else:
                guard.answered(admitted)
        if deadline is not None:
            deadline.waited(began, answered=verdicts is not None)
        if verdicts is None:
            return self._by_policy(subject, ask, rules)
        decision = self._conclude(subject, ask, rules, verdicts, self.storage.source)
        if self._remembers and decision.allowed:  # also if the standby would have refused it
            charged = [count for count in ask.counts if count.penalty is None]
            self.standby.answer(Ask(charged, Op.CHARGE))
        return decision

    def decide_alone(self, rules: Rules, subject: Subject) -> Decision:
        """Decide without asking the storage, by the policy."""
        counts, applied = counts_of_hit(self.key_prefix, rules, subject, None)
        if not counts:
            return _unlimited(rules[0])
        return self._by_policy(subject, Ask(counts), applied)

    def wait(self, counts: Sequence[Count]) -> float:
        """`retry_after` of a refusal by policy: seconds until the storage is asked again."""
        return self.guard.wait(counts) or self.timeout

    def expect(self, rules: Rules) -> None:
        """Note rules that are hit or will be; the same few objects come again and again."""
        self._last, self._only = rules, self._only_of(rules)
        keys = tuple([getattr(rule.limit, "key_part", "") + rule.path for rule in rules])
        if self._known.get(keys) is rules:
            return
        if keys not in self._known and len(self._known) >= _MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[keys] = rules
        if any(rule.on_error not in (None, self.on_error) for rule in rules):
            self.guard.consequence = self.guard.consequence.removesuffix(_EXCEPT) + _EXCEPT

    def trials(self) -> list[Ask]:
        """What to ask to find out whether the storage can decide by the rules of this bot."""
        asks = [trial_of(self.key_prefix, rules) for rules in self._known.values()]
        alike = {tuple((each.key, each.limit) for each in ask.counts): ask for ask in asks}
        return list(alike.values())

    def _asked(
        self, rules: Rules, subject: Subject, cost: int | None, once: str | None, peek: bool
    ) -> tuple[Ask, Sequence[Rule]]:
        """What to ask about a hit, and the rules that apply."""
        counts, applied = counts_of_hit(self.key_prefix, rules, subject, cost or None)
        if peek or cost == 0:
            return Ask(counts, Op.PEEK), applied
        token = None if once is None or not counts else once_key(self.key_prefix, once, counts)
        return Ask(counts, Op.HIT, token), applied

    def _by_policy(self, subject: Subject, ask: Ask, rules: Sequence[Rule]) -> Decision:
        """Answer without the storage: each rule by its own policy, or else by the common one."""
        policies = [rule.on_error or self.on_error for rule in rules]
        kept, first = [], None
        for index, (rule, policy) in enumerate(zip(rules, policies, strict=True)):
            if policy == "deny" and not rule.shadow and not isinstance(rule, Penalty):
                wait = self.wait(ask.counts)
                return Decision(False, rule, 0, wait, wait, "policy")
            if policy == "memory":
                kept.append(index)
            if first is None and not rule.shadow and rule.tells_left:
                first = index
        if kept:
            known = ask._replace(counts=[ask.counts[index] for index in kept])
            verdicts = self.standby.answer(known)
            decision = self._conclude(subject, known, [rules[i] for i in kept], verdicts, "memory")
            says = decision.rule.tells_left and not decision.rule.shadow
            if first is None or says or not decision.allowed:
                return decision
        free = ask.counts[first or 0].limit.capacity
        return Decision(True, rules[first or 0], free, 0.0, 0.0, "policy")

    def _conclude(
        self,
        subject: Subject,
        ask: Ask,
        rules: Sequence[Rule],
        verdicts: Sequence[Verdict],
        source: Source,
    ) -> Decision:
        if len(rules) == 1 and type(rule := rules[0]) is Rule and not rule.shadow:
            return said_by(rule, verdicts[0], source)
        if ask.op is Op.PEEK:
            costs = [0 if count.penalty else count.cost for count in ask.counts]
            return conclude(rules, verdicts, source, costs)
        decision = conclude(rules, verdicts, source)
        for rule in decision.shadow:
            if self._seldom(str(rule)):
                log.info("The shadow rule '%s' would have refused a hit", rule)
        if decision.banned:
            self._on_ban(subject, ask.counts, verdicts)
        return decision

    def _only_of(self, rules: Rules) -> Only | None:
        """The rule if it is the only one and needs no further thought; with what its keys need."""
        rule, limit = rules[0], rules[0].limit
        is_plain = type(rule) is Rule and isinstance(rule.scope, Scope) and not rule.shadow
        if len(rules) > 1 or not is_plain or not isinstance(limit, Limit) or limit.zone:
            return None
        return rule, limit, rule.head(self.key_prefix, limit), rule.ids


async def _decide_in(memory: MemoryStorage, rule: Rule, limit: Limit, key: str) -> Decision:
    """Decide about a single count in this process."""
    return said_by(rule, memory.hit(key, limit, rule.cost), "memory")


def _unlimited(rule: Rule) -> Decision:
    return Decision(True, rule, MAX_AMOUNT, 0.0, 0.0, "none")
