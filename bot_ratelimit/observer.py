"""Observer: what a limiter tells those who watch it; and the log observer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Any, Final, Literal, TypeAlias

from bot_ratelimit.decision import Decision
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rule import Rule, Subject

log = logging.getLogger("bot_ratelimit")

Outcome: TypeAlias = Literal["allowed", "refused", "banned"]
NoticeKind: TypeAlias = Literal["message", "callback", "inline"]
NoticeResult: TypeAlias = Literal["sent", "silent", "failed"]
RequestOutcome: TypeAlias = Literal["sent", "failed", "flooded", "unsent"]
FloodScope: TypeAlias = Literal["chat", "bot", "method"]

MAX_LABELS: Final = 100
"""Different names that are kept apart; further ones are `OTHER`. Rules may have generated names."""
OTHER: Final = "other"


class Observer:
    """Hears what a limiter does. Every method does nothing; override those that you need.

    ::

        class Alarm(Observer):
            def outage_began(self, server, kind):
                page_somebody(f"{server}: {kind}")

        RateLimitMiddleware("5/10s", redis, observer=Alarm())

    Methods are called from the event loop, in the middle of what they tell of: they must return at
    once, and must not wait. One that raises is logged once and disturbs nobody. Times are seconds.
    """

    # -- what comes in ----------------------------------------------------------------------------

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """A hit was decided, after so many seconds; looks (`peek`) are not told."""

    def waited(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """A caller of `acquire` waited so long, for the decision that ended it."""

    def waiting(self, place: str, count: int) -> None:
        """So many wait now: `place` is a server whose answer they wait for, or `"acquire"`."""

    def banned(self, key: str, seconds: float) -> None:
        """A ban began, by a penalty or by hand; the key that holds it says whose it is."""

    def noticed(self, kind: NoticeKind, result: NoticeResult) -> None:
        """A refused user was told; `"silent"` means that it was not the time or place to."""

    def slots_in_use(self, name: str, count: int) -> None:
        """So many slots of a `Concurrency` are held by this process now."""

    def configured(self, version: int) -> None:
        """Another version of the live configuration is in force."""

    # -- the storage ------------------------------------------------------------------------------

    def storage_failed(self, server: str, kind: str) -> None:
        """A decision has no answer of its storage; `kind` is that of `StorageError`."""

    def outage_began(self, server: str, kind: str) -> None:
        """A server stopped answering; the policy (`on_error`) answers for it."""

    def outage_ended(self, server: str, seconds: float) -> None:
        """A server answers again, after so long."""

    def breaker_changed(self, server: str, is_open: bool) -> None:
        """The circuit breaker of a server opened, or closed."""

    def connected(self, server: str) -> None:
        """The connection to a server is there."""

    def disconnected(self, server: str) -> None:
        """The connection was lost, or could not be opened; it is tried again."""

    def closed(self, server: str) -> None:
        """The connection was closed on purpose; nothing more is told of it."""

    def batch_answered(self, server: str, size: int, seconds: float) -> None:
        """A command with so many decisions was answered, after so long."""

    # -- what goes out ----------------------------------------------------------------------------

    def request_done(self, method: str, outcome: RequestOutcome, waited: float) -> None:
        """A request of the bot, such as `"SendMessage"`, came to its end.

        `"flooded"` was answered with 429 for the last time, `"unsent"` never left; `waited` is the
        time that the limits held it back.
        """

    def flood_waited(self, scope: FloodScope, seconds: float) -> None:
        """Telegram answered 429: nothing may be sent for so long.

        To one chat, by this bot at all, or by the method that was called, if it is one that takes
        no place, such as `deleteMessage`.
        """

    def queued(self, count: int) -> None:
        """So many requests wait to be sent by this process now."""

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """The limiter was closed: write down what is left."""


ObserverLike: TypeAlias = "Observer | Iterable[Observer] | None"


class Observers(Observer):
    """Several observers as one, which never raises."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.each: Final = tuple({id(each): each for each in observers}.values())
        """Who listens, each once."""
        # Called for every update, so only those that want to know are.
        self._decided = tuple(
            (each, each.decided) for each in self.each if type(each).decided is not Observer.decided
        )
        self._batch_answered = tuple(
            (each, each.batch_answered)
            for each in self.each
            if type(each).batch_answered is not Observer.batch_answered
        )
        self._failed: set[tuple[int, str]] = set()

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """See `Observer.decided`."""
        for each, decided in self._decided:
            try:
                decided(decision, subject, seconds)
            except Exception as error:
                self._report(each, "decided", error)

    def batch_answered(self, server: str, size: int, seconds: float) -> None:
        """See `Observer.batch_answered`."""
        for each, batch_answered in self._batch_answered:
            try:
                batch_answered(server, size, seconds)
            except Exception as error:
                self._report(each, "batch_answered", error)

    def tell(self, what: str, *values: Any) -> None:
        """Call this method of everybody."""
        for each in self.each:
            try:
                getattr(each, what)(*values)
            except Exception as error:
                self._report(each, what, error)

    def _report(self, observer: Observer, what: str, error: Exception) -> None:
        if (id(observer), what) not in self._failed:
            self._failed.add((id(observer), what))
            log.error(
                "The observer %s failed in %s; it is logged this once",
                type(observer).__qualname__,
                what,
                exc_info=error,
            )


def _forward(what: str) -> Callable[..., None]:
    def tell(self: Observers, *values: Any) -> None:
        self.tell(what, *values)

    return tell


EVENTS: Final = frozenset(name for name in vars(Observer) if not name.startswith("_"))
"""The names of the methods of an Observer."""
for _what in EVENTS - set(vars(Observers)):
    setattr(Observers, _what, _forward(_what))


def observers_of(*values: ObserverLike) -> Observers | None:
    """All of them as one; None if there is none.

    Raises:
        ConfigError: One of them is not an Observer.
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
    return Observers(found) if found else None


def label_of(rule: Rule) -> str:
    """How metrics, statistics and the log name a rule: what stands in its keys before the ids.

    ==============================  ============
    `Rule("1/s")`                   `user`
    `Rule("5/m", name="ai")`        `ai`
    `Rule("20/m", Scope.CHAT)`      `chat`
    `Penalty("10/m", "15m")`        `ban`
    ==============================  ============
    """
    return rule.path.rstrip(":") or "user"


def outcome_of(decision: Decision) -> Outcome:
    """What became of the hit, in a word."""
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
        if not every > 0:
            raise ConfigError(f"every={every!r}: expected seconds above 0, for example 60.0")
        self._every = every
        self._log = logger
        self._allowed = 0
        self._unlimited = 0
        self._refused: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """Count it; write a refusal down."""
        if decision.allowed:
            self._allowed += 1
        else:
            label = label_of(decision.rule)
            if label not in self._refused and len(self._refused) >= MAX_LABELS:
                label = OTHER
            self._refused[label] += 1
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
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._every, self.summarize, context=Context())

    def summarize(self) -> None:
        """Write what happened since the last summary; nothing if nothing did."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        refused = self._refused.total()
        if not self._allowed and not refused:
            return
        by_rule = ", ".join(f"{label}: {n}" for label, n in self._refused.most_common())
        self._log.info(
            "Last %g s: %d allowed, %d refused%s%s",
            self._every,
            self._allowed,
            refused,
            f" ({by_rule})" if by_rule else "",
            f"; {self._unlimited} of these without the storage" if self._unlimited else "",
        )
        self._allowed = self._unlimited = 0
        self._refused.clear()

    def close(self) -> None:
        """Write the last summary."""
        self.summarize()
