"""PrometheusMetrics: the work of a limiter as metrics; needs `pip install bot_ratelimit[metrics]`.

docs/monitoring.md lists the metrics and explains each of them.
"""

from __future__ import annotations

import os
from typing import Final

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "bot_ratelimit.metrics needs prometheus_client: pip install 'bot_ratelimit[metrics]'",
        name=missing.name,
    ) from None

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import (
    MAX_LABELS,
    OTHER,
    FloodScope,
    NoticeKind,
    NoticeResult,
    Observer,
    RequestOutcome,
    TurnedAway,
    label_of,
)
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Subject

_DECISION_BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WAIT_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class _Names:
    """Limits the number of values of a label: further ones become `other`."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= MAX_LABELS:
                return OTHER
            self._known.add(name)
        return name


class PrometheusMetrics(Observer):
    """Reports to Prometheus, at about two microseconds per decision.

    ::

        RateLimitMiddleware("5/10s", redis, observer=PrometheusMetrics())

    No label ever contains a user, a chat or a text. For each label, 100 values are kept apart, and
    all further ones become `other`. Make one object for each registry; several limiters may share
    it. It also works in the multi-process mode of prometheus_client.

    Args:
        registry: Where the metrics are registered; by default the global registry.

    Raises:
        ConfigError: The registry already has these metrics.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        try:
            self._decisions = Counter(
                "bot_ratelimit_decisions",
                "Decisions about updates; outcome is allowed, refused or banned, and shadow counts "
                "besides what shadow rules would have refused",
                ("rule", "outcome", "source"),
                registry=registry,
            )
        except ValueError:
            raise ConfigError(
                "this registry already has a PrometheusMetrics: give that one to all limiters, "
                "or another registry to this one"
            ) from None
        self._seconds = Histogram(
            "bot_ratelimit_decision_seconds",
            "Time until a decision",
            buckets=_DECISION_BUCKETS,
            registry=registry,
        )
        self._near_limit = Counter(
            "bot_ratelimit_near_limit",
            "Allowed decisions that left a fifth of the limit or less",
            ("rule",),
            registry=registry,
        )
        self._storage_failures = Counter(
            "bot_ratelimit_storage_failures",
            "Decisions that Redis did not answer, by the kind of error",
            ("kind",),
            registry=registry,
        )
        self._breaker_open = Gauge(
            "bot_ratelimit_breaker_open",
            "1 while a server is left alone after failures",
            ("server",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._connected = Gauge(
            "bot_ratelimit_connected",
            "1 while there is a connection to a server",
            ("server",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._batch_size = Histogram(
            "bot_ratelimit_batch_size",
            "Decisions that travelled to Redis in one command",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._waiting = Gauge(
            "bot_ratelimit_waiting",
            "Decisions that wait for Redis, or in acquire for their turn",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._bans = Counter("bot_ratelimit_bans", "Bans that began", registry=registry)
        self._notices = Counter(
            "bot_ratelimit_notices",
            "Notices to refused users; result is sent, silent (not the time or place) or failed",
            ("kind", "result"),
            registry=registry,
        )
        self._slots_in_use = Gauge(
            "bot_ratelimit_slots_in_use",
            "Slots of a Concurrency that are held",
            ("name",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._in_flight = Gauge(
            "bot_ratelimit_in_flight",
            "Updates that are being handled",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._in_flight_limit = Gauge(
            "bot_ratelimit_in_flight_limit",
            "How many updates may be handled at a time",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._turned_away = Counter(
            "bot_ratelimit_turned_away",
            "Updates that were not handled, because the bot is busy or they are too old",
            ["why"],
            registry=registry,
        )
        self._config_version = Gauge(
            "bot_ratelimit_config_version",
            "Version of the live configuration that is in force",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._requests = Counter(
            "bot_ratelimit_requests",
            "Requests of the bot to Telegram; outcome is sent, failed, flooded (429) or unsent",
            ("method", "outcome"),
            registry=registry,
        )
        self._request_wait = Histogram(
            "bot_ratelimit_request_wait_seconds",
            "Time for which the outgoing limits held a request back, by the kind of request",
            ("kind",),
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._acquire_wait = Histogram(
            "bot_ratelimit_acquire_wait_seconds",
            "Time for which callers of acquire waited; outcome is allowed or timeout",
            ("outcome",),
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._flood_waits = Counter(
            "bot_ratelimit_flood_waits",
            "Answers 429 of Telegram: for a chat, the whole bot, drafts, actions or a method",
            ("scope",),
            registry=registry,
        )
        self._queued = Gauge(
            "bot_ratelimit_queued",
            "Requests to Telegram that wait to be sent",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._observe_seconds = self._seconds.observe
        self._rules, self._kinds, self._servers, self._slots, self._methods = (
            _Names() for _ in range(5)
        )
        # A cache of the results of `labels`, in a tenth of its time; bounded like the labels.
        self._by_rule: dict[tuple[str, str, str], Counter] = {}
        self._near_by_rule: dict[str, Counter] = {}
        self._waiting_at: dict[str, int] = {}

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """See `Observer.decided`."""
        allowed, rule, remaining, _, _, source, shadows, banned, _ = decision
        path = rule.path
        outcome = "allowed" if allowed else "banned" if banned else "refused"
        counter = self._by_rule.get((path, outcome, source))
        if counter is None:
            counter = self._counter(path, label_of(rule), outcome, source)
        counter.inc()
        self._observe_seconds(seconds)
        limit = rule.limit
        if allowed and type(limit) is Limit and remaining * 5 <= limit.capacity:
            near = self._near_by_rule.get(path)
            (near or self._near_counter(path, label_of(rule))).inc()
        for shadow in shadows:
            self._counter(shadow.path, label_of(shadow), "shadow", source).inc()

    def waited(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """See `Observer.waited`."""
        self._acquire_wait.labels("allowed" if decision.allowed else "timeout").observe(seconds)

    def waiting(self, place: str, count: int) -> None:
        """See `Observer.waiting`."""
        self._waiting_at[place] = count
        self._waiting.set(sum(self._waiting_at.values()))

    def banned(self, key: str, seconds: float) -> None:
        """See `Observer.banned`."""
        self._bans.inc()

    def noticed(self, kind: NoticeKind, result: NoticeResult) -> None:
        """See `Observer.noticed`."""
        self._notices.labels(kind, result).inc()

    def slots_in_use(self, name: str, count: int) -> None:
        """See `Observer.slots_in_use`."""
        self._slots_in_use.labels(self._slots(name)).set(count)

    def in_flight(self, running: int, limit: int) -> None:
        """See `Observer.in_flight`."""
        self._in_flight.set(running)
        self._in_flight_limit.set(limit)

    def turned_away(self, why: TurnedAway) -> None:
        """See `Observer.turned_away`."""
        self._turned_away.labels(why).inc()

    def configured(self, version: int) -> None:
        """See `Observer.configured`."""
        self._config_version.set(version)

    def storage_failed(self, server: str, kind: str) -> None:
        """See `Observer.storage_failed`."""
        self._storage_failures.labels(self._kinds(kind)).inc()

    def breaker_changed(self, server: str, is_open: bool) -> None:
        """See `Observer.breaker_changed`."""
        self._breaker_open.labels(self._servers(server)).set(is_open)

    def connected(self, server: str) -> None:
        """See `Observer.connected`."""
        self._connected.labels(self._servers(server)).set(1)
        self._breaker_open.labels(self._servers(server))  # 0 until it opens

    def disconnected(self, server: str) -> None:
        """See `Observer.disconnected`."""
        self._connected.labels(self._servers(server)).set(0)

    def closed(self, server: str) -> None:
        """See `Observer.closed`; the series end, so that this does not look like an outage."""
        self._waiting_at.pop(server, None)
        self._waiting.set(sum(self._waiting_at.values()))
        if not _is_multiprocess():  # in that mode, only the metrics of running processes count
            name = self._servers(server)
            for gauge in (self._connected, self._breaker_open):
                gauge.labels(name)
                gauge.remove(name)

    def batch_answered(self, server: str, size: int, seconds: float) -> None:
        """See `Observer.batch_answered`."""
        self._batch_size.observe(size)

    def request_done(self, method: str, outcome: RequestOutcome, waited: float) -> None:
        """See `Observer.request_done`."""
        from bot_ratelimit.outgoing.methods import kind_of

        self._requests.labels(self._methods(method), outcome).inc()
        self._request_wait.labels(kind_of(method)).observe(waited)

    def flood_waited(self, scope: FloodScope, seconds: float) -> None:
        """See `Observer.flood_waited`."""
        self._flood_waits.labels(scope).inc()

    def queued(self, count: int) -> None:
        """See `Observer.queued`."""
        self._queued.set(count)

    def _counter(self, path: str, label: str, outcome: str, source: str) -> Counter:
        counter = self._decisions.labels(self._rules(label), outcome, source)
        if len(self._by_rule) < 8 * MAX_LABELS:
            self._by_rule[path, outcome, source] = counter
        return counter

    def _near_counter(self, path: str, label: str) -> Counter:
        counter = self._near_limit.labels(self._rules(label))
        if len(self._near_by_rule) < MAX_LABELS:
            self._near_by_rule[path] = counter
        return counter


def _is_multiprocess() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ
