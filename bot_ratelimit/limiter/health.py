"""Health: whether a limiter works, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bot_ratelimit.limiter.failures import Failures
from bot_ratelimit.storage.base import ConnectionStatus, Storage


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """How one Redis server is.

    Attributes:
        name: Its address as logs name it, for example `127.0.0.1:6379`.
        connected: Whether there is a connection to it.
        breaker: `"closed"`, or `"open"` while nothing but a probe now and then is sent to it.
        out_for: Seconds since it stopped answering; None while it answers.
        latency: Seconds that its last answer took; None before the first.
        scripts: False if it refuses scripts; then only a single fixed window can be decided there.
        problem: What is wrong, and how to fix it; empty if nothing is.
    """

    name: str
    connected: bool
    breaker: Literal["closed", "open"]
    out_for: float | None
    latency: float | None
    scripts: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Health:
    """How a limiter is, as `Limiter.health` and `Limiter.check` return it.

    With Redis gone for 12 seconds and `on_error="allow"`: `ok` is False, `ready` True, and
    `servers[0].out_for` 12.0.

    Attributes:
        ok: Whether limits hold on every instance now.
        ready: Whether the bot can serve updates: False only with `on_error="deny"` while Redis
            does not answer.
        source: Where counts are kept.
        policy: What answers while the storage cannot: the limiter's `on_error`.
        latency: Seconds that the test call of `check` took; None from `health`.
        problem: What is wrong, and how to fix it; empty if nothing is.
        servers: The Redis servers, as far as they are known; empty in memory.
    """

    ok: bool
    ready: bool
    source: str
    policy: str
    latency: float | None
    problem: str
    servers: tuple[ServerHealth, ...]


def health_of(
    storage: Storage,
    failures: Failures,
    on_error: str,
    test: tuple[float, str] | None = None,
) -> Health:
    """Collect what is known of a storage, its connections and its breakers.

    Args:
        storage: Where counts are kept.
        failures: Its circuit breakers and outages.
        on_error: The policy.
        test: The time of a test call in seconds, and its problem.
    """
    found = storage.status()
    servers = tuple(_server(each, failures) for each in found)
    known = {server.name for server in servers}
    gone = [
        outage[1]
        for name in failures.breakers()
        if name not in known and (outage := failures.outage(name))
    ]
    unable = [_undecidable(each, failures) for each in found]
    problems = [*(server.problem for server in servers), *gone]
    latency, problem = test or (None, next(filter(None, problems), ""))
    problem = problem or next(filter(None, unable), "")
    return Health(
        ok=not problem,
        ready=not problem or on_error != "deny",
        source=storage.source,
        policy=on_error,
        latency=latency,
        problem=problem,
        servers=servers,
    )


def _server(status: ConnectionStatus, failures: Failures) -> ServerHealth:
    outage = failures.outage(status.server)
    breaker = failures.breakers().get(status.server)
    return ServerHealth(
        name=status.server,
        connected=status.is_open,
        breaker="closed" if breaker is None or breaker.closed else "open",
        out_for=None if outage is None else outage[0],
        latency=status.latency,
        scripts=status.uses_script,
        problem=status.last_error
        or ("" if outage is None else outage[1])
        or _undecidable(status, failures),
    )


def _undecidable(status: ConnectionStatus, failures: Failures) -> str:
    return "" if status.uses_script else failures.undecidable(status.server)
