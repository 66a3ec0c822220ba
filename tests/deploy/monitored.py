"""A bot under a flood and an outage, watched by a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry, generate_latest

from bot_ratelimit import Decision, Penalty, RateLimitMiddleware, Rule, Subject
from bot_ratelimit.admin.health import add_health
from bot_ratelimit.metrics import PrometheusMetrics
from tests.benches import eventually
from tests.guide.pages import ROOT
from tests.incoming.support import Instance, chat, user
from tests.promtools import find_prometheus
from tests.servers import Server, free_port

DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "bot_ratelimit.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SCRAPE_MS = 250
_WAITED = Decision(True, Rule("4/s"), 3, 0.0, 1.0, "redis")

_CONFIG = """
global: {{scrape_interval: {scrape}ms, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: bot
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""

Get = Callable[..., Any]
"""Asks Prometheus for a page of its API, with parameters."""


@asynccontextmanager
async def prometheus(directory: Path, target: int) -> AsyncIterator[Get]:
    """A Prometheus of its own, in a directory of its own, that scrapes one port."""
    binary, port = find_prometheus(), free_port()
    assert binary is not None
    rules = DEPLOY / "prometheus" / "rules.yml"
    config = _CONFIG.format(scrape=SCRAPE_MS, rules=rules, port=target)
    (directory / "prometheus.yml").write_text(config)
    process = await asyncio.create_subprocess_exec(
        binary,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--query.lookback-delta=2s",
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def ready() -> bool:
        try:
            async with session.get("/-/ready") as answer:
                return answer.status == 200
        except OSError:
            return False

    async def get(page: str, **parameters: str) -> Any:
        async with session.get(f"/api/v1/{page}", params=parameters) as answer:
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    try:
        async with ClientSession(f"http://127.0.0.1:{port}") as session:
            await eventually(ready, within=20)
            yield get
    finally:
        process.terminate()
        await process.wait()


async def busy(bot: Instance, metrics: PrometheusMetrics, seconds: float, flooders: int) -> None:
    """Generate load for a while: normal users, flooders, and requests to Telegram."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        people = [random.randrange(7_000_000_100, 7_000_000_300) for _ in range(10)]
        people += [7_000_000_000 + i for i in range(flooders) for _ in range(8)]
        updates = (bot.send("hello", **{"from": user(each), "chat": chat(each)}) for each in people)
        await asyncio.gather(*updates)
        # What outgoing limits, slots, InFlight and live settings tell; nothing is sent here.
        for _ in range(5):
            metrics.request_done("SendMessage", "sent", random.expovariate(5))
        if random.random() < 0.3:
            metrics.request_done("SendMessage", "flooded", 1.0)
            metrics.flood_waited("chat", 3.0)
        metrics.queued(random.randrange(5))
        metrics.slots_in_use("report", random.randrange(3))
        metrics.configured(7)
        metrics.in_flight(random.randrange(20), 20)
        metrics.turned_away("busy")
        metrics.waited(_WAITED, Subject(user=7_000_000_100), random.expovariate(5))
        await asyncio.sleep(0.1)


async def run(
    server: Server, directory: Path, seconds: float, *, on_stage: Callable[[str], object]
) -> tuple[dict[str, list[tuple[str, list[Any]]]], list[Any], str]:
    """Return the data of every panel, the rules of the alerts, and the bot's metrics page."""
    registry, port = CollectorRegistry(), free_port()
    metrics = PrometheusMetrics(registry)
    rules = [Rule("4/s"), Rule("100/m", name="slow"), Rule("5/m", name="trial", shadow=True)]
    began = time.time()

    async def drawn(get: Get, panel: dict[str, Any]) -> list[tuple[str, list[Any]]]:
        found, end = [], time.time()
        step = max(0.25, (end - began) / 120)
        times = {"start": f"{began:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "2s" if seconds < 60 else "5s")
            data = await get("query_range", query=query.replace("$job", ".*"), **times)
            found.append((target["legendFormat"], data["result"]))
        return found

    async with aioredis.Redis(port=server.port) as client:
        middleware = RateLimitMiddleware(
            *(rules, client, "watched"),
            observer=metrics,
            penalty=Penalty("30/10s", ban="3s"),
            timeout=1,
        )
        bot = Instance(middleware)
        app = add_health(web.Application(), middleware, registry=registry)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with prometheus(directory, port) as get:
            for stage, share, flooders in (
                ("calm", 0.2, 0),
                ("flood", 0.35, 3),
                ("outage", 0.2, 1),
                ("recovery", 0.25, 1),
            ):
                on_stage(stage)
                if stage == "outage":
                    server.kill()
                elif stage == "recovery":
                    server.start()
                await busy(bot, metrics, seconds * share, flooders)
            await asyncio.sleep(3 * SCRAPE_MS / 1_000)
            found = {panel["title"]: await drawn(get, panel) for panel in PANELS}
            groups = (await get("rules"))["groups"]
        await bot.dispatcher.emit_shutdown()
        await runner.cleanup()
    page = generate_latest(registry).decode()
    return found, [rule for group in groups for rule in group["rules"]], page
