"""Health: whether a limiter can do its work, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bot_ratelimit.failures import Failures
from bot_ratelimit.storage.base import ConnectionStatus, Storage


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """One server that counts."""

    name: str
    connected: bool
    breaker: Literal["closed", "open"]
    """Open: the server is left alone, and tried now and then."""
    out_for: float | None
    """Seconds since it went out of reach; None if it has not."""
    latency: float | None
    """Seconds that its last answer took; None before the first."""
    scripts: bool
    """False where it refuses scripts: then MULTI/EXEC decides one fixed window, nothing else."""
    problem: str
    """What is wrong, and what to do about it; empty if nothing is."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a limiter is.

    With Redis gone for 12 seconds and `on_error="allow"`: `ok` is False, `ready` True, and
    `servers[0].out_for` 12.0.
    """

    ok: bool
    """Whether limits hold on every instance now."""
    ready: bool
    """Whether updates are answered as the policy wants: only `on_error="deny"` needs Redis."""
    source: Literal["redis", "memory"]
    """Where counts are kept."""
    policy: str
    """What answers while the storage cannot: `on_error`."""
    latency: float | None
    """Seconds that the test call of `check` took; of `health`, None."""
    problem: str
    """What is wrong, and what to do about it; empty if nothing is."""
    servers: tuple[ServerHealth, ...]
    """The servers that count, as far as they are known; none in memory."""


def health_of(
    storage: Storage,
    failures: Failures,
    on_error: str,
    test: tuple[float, str] | None = None,
) -> Health:
    """What is known of a storage, its connections and its breakers.

    Args:
        storage: Where counts are kept.
        failures: What happened to it.
        on_error: The policy.
        test: Seconds that a test call took, and what was wrong with it.
    """
    status: Callable[[], list[ConnectionStatus]] = getattr(storage, "status", list)
    found = status()
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
        problem=status.trouble
        or ("" if outage is None else outage[1])
        or _undecidable(status, failures),
    )


def _undecidable(status: ConnectionStatus, failures: Failures) -> str:
    return "" if status.uses_script else failures.undecidable(status.server)
