"""OpenTelemetryMetrics: the work of a limiter as metrics; needs `pip install bot_ratelimit[otel]`.

Only the API of OpenTelemetry is needed here. Where the metrics go is up to the SDK of the program.
docs/monitoring.md lists the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "bot_ratelimit.otel needs opentelemetry-api: pip install 'bot_ratelimit[otel]'",
        name=missing.name,
    ) from None

from bot_ratelimit.series import SERIES, SeriesObserver

NAMES: Final[dict[str, tuple[str, str]]] = {
    "decisions": ("bot_ratelimit.decisions", "{decision}"),
    "decision_seconds": ("bot_ratelimit.decision.duration", "s"),
    "near_limit": ("bot_ratelimit.decisions.near_limit", "{decision}"),
    "storage_failures": ("bot_ratelimit.storage.failures", "{decision}"),
    "breaker_open": ("bot_ratelimit.storage.breaker_open", "1"),
    "connected": ("bot_ratelimit.storage.connected", "1"),
    "batch_size": ("bot_ratelimit.storage.batch.size", "{decision}"),
    "waiting": ("bot_ratelimit.decisions.waiting", "{decision}"),
    "bans": ("bot_ratelimit.bans", "{ban}"),
    "notices": ("bot_ratelimit.notices", "{notice}"),
    "slots_in_use": ("bot_ratelimit.slots.in_use", "{slot}"),
    "in_flight": ("bot_ratelimit.updates.in_flight", "{update}"),
    "in_flight_limit": ("bot_ratelimit.updates.in_flight.limit", "{update}"),
    "turned_away": ("bot_ratelimit.updates.turned_away", "{update}"),
    "config_version": ("bot_ratelimit.config.version", "1"),
    "requests": ("bot_ratelimit.requests", "{request}"),
    "request_wait_seconds": ("bot_ratelimit.request.wait.duration", "s"),
    "acquire_wait_seconds": ("bot_ratelimit.acquire.wait.duration", "s"),
    "flood_waits": ("bot_ratelimit.flood_waits", "{answer}"),
    "queued": ("bot_ratelimit.requests.queued", "{request}"),
}
"""The name and the unit of each series of `SERIES`."""

_ATTRIBUTES: Final = {
    ("storage_failures", "kind"): "error.type",
    ("breaker_open", "server"): "server.address",
    ("connected", "server"): "server.address",
}
"""What the semantic conventions have names for; all others begin with `bot_ratelimit.`."""


class OpenTelemetryMetrics(SeriesObserver):
    """Reports to OpenTelemetry.

    ::

        RateLimitMiddleware("5/10s", redis, observer=OpenTelemetryMetrics())

    No attribute ever contains a user, a chat or a text. For each attribute, 100 values are kept
    apart, and all further ones become `other`. Several limiters may share one object.

    Args:
        meter_provider: Where the metrics go; by default the global provider, also if it is set
            later.
        prefix: The key prefix of the bot, as an attribute `bot_ratelimit.prefix` of everything.
            Where several bots share a process, give each an object with its own.
    """

    def __init__(
        self, meter_provider: MeterProvider | None = None, *, prefix: str | None = None
    ) -> None:
        self._common = {} if prefix is None else {"bot_ratelimit.prefix": prefix}
        self._gauges: dict[str, dict[tuple[str, ...], float]] = {}
        meter = get_meter("bot_ratelimit", meter_provider=meter_provider)
        self._instruments: dict[str, Any] = {}
        for name, series in SERIES.items():
            full, unit = NAMES[name]
            if series.kind == "counter":
                made: Any = meter.create_counter(full, unit, series.text)
            elif series.kind == "histogram":
                made = meter.create_histogram(
                    full, unit, series.text, explicit_bucket_boundaries_advisory=series.buckets
                )
            else:
                self._gauges[name] = {}
                made = meter.create_observable_gauge(
                    full, [partial(self._read_gauge, name)], unit, series.text
                )
            self._instruments[name] = made
        super().__init__()

    def counter(self, name: str, *labels: str) -> Callable[[], None]:
        return partial(self._instruments[name].add, 1, self._attributes(name, labels))

    def histogram(self, name: str, *labels: str) -> Callable[[float], None]:
        return partial(self._instruments[name].record, attributes=self._attributes(name, labels))

    def set_gauge(self, name: str, value: float, *labels: str) -> None:
        self._gauges[name][labels] = value

    def forget_server(self, server: str) -> None:
        for name in ("connected", "breaker_open"):
            self._gauges[name].pop((server,), None)

    def _read_gauge(self, name: str, _: CallbackOptions) -> Iterable[Observation]:
        # A copy: the SDK reads in a thread of its own.
        return [
            Observation(value, self._attributes(name, labels))
            for labels, value in self._gauges[name].copy().items()
        ]

    def _attributes(self, name: str, values: tuple[str, ...]) -> dict[str, str]:
        labels = SERIES[name].labels
        names = [_ATTRIBUTES.get((name, label), f"bot_ratelimit.{label}") for label in labels]
        return {**self._common, **dict(zip(names, values, strict=True))}
