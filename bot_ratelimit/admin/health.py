"""Health and metrics over HTTP, for the web server of a bot: `/health`, `/ready`, `/metrics`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.health import Health
from bot_ratelimit.limiter.limiter import Limiter

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler
    from prometheus_client.registry import Collector

    from bot_ratelimit.incoming.middleware import RateLimitMiddleware


def add_health(
    app: web.Application,
    limiter: Limiter | RateLimitMiddleware,
    *,
    registry: Collector | None = None,
    details: bool = False,
) -> web.Application:
    """Add three pages to an application, for example to that of a webhook.

    ::

        add_health(app, middleware)

    ============  ==================================================================================
    `/health`     200 while the process runs: for what restarts it
    `/ready`      200 if the bot can serve updates, else 503; it makes a test call
    `/metrics`    the metrics of the registry; only with prometheus_client installed
    ============  ==================================================================================

    Keep them inside your network: let the proxy in front of a webhook pass only its path.

    Args:
        app: Where to add them, before it is started.
        limiter: The limiter to check, or the middleware that has it.
        registry: Metrics to show; prometheus_client's own unless given. In its multi-process mode,
            the sums over all processes.
        details: Whether `/ready` also says which servers there are, and what is wrong with them.

    Raises:
        ConfigError: This is neither a limiter nor a middleware.
    """
    checked = getattr(limiter, "limiter", limiter)
    if not isinstance(checked, Limiter):
        raise ConfigError(
            f"limiter is a {type(limiter).__name__}: expected a Limiter or a RateLimitMiddleware"
        )

    async def ready(_: web.Request) -> web.Response:
        health = await checked.check()
        live = getattr(limiter, "live", None)  # of a middleware with live=True
        is_paused = live is not None and live.all_off  # then no decision needs the storage
        found = _described(health, details, is_paused=is_paused)
        return web.json_response(found, status=503 if found["status"] == "unavailable" else 200)

    app.router.add_get("/health", _alive)
    app.router.add_get("/ready", ready)
    if (metrics := _metrics(registry)) is not None:
        app.router.add_get("/metrics", metrics)
    return app


def health_app(
    limiter: Limiter | RateLimitMiddleware,
    *,
    registry: Collector | None = None,
    details: bool = False,
) -> web.Application:
    """An application with only these pages, for a separate port; see `add_health`."""
    return add_health(web.Application(), limiter, registry=registry, details=details)


async def _alive(_: web.Request) -> web.Response:
    return web.json_response({"status": "alive"})


def _described(health: Health, details: bool, *, is_paused: bool) -> dict[str, Any]:
    is_fine = health.ok and not is_paused
    status = "ready" if is_fine else "degraded" if health.ready or is_paused else "unavailable"
    found: dict[str, Any] = {
        "status": status,
        "storage": health.source,
        "on_error": health.policy,
        "all_limits_off": is_paused,
        "latency_ms": None if health.latency is None else round(health.latency * 1_000, 3),
    }
    if details:
        found["problem"] = health.problem
        names = ("name", "connected", "breaker", "out_for", "scripts")
        found["servers"] = [
            {each: getattr(server, each) for each in names} for server in health.servers
        ]
    return found


def _metrics(registry: Collector | None) -> Handler | None:
    try:
        from prometheus_client import (
            CONTENT_TYPE_LATEST,
            REGISTRY,
            CollectorRegistry,
            generate_latest,
        )
        from prometheus_client.multiprocess import MultiProcessCollector
    except ImportError:
        return None
    from bot_ratelimit.metrics import forget_dead_processes

    shown: Any = REGISTRY if registry is None else registry
    if registry is None and "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        shown = CollectorRegistry()
        MultiProcessCollector(shown)  # type: ignore[no-untyped-call]  # of prometheus_client

    async def metrics(_: web.Request) -> web.Response:
        forget_dead_processes()
        return web.Response(
            body=generate_latest(shown), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    return metrics
