"""Observer: what a limiter reports to its observers; and the observer that logs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from inspect import isfunction
from typing import Any, Final, Literal, TypeAlias

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.rules.checks import number
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import ServerEvents
from bot_ratelimit.storage.loops import Ticker

log = logging.getLogger("bot_ratelimit")

Outcome: TypeAlias = Literal["allowed", "refused", "banned"]
NoticeKind: TypeAlias = Literal["message", "callback", "inline"]
NoticeResult: TypeAlias = Literal["sent", "silent", "failed"]
TurnedAway: TypeAlias = Literal["busy", "old"]
RequestOutcome: TypeAlias = Literal["sent", "failed", "flooded", "unsent"]
FloodScope: TypeAlias = Literal["chat", "bot", "draft", "action", "method"]

MAX_LABELS: Final = 100
"""How many different names are kept apart; further ones are counted as `OTHER`, because rules may
have generated names."""
OTHER: Final = "other"


class Names:
    """Limits the number of different names: further ones become `other`."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        """Return the name, or `other`."""
        if name not in self._known and len(self._known) >= MAX_LABELS:
            return OTHER
        self._known.add(name)
        return name


class Observer(ServerEvents):
    """Is told what a limiter does. Every method does nothing; override the ones that you need.

    ::

        class Alarm(Observer):
            def outage_began(self, server, kind):
                page_somebody(f"{server}: {kind}")

        RateLimitMiddleware("5/10s", redis, observer=Alarm())

    The methods are called from the event loop, in the middle of what they report. They must return
    at once and must not wait. If one raises, this is logged once and affects nothing else. Times
    are in seconds.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for what in EVENTS:
            owner = next(each for each in cls.__mro__ if what in vars(each))
            is_plain = not issubclass(owner, Observer) and owner is not ServerEvents  # a mixin
            if owner is cls or is_plain:
                setattr(cls, what, _safe(what, vars(owner)[what]))

    # -- what comes in ----------------------------------------------------------------------------

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """A hit was decided, or a handler's slot refused, after `seconds`; a `peek` is not told."""

    def waited(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """A caller of `acquire` waited for `seconds` until this decision."""

    def banned(self, key: str, seconds: float) -> None:
        """A ban of a penalty, or by hand, began; `key` says who is banned."""

    def noticed(self, kind: NoticeKind, result: NoticeResult) -> None:
        """A refused user was notified; `"silent"` means that no notice was due."""

    def slots_in_use(self, name: str, count: int) -> None:
        """This process holds `count` slots of a `Concurrency` now."""

    def in_flight(self, running: int, limit: int) -> None:
        """`running` updates are being handled now, of at most `limit`; see `InFlight`."""

    def turned_away(self, why: TurnedAway) -> None:
        """An update was not handled: the bot is `"busy"`, or the update is too `"old"`."""

    def configured(self, version: int) -> None:
        """Another version of the live limits is in force."""

    # -- what goes out ----------------------------------------------------------------------------

    def request_done(self, method: str, outcome: RequestOutcome, waited: float) -> None:
        """A request of the bot, for example `"SendMessage"`, has ended.

        `"flooded"` means that it was answered with 429 for the last time, and `"unsent"` that it
        was never sent. An edit that a newer one replaced is `"sent"`, and so is a draft that was
        kept, whatever becomes of it. `waited` is the time for which the limits delayed it.
        """

    def flood_waited(self, scope: FloodScope, seconds: float) -> None:
        """Telegram answered 429: for `seconds` nothing may be sent in the scope.

        That is the messages of one chat or of the whole bot, the drafts or the actions of a chat,
        or one method if it takes no permit, such as `deleteMessage`.
        """

    def queued(self, count: int) -> None:
        """`count` requests of this process wait to be sent now."""

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """The limiter was closed: write what is left."""


ObserverLike: TypeAlias = "Observer | Iterable[Observer] | None"

EVENTS: Final = frozenset(name for name in dir(Observer) if not name.startswith("_"))
"""The names of all methods of Observer."""


def _safe(what: str, method: Any) -> Callable[..., None]:
    """The method of an observer, whose errors are logged once and reach nobody."""
    logged = False

    def bound(self: Observer, *values: Any, **named: Any) -> None:
        method.__get__(self, type(self))(*values, **named)

    call = method if isfunction(method) else bound  # a static method, or one of the class

    @wraps(method)
    def tell(self: Observer, *values: Any, **named: Any) -> None:
        nonlocal logged
        try:
            call(self, *values, **named)
        except Exception as error:
            if not logged:
                logged = True
                log.error(
                    "The observer %s failed in %s; it is logged this once",
                    type(self).__qualname__,
                    what,
                    exc_info=error,
                )

    return tell


class Observers(Observer):
    """Any number of observers, also none, as one."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        unique = {id(each): each for each in observers}
        self.each: Final[Sequence[Observer]] = tuple(unique.values())
        for what in EVENTS:
            nothing = getattr(Observer, what)
            wanting = [each for each in self.each if getattr(type(each), what) is not nothing]
            if wanting:
                setattr(self, what, _call_of_all([getattr(each, what) for each in wanting]))
        self.times_decisions: Final = "decided" in vars(self)
        """Whether anybody wants to know how long a decision took."""


def _call_of_all(calls: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*values: Any) -> None:
        for call in calls:
            call(*values)

    return calls[0] if len(calls) == 1 else tell


def observers_of(*values: ObserverLike) -> Observers:
    """Combine observers into one.

    Raises:
        ConfigError: One of them is not an Observer, or its attributes hide methods.
    """
    found: list[Any] = []
    for value in values:
        if isinstance(value, Observers):
            found += value.each
        elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            found += value
        elif value is not None:
            found.append(value)
    for each in found:
        if not isinstance(each, Observer):
            kind = each if isinstance(each, type) else type(each)
            hint = "pass an instance" if kind is each else "derive its class from Observer"
            raise ConfigError(f"observer={kind.__qualname__}: expected an Observer; {hint}")
        for what in sorted(EVENTS & getattr(each, "__dict__", {}).keys()):
            raise ConfigError(
                f"observer={type(each).__qualname__}: the attribute {what!r} hides a method of "
                "Observer: expected the method in the class, or another name for the attribute"
            )
    return Observers(found)


def outcome_of(decision: Decision) -> Outcome:
    """The outcome of a hit in one word."""
    if decision.allowed:
        return "allowed"
    return "banned" if decision.banned else "refused"


class LogObserver(Observer):
    """Writes refusals at DEBUG, and once a minute a summary at INFO, if anything happened.

    ::

        INFO bot_ratelimit: Last 60 s: 1204 allowed, 31 refused (user: 28, ai: 3)

    Args:
        every: Seconds between summaries.
        logger: Where to write.
    """

    def __init__(self, every: float = 60.0, logger: logging.Logger = log) -> None:
        if not number(every) > 0:
            raise ConfigError(f"every={every!r}: expected seconds above 0, for example 60.0")
        self._every = every
        self._log = logger
        self._allowed = 0
        self._unlimited = 0
        self._refused: Counter[str] = Counter()
        self._names = Names()
        self._ticker = Ticker(self._tick, every)
        self._since = 0.0

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """Count a decision; log a refusal."""
        if decision.allowed:
            self._allowed += 1
        else:
            self._refused[self._names(decision.rule.label)] += 1
            if self._log.isEnabledFor(logging.DEBUG):
                self._log.debug(
                    "%s by '%s' for %.3g s: %s (%s)",
                    outcome_of(decision).capitalize(),
                    decision.rule,
                    decision.retry_after,
                    ", ".join(f"{k} {v}" for k, v in subject._asdict().items() if v is not None),
                    decision.source,
                )
        if decision.source == "policy":
            self._unlimited += 1
        if not self._since:
            self._since = time.monotonic()
        self._ticker.start()

    def summarize(self) -> None:
        """Log a summary since the last one, if anything happened."""
        refused = self._refused.total()
        if not self._allowed and not refused:
            return
        by_rule = ", ".join(f"{label}: {n}" for label, n in self._refused.most_common())
        self._log.info(
            "Last %g s: %d allowed, %d refused%s%s",
            round(min(self._every, time.monotonic() - self._since), 2),  # less when closed
            self._allowed,
            refused,
            f" ({by_rule})" if by_rule else "",
            f"; {self._unlimited} of these without the storage" if self._unlimited else "",
        )
        self._allowed = self._unlimited = 0
        self._since = 0.0
        self._refused.clear()

    async def _tick(self) -> bool:
        self.summarize()
        return False  # until the next decision

    def close(self) -> None:
        """Log the last summary."""
        self.summarize()
