"""A bot under a flood and an outage, watched by a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry

from bot_ratelimit import Decision, Penalty, RateLimitMiddleware, Rule, Subject
from bot_ratelimit.admin.health import add_health
from bot_ratelimit.metrics import PrometheusMetrics
from tests.incoming.support import Instance, chat, user
from tests.promtools import find_prometheus
from tests.servers import Server, free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
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


class Prometheus:
    """A Prometheus that scrapes one port."""

    def __init__(self, port: int, session: ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = session

    async def ready(self) -> bool:
        try:
            async with self._session.get(f"{self._url}/-/ready") as answer:
                return answer.status == 200
        except OSError:
            return False

    async def get(self, page: str, **parameters: str) -> Any:
        async with self._session.get(f"{self._url}/api/v1/{page}", params=parameters) as answer:
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    async def draw(self, expression: str, start: float, end: float, window: str) -> list[Any]:
        """Return the data of a panel for a time range."""
        query = expression.replace("$__rate_interval", window).replace("$job", ".*")
        found = await self.get(
            "query_range",
            query=query,
            start=f"{start:.3f}",
            end=f"{end:.3f}",
            step=f"{max(0.25, (end - start) / 120):.3f}",
        )
        return list(found["result"])


@asynccontextmanager
async def prometheus(directory: Path, target: int) -> AsyncIterator[Prometheus]:
    """A server of its own, in a directory of its own."""
    binary = find_prometheus()
    assert binary is not None
    port = free_port()
    config = directory / "prometheus.yml"
    rules = DEPLOY / "prometheus" / "rules.yml"
    config.write_text(_CONFIG.format(scrape=SCRAPE_MS, rules=rules, port=target))
    process = await asyncio.create_subprocess_exec(
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--query.lookback-delta=2s",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with ClientSession() as session:
            server = Prometheus(port, session)
            async with asyncio.timeout(20):
                while not await server.ready():  # noqa: ASYNC110 - the server decides
                    await asyncio.sleep(0.05)
            yield server
    finally:
        process.terminate()
        await process.wait()


class MonitoredBot:
    """A bot with metrics on its own port, and users who send to it."""

    def __init__(self, client: aioredis.Redis) -> None:
        registry = CollectorRegistry()
        self.metrics = PrometheusMetrics(registry)
        self.port = free_port()
        middleware = RateLimitMiddleware(
            [Rule("4/s"), Rule("100/m", name="slow"), Rule("5/m", name="trial", shadow=True)],
            client,
            "watched",
            observer=self.metrics,
            penalty=Penalty("30/10s", ban="3s"),
            timeout=1,
        )
        self.bot = Instance(middleware)
        self._runner = web.AppRunner(
            add_health(web.Application(), middleware, registry=registry), access_log=None
        )

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        await self.bot.dispatcher.emit_shutdown()
        await self._runner.cleanup()

    async def metrics_page(self) -> str:
        async with (
            ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}/metrics") as answer,
        ):
            return await answer.text()

    async def busy(self, seconds: float, *, flooders: int = 0) -> None:
        """Generate load for a while: normal users, flooders, and requests to Telegram."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            people = [random.randrange(7_000_000_100, 7_000_000_300) for _ in range(10)]
            people += [7_000_000_000 + i for i in range(flooders) for _ in range(8)]
            await asyncio.gather(
                *(
                    self.bot.send("hello", **{"from": user(each), "chat": chat(each)})
                    for each in people
                )
            )
            self._send_requests()
            await asyncio.sleep(0.1)

    def _send_requests(self) -> None:
        # What outgoing limits, slots, InFlight and live settings tell; nothing is sent here.
        metrics = self.metrics
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


async def run(
    server: Server, directory: Path, seconds: float, *, on_stage: Callable[[str], object] = print
) -> tuple[dict[str, list[tuple[str, list[Any]]]], list[Any], str]:
    """Return the data of every panel, the rules of the alerts, and the bot's metrics page."""
    async with aioredis.Redis(port=server.port) as client:
        watched = MonitoredBot(client)
        await watched.start()
        async with prometheus(directory, watched.port) as server_of_metrics:
            began = time.time()
            for stage, share, flooders in (("calm", 0.2, 0), ("flood", 0.35, 3)):
                on_stage(stage)
                await watched.busy(seconds * share, flooders=flooders)
            on_stage("outage")
            server.kill()
            await watched.busy(seconds * 0.2, flooders=1)
            on_stage("recovery")
            server.start()
            await watched.busy(seconds * 0.25, flooders=1)
            await asyncio.sleep(3 * SCRAPE_MS / 1_000)
            window = "2s" if seconds < 60 else "5s"
            drawn = {
                panel["title"]: [
                    (
                        target["legendFormat"],
                        await server_of_metrics.draw(target["expr"], began, time.time(), window),
                    )
                    for target in panel["targets"]
                ]
                for panel in PANELS
            }
            groups = (await server_of_metrics.get("rules"))["groups"]
            page = await watched.metrics_page()
        await watched.stop()
    return drawn, [rule for group in groups for rule in group["rules"]], page


def legend(pattern: str, labels: dict[str, str]) -> str:
    """The legend of a series, as Grafana shows it."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), pattern)
