"""Health and metrics over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from bot_ratelimit import ConfigError, Limiter, MemoryStorage, Subject
from bot_ratelimit.admin.health import add_health, health_app
from bot_ratelimit.metrics import PrometheusMetrics
from bot_ratelimit.testing import FlakyStorage


async def get(app: web.Application, page: str) -> tuple[int, Any]:
    """The status and the JSON, or the text, of a page."""
    async with (
        TestServer(app) as server,
        ClientSession() as session,
        session.get(server.make_url(page)) as answer,
    ):
        if answer.content_type == "application/json":
            return answer.status, await answer.json()
        return answer.status, await answer.text()


@pytest.mark.parametrize(
    ("policy", "status", "word"),
    [("allow", 200, "degraded"), ("memory", 200, "degraded"), ("deny", 503, "unavailable")],
)
async def test_ready_is_what_the_policy_needs(policy: Any, status: int, word: str) -> None:
    """Without Redis, a bot with `deny` is not ready; one with `allow` works, degraded.

    It is alive in any case: restarting a bot does not bring Redis back. Details, which are for
    internal networks, are shown on request only.
    """
    storage = FlakyStorage()
    limiter = Limiter(storage, on_error=policy)
    found, page = await get(health_app(limiter), "/ready")
    assert (found, page["status"], page["on_error"]) == (200, "ready", policy)
    assert page["all_limits_off"] is False
    storage.fail()
    found, page = await get(health_app(limiter), "/ready")
    assert (found, page["status"], page["latency_ms"]) == (status, word, None)
    assert "problem" not in page
    _, page = await get(health_app(limiter, details=True), "/ready")
    assert (page["problem"], page["servers"]) == ("out of reach", [])
    assert await get(health_app(limiter), "/health") == (200, {"status": "alive"})


async def test_metrics_are_those_of_the_registry() -> None:
    """The page shows what the observer counted; a storage instead of the limiter is named."""
    registry = CollectorRegistry()
    limiter = Limiter(MemoryStorage(), observer=PrometheusMetrics(registry))
    await limiter.hit("1/s", Subject(user=42))
    status, text = await get(add_health(web.Application(), limiter, registry=registry), "/metrics")
    assert status == 200
    assert "bot_ratelimit_decision_seconds_count 1.0" in text
    with pytest.raises(ConfigError, match="limiter is a MemoryStorage: expected a Limiter"):
        health_app(MemoryStorage())  # type: ignore[arg-type]  # on purpose
