"""PrometheusMetrics: the work of a limiter as metrics; needs `pip install bot_ratelimit[metrics]`.

docs/monitoring.md lists the metrics and explains each of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.multiprocess import mark_process_dead
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "bot_ratelimit.metrics needs prometheus_client: pip install 'bot_ratelimit[metrics]'",
        name=missing.name,
    ) from None

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import check_prefix, describe_type
from bot_ratelimit.series import SERIES, SeriesObserver

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"

_Families: TypeAlias = dict[str, Any]

_shared: Final[WeakKeyDictionary[CollectorRegistry, tuple[_Families, set[str]]]] = (
    WeakKeyDictionary()
)
"""The metrics of each registry whose series have the label `prefix`, and the prefixes so far."""


class PrometheusMetrics(SeriesObserver):
    """Reports to Prometheus, at about two microseconds per decision.

    ::

        RateLimitMiddleware("5/10s", redis, observer=PrometheusMetrics())

    No label ever contains a user, a chat or a text. For each label, 100 values are kept apart, and
    all further ones become `other`. Make one object for each registry; several limiters may share
    it. It also works in the multi-process mode of prometheus_client, where it forgets the gauges of
    processes that have ended; see `forget_dead_processes`.

    Args:
        registry: Where the metrics are registered; by default the global registry.
        prefix: The key prefix of the bot, as a label `prefix` of every series. Where several bots
            share a process, give each an object with its own.

    Raises:
        ConfigError: The registry already has these metrics or is none, or the prefix is no key
            prefix.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, prefix: str | None = None
    ) -> None:
        if not isinstance(registry, CollectorRegistry):
            raise ConfigError(
                f"registry is {describe_type(registry)}: expected a CollectorRegistry; a key "
                "prefix goes into prefix="
            )
        self._prefix = () if prefix is None else (check_prefix(prefix, "prefix"),)
        self._families = _families_of(registry, prefix)
        for name, series in SERIES.items():
            if not series.labels:
                self._series(name)  # it is there from the start, with 0
        if _is_multiprocess():
            forget_dead_processes()
        super().__init__()

    def counter(self, name: str, *labels: str) -> Callable[[], None]:
        count: Callable[[], None] = self._series(name, *labels).inc
        return count

    def histogram(self, name: str, *labels: str) -> Callable[[float], None]:
        observe: Callable[[float], None] = self._series(name, *labels).observe
        return observe

    def set_gauge(self, name: str, value: float, *labels: str) -> None:
        self._series(name, *labels).set(value)

    def forget_server(self, server: str) -> None:
        # In the multi-process mode a series cannot end before its process. Until then it gets the
        # value that changes nothing: connected is the least of all processes, breaker_open the
        # largest.
        for name, neutral in (("connected", 1), ("breaker_open", 0)):
            self.set_gauge(name, neutral, server)
            if not _is_multiprocess():
                self._families[name].remove(*self._prefix, server)

    def _series(self, name: str, *labels: str) -> Any:
        values = (*self._prefix, *labels)
        family = self._families[name]
        return family.labels(*values) if values else family


def forget_dead_processes() -> None:
    """Remove the gauges of processes that have ended, in the multi-process mode.

    A process that was killed leaves `connected 0` or `slots_in_use 3` behind, which no alert
    survives. `/metrics` of `add_health` calls this before every answer; call it before you collect
    by other means. All processes must be in one container, because they are known by their pid.
    """
    directory = os.environ.get(_DIRECTORY)
    if not directory:
        return
    for file in Path(directory).glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not _runs(int(pid)):
            with suppress(FileNotFoundError):  # another process was faster
                mark_process_dead(int(pid), directory)  # type: ignore[no-untyped-call]  # of prometheus_client


def _families_of(registry: CollectorRegistry, prefix: str | None) -> _Families:
    if prefix is None:
        return _made(registry, ())
    families, prefixes = _shared.get(registry, ({}, set()))
    if not families or prefix in prefixes:
        families = _made(registry, ("prefix",))
    _shared[registry] = families, prefixes | {prefix}
    return families


def _made(registry: CollectorRegistry, more: tuple[str, ...]) -> _Families:
    families: _Families = {}
    for name, (kind, text, own, buckets, across) in SERIES.items():
        full, labels = f"bot_ratelimit_{name}", (*more, *own)
        try:
            if kind == "counter":
                families[name] = Counter(full, text, labels, registry=registry)
            elif kind == "gauge":
                families[name] = Gauge(
                    full, text, labels, registry=registry, multiprocess_mode=across
                )
            else:
                families[name] = Histogram(full, text, labels, buckets=buckets, registry=registry)
        except ValueError:
            raise ConfigError(
                "this registry already has a PrometheusMetrics: give that one to all limiters, "
                "give each bot one with its own prefix, or give this one another registry"
            ) from None
    return families


def _runs(pid: int) -> bool:
    """Whether there is a process with this number, and it has not ended."""
    with suppress(OSError):  # a system without /proc, or the process has just gone
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X")  # nobody has asked for its exit status yet
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    return True


def _is_multiprocess() -> bool:
    return _DIRECTORY in os.environ
