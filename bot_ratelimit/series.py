"""What is measured: the series for Prometheus and OpenTelemetry, and what fills them."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import (
    MAX_LABELS,
    FloodScope,
    Names,
    NoticeKind,
    NoticeResult,
    Observer,
    RequestOutcome,
    TurnedAway,
)
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Subject

Across = Literal["livesum", "livemin", "livemax"]


class Series(NamedTuple):
    """A metric: what it is, its labels, and its buckets or how processes add up."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Across = "livesum"
    """How the gauges of several processes become one."""


_WAIT_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SERIES: Final[dict[str, Series]] = {
    "decisions": Series(
        "counter",
        "Decisions about updates; outcome is allowed, refused or banned, and shadow counts besides "
        "what shadow rules would have refused",
        ("rule", "outcome", "source"),
    ),
    "decision_seconds": Series(
        "histogram",
        "Time until a decision",
        buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    ),
    "near_limit": Series(
        "counter", "Allowed decisions that left a fifth of the limit or less", ("rule",)
    ),
    "storage_failures": Series(
        "counter", "Decisions that Redis did not answer, by the kind of error", ("kind",)
    ),
    "breaker_open": Series(
        "gauge", "1 while a server is left alone after failures", ("server",), across="livemax"
    ),
    "connected": Series(
        "gauge", "1 while there is a connection to a server", ("server",), across="livemin"
    ),
    "batch_size": Series(
        "histogram",
        "Decisions that travelled to Redis in one command",
        buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    ),
    "waiting": Series("gauge", "Decisions that wait for Redis, or in acquire for their turn"),
    "bans": Series("counter", "Bans that began"),
    "notices": Series(
        "counter",
        "Notices to refused users; result is sent, silent (not the time or place) or failed",
        ("kind", "result"),
    ),
    "slots_in_use": Series("gauge", "Slots of a Concurrency that are held", ("name",)),
    "in_flight": Series("gauge", "Updates that are being handled"),
    "in_flight_limit": Series("gauge", "How many updates may be handled at a time"),
    "turned_away": Series(
        "counter",
        "Updates that were not handled, because the bot is busy or they are too old",
        ("why",),
    ),
    "config_version": Series(
        "gauge", "Version of the live configuration that is in force", across="livemin"
    ),
    "requests": Series(
        "counter",
        "Requests of the bot to Telegram; outcome is sent, failed, flooded (429) or unsent",
        ("method", "outcome"),
    ),
    "request_wait_seconds": Series(
        "histogram",
        "Time for which the outgoing limits held a request back, by the kind of request",
        ("kind",),
        buckets=_WAIT_BUCKETS,
    ),
    "acquire_wait_seconds": Series(
        "histogram",
        "Time for which callers of acquire waited; outcome is allowed or timeout",
        ("outcome",),
        buckets=_WAIT_BUCKETS,
    ),
    "flood_waits": Series(
        "counter",
        "Answers 429 of Telegram: for a chat, the whole bot, drafts, actions or a method",
        ("scope",),
    ),
    "queued": Series("gauge", "Requests to Telegram that wait to be sent"),
}
"""All series by their names; docs/monitoring.md explains each."""


class SeriesObserver(Observer):
    """Turns what a limiter does into series; derived classes say where the series go.

    No label ever contains a user, a chat or a text. For each label, 100 values are kept apart, and
    all further ones become `other`.
    """

    def __init__(self) -> None:
        self._observe_seconds = self.histogram("decision_seconds")
        self._observe_batch = self.histogram("batch_size")
        self._rules, self._kinds, self._servers, self._slots, self._methods = (
            Names() for _ in range(5)
        )
        # The results of `counter`, which takes ten times as long; bounded like the labels.
        self._by_rule: dict[tuple[str, str, str], Callable[[], None]] = {}
        self._near_by_rule: dict[str, Callable[[], None]] = {}
        self._waiting_at: dict[str, int] = {}
        self._is_open: dict[str, bool] = {}  # the circuit breaker of each server
        self._connections = Counter[str]()  # to each server: several limiters may use it

    @abstractmethod
    def counter(self, name: str, *labels: str) -> Callable[[], None]:
        """Return what counts one more in a series."""

    @abstractmethod
    def histogram(self, name: str, *labels: str) -> Callable[[float], None]:
        """Return what adds a value to a series."""

    @abstractmethod
    def set_gauge(self, name: str, value: float, *labels: str) -> None:
        """Set the present value of a series."""

    @abstractmethod
    def forget_server(self, server: str) -> None:
        """End `connected` and `breaker_open` of a server that was closed on purpose."""

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        allowed, rule, remaining, _, _, source, shadows, banned, _ = decision
        path = rule.path
        outcome = "allowed" if allowed else "banned" if banned else "refused"
        count = self._by_rule.get((path, outcome, source))
        if count is None:
            count = self._counter(path, rule.label, outcome, source)
        count()
        self._observe_seconds(seconds)
        limit = rule.limit
        if allowed and type(limit) is Limit and remaining * 5 <= limit.capacity:
            (self._near_by_rule.get(path) or self._near_counter(path, rule.label))()
        for shadow in shadows:
            self._counter(shadow.path, shadow.label, "shadow", source)()

    def waited(self, decision: Decision, subject: Subject, seconds: float) -> None:
        outcome = "allowed" if decision.allowed else "timeout"
        self.histogram("acquire_wait_seconds", outcome)(seconds)

    def waiting(self, place: str, count: int) -> None:
        self._waiting_at[place] = count
        self.set_gauge("waiting", sum(self._waiting_at.values()))

    def banned(self, key: str, seconds: float) -> None:
        self.counter("bans")()

    def noticed(self, kind: NoticeKind, result: NoticeResult) -> None:
        self.counter("notices", kind, result)()

    def slots_in_use(self, name: str, count: int) -> None:
        self.set_gauge("slots_in_use", count, self._slots(name))

    def in_flight(self, running: int, limit: int) -> None:
        self.set_gauge("in_flight", running)
        self.set_gauge("in_flight_limit", limit)

    def turned_away(self, why: TurnedAway) -> None:
        self.counter("turned_away", why)()

    def configured(self, version: int) -> None:
        self.set_gauge("config_version", version)

    def storage_failed(self, server: str, kind: str) -> None:
        self.counter("storage_failures", self._kinds(kind))()

    def breaker_changed(self, server: str, is_open: bool) -> None:
        name = self._servers(server)
        self._is_open[name] = is_open
        self.set_gauge("breaker_open", is_open, name)

    def connected(self, server: str) -> None:
        name = self._servers(server)
        self._connections[name] += 1
        self.set_gauge("connected", 1, name)
        self.set_gauge("breaker_open", self._is_open.setdefault(name, False), name)

    def disconnected(self, server: str) -> None:
        name = self._servers(server)
        self._connections[name] = max(0, self._connections[name] - 1)
        self.set_gauge("connected", 0, name)

    def closed(self, server: str) -> None:
        # The series end, so that this does not look like an outage.
        self._waiting_at.pop(server, None)
        self.set_gauge("waiting", sum(self._waiting_at.values()))
        name = self._servers(server)
        self._connections[name] -= 1
        if self._connections[name] <= 0:
            del self._connections[name]
            self._is_open.pop(name, None)
            self.forget_server(name)

    def batch_answered(self, server: str, size: int, seconds: float) -> None:
        self._observe_batch(size)

    def request_done(self, method: str, outcome: RequestOutcome, waited: float) -> None:
        from bot_ratelimit.outgoing.methods import kind_of

        self.counter("requests", self._methods(method), outcome)()
        self.histogram("request_wait_seconds", kind_of(method))(waited)

    def flood_waited(self, scope: FloodScope, seconds: float) -> None:
        self.counter("flood_waits", scope)()

    def queued(self, count: int) -> None:
        self.set_gauge("queued", count)

    def _counter(self, path: str, label: str, outcome: str, source: str) -> Callable[[], None]:
        count = self.counter("decisions", self._rules(label), outcome, source)
        if len(self._by_rule) < 8 * MAX_LABELS:
            self._by_rule[path, outcome, source] = count
        return count

    def _near_counter(self, path: str, label: str) -> Callable[[], None]:
        count = self.counter("near_limit", self._rules(label))
        if len(self._near_by_rule) < MAX_LABELS:
            self._near_by_rule[path] = count
        return count
