"""Admission: whether an event is handled, which is decided once in each dispatch."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from time import perf_counter
from typing import Any, Final, NamedTuple, TypeAlias

from aiogram.types import TelegramObject, Update

from bot_ratelimit.config.live import Live
from bot_ratelimit.incoming.backlog import Backlog
from bot_ratelimit.incoming.bound_decision import BoundDecision
from bot_ratelimit.incoming.dispatch_state import DEADLINE, NEWEST, REFUSED, dispatch_state
from bot_ratelimit.incoming.event_filter import Counted, EventFilter
from bot_ratelimit.incoming.functions import chosen, needs_event
from bot_ratelimit.incoming.telling import Telling
from bot_ratelimit.limiter.decision import NO_LIMIT, Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rules, Subject
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

Handler: TypeAlias = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

DATA_KEY: Final = "rate_limit"
"""The key of the Decision in a handler's data: `async def handler(message, rate_limit)`."""

_NOBODY: Final = Subject()
_NOT_ASKED: Final = Counted(_NOBODY, None)
"""Default: nobody has asked yet whether the event counts."""


class Dispatch(NamedTuple):
    """One event on its way to its handler."""

    handler: Handler
    """The next middleware or the handler."""
    event: TelegramObject
    """What the handler takes."""
    inner: TelegramObject
    """The event, or what it carries if it is an update."""
    update: Update | None
    """The update, if it is known."""
    data: dict[str, Any]
    """The data that aiogram passes along with the event."""


class _Notes:
    """What was charged in a dispatch by middlewares that have a rule in common."""

    def __init__(self) -> None:
        self._charged: list[tuple[Rules, Counted, BoundDecision | None]] = []

    def due(self, rules: Rules, counted: Counted) -> Rules:
        """The rules that are still to be charged for this; empty if all of them were."""
        done = [rule for others, who, _ in self._charged if who == counted for rule in others]
        if all(rule in done for rule in rules):
            return Rules()
        # A penalty counts what the others refuse, so it is never left out.
        return Rules(each for each in rules if each not in done or isinstance(each, Penalty))

    def last(self, counted: Counted) -> BoundDecision | None:
        """The last decision about this, if there was one."""
        made = [bound for _, who, bound in self._charged if who == counted and bound is not None]
        return made[-1] if made else None

    def add(self, due: Rules, counted: Counted, decision: BoundDecision | None) -> None:
        """Note that these rules were charged."""
        self._charged.append((due, counted, decision))


class Admission:
    """Passes an event to its handler with the Decision, or refuses it and tells the user."""

    def __init__(
        self,
        limiter: Limiter,
        event_filter: EventFilter,
        telling: Telling,
        live: Live | None,
        backlog: Backlog | None,
    ) -> None:
        self._limiter = limiter
        self._event_filter = event_filter
        self._telling = telling
        self._live = live
        self._backlog = backlog
        self._failed = Seldom()
        self._is_plain = live is None and backlog is None and event_filter.is_exempt is None
        self.key_space: Hashable = None
        """Set if another middleware or a flag of the bot has one of these rules, too: an event that
        passes the same rule in the same space several times is charged to it once."""

    def handle(self, rules: Rules, key: Hashable, dispatch: Dispatch) -> Awaitable[Any]:
        """Handle the event, or refuse it by returning None.

        Args:
            rules: The rules that apply.
            key: Within a dispatch, the decision under the same key is made only once.
            dispatch: The event and its handler.
        """
        handler, event, inner, update, data = dispatch
        state = dispatch_state(data)
        if key in state or not self._is_plain or self.key_space is not None or needs_event(rules):
            return self._handle(rules, key, dispatch, _NOT_ASKED)
        # This is what every update costs, and what each of a flood keeps while it waits.
        counted = self._event_filter.counted_by_id(inner, update, data)
        if counted is None:
            state[key] = None, _NOBODY
            return self._go_on(None, _NOBODY, handler, event, inner, data)
        subject, once = counted
        deadline = state.get(DEADLINE)
        if deadline is None:
            deadline = state[DEADLINE] = Deadline(self._limiter.timeout)
        return self._hit(rules, subject, once, deadline, key, state, handler, event, inner, data)

    async def _hit(
        self,
        rules: Rules,
        subject: Subject,
        once: str | None,
        deadline: Deadline,
        key: Hashable,
        state: dict[object, Any],
        handler: Handler,
        event: TelegramObject,
        inner: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        """Handle an event that nothing but these rules is asked about."""
        try:
            answer = await self._limiter.hit(rules, subject, None, once, deadline=deadline)
        except Exception as error:  # of a scope that is a function
            decision = self._answer_by_policy(rules, error, subject)
        else:
            decision = BoundDecision.of(answer, self._limiter, rules, subject)
        state[key] = decision, subject
        return await self._go_on(decision, subject, handler, event, inner, data)

    async def _handle(
        self, rules: Rules, key: Hashable, dispatch: Dispatch, counted: Counted | None = _NOT_ASKED
    ) -> Any:
        """Handle any event; a caller that has asked already whether it counts passes `counted`."""
        handler, event, inner, update, data = dispatch
        state = dispatch_state(data)
        state.setdefault(DEADLINE, Deadline(self._limiter.timeout))
        if key not in state:
            if counted is _NOT_ASKED:
                counted = await self._event_filter.counted(inner, update, data)
            if counted is None:
                state[key] = None, _NOBODY
            elif self._is_old(inner, state):
                return None
            else:
                charged = await self._charge(rules, counted, state, dispatch)
                state[key] = charged, counted.subject
        decision, subject = state[key]
        return await self._go_on(decision, subject, handler, event, inner, data)

    def _go_on(
        self,
        decision: Decision | None,
        subject: Subject,
        handler: Handler,
        event: TelegramObject,
        inner: TelegramObject,
        data: dict[str, Any],
    ) -> Awaitable[Any]:
        """Call the handler with the decision, or tell the user, which returns None."""
        data[DATA_KEY] = decision
        if decision is None or decision.allowed:
            return handler(event, data)
        return self._telling.tell(inner, decision, subject, data)

    async def handle_in_slot(
        self, slots: Concurrency, rules: Rules, key: Hashable, dispatch: Dispatch
    ) -> Any:
        """Handle the event while it holds a slot; without a slot it is not charged either."""
        handler, event, inner, update, data = dispatch
        state = dispatch_state(data)
        held = ("slot", self._limiter.key_prefix, id(data.get("handler")))
        if held in state:  # another middleware holds it in this dispatch
            return await self.handle(rules, key, dispatch)
        counted = await self._event_filter.counted(inner, update, data)
        is_paused = self._live is not None and self._live.all_off
        if counted is None or is_paused or self._limiter.is_banned(counted.subject):
            return await self._handle(rules, key, dispatch, counted)
        if self._is_old(inner, state):
            return None
        deadline = state.setdefault(DEADLINE, Deadline(self._limiter.timeout))
        subject, began, answer = counted.subject, perf_counter(), None
        try:
            asking = self._limiter.slot(slots, subject, deadline=deadline)
        except Exception as error:  # of a scope that is a function
            asking, answer = None, self._answer_by_policy(Rules([slots]), error, subject)
        if answer is not None:
            return await self._go_on(answer, subject, handler, event, inner, data)
        if asking is None:
            return await self._handle(rules, key, dispatch, counted)
        async with asking as slot:
            decision: Decision | None = slot
            if slot.allowed:
                state[held] = slot
                try:
                    if key not in state:
                        state[key] = await self._charge(rules, counted, state, dispatch), subject
                    decision, subject = state[key]
                    if decision is None or decision.allowed:
                        return await self._go_on(decision, subject, handler, event, inner, data)
                finally:
                    del state[held]
            else:
                self._limiter.observer.decided(slot, subject, perf_counter() - began)
        # Without the slot, because nothing runs while the user is told.
        return await self._go_on(decision, subject, handler, event, inner, data)

    def _is_old(self, inner: TelegramObject, state: dict[object, Any]) -> bool:
        """Whether the event, or the newest of several that were collected, is dropped."""
        if self._backlog is None or not self._backlog.drops(state.get(NEWEST, inner)):
            return False
        state[REFUSED] = True
        return True

    def handle_uncounted(
        self, handler: Handler, event: TelegramObject, data: dict[str, Any]
    ) -> Awaitable[Any]:
        """Handle an event to which no rules apply."""
        # A guard may have decided. Anything else there belongs to the bot and is not a Decision.
        if not isinstance(data.get(DATA_KEY), Decision):
            data[DATA_KEY] = None
        return handler(event, data)

    async def _charge(
        self, rules: Rules, counted: Counted, state: dict[object, Any], dispatch: Dispatch
    ) -> Decision | None:
        """Decide and charge; None if nothing limits the subject."""
        if self._live is not None:
            if not self._live.is_ready:
                await self._live.begin_within(state[DEADLINE])
            applied = self._live.applied(rules)
            if applied is None:
                return None
            rules = applied
        try:
            if needs_event(rules):
                rules = await chosen(rules, counted.subject, dispatch.inner, dispatch.data)
            notes, due = self._notes(state), rules
            if notes is not None:
                due = notes.due(rules, counted)
                if not due:
                    return notes.last(counted)
            decision = await self._limiter.hit(
                due, counted.subject, once=counted.once, deadline=state[DEADLINE]
            )
        except Exception as error:
            return self._answer_by_policy(rules, error, counted.subject)
        if decision.source == "none":
            return None
        bound = BoundDecision.of(decision, self._limiter, rules, counted.subject)
        if notes is not None:
            if bound is None and len(due) < len(rules):  # a rule that was charged before limits
                bound = notes.last(counted)
            notes.add(due, counted, bound)
        return bound

    def _answer_by_policy(
        self, rules: Rules, error: Exception, subject: Subject
    ) -> BoundDecision | None:
        """Answer for a function of the bot that failed; None, as without a limit, allows."""
        own = (rule.on_error for rule in rules if rule.on_error is not None)
        policy, wait = next(own, self._limiter.on_error), self._limiter.timeout
        if count := self._failed.due():
            log.error(
                "The limit of %d updates is unknown, because a function of the bot failed: %r; "
                "on_error=%r answers",
                count,
                error,
                policy,
                exc_info=error,
            )
        if policy != "deny":
            return None
        answer = Decision(False, rules[0], 0, wait, wait, "policy")
        self._limiter.observer.decided(answer, subject, 0.0)
        return BoundDecision.of(answer, self._limiter, NO_LIMIT, subject)

    def _notes(self, state: dict[object, Any]) -> _Notes | None:
        if self.key_space is None:
            return None
        notes: _Notes = state.setdefault(self.key_space, _Notes())
        return notes
