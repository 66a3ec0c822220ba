"""PrometheusMetrics: counts are exact, and the number of series is bounded."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RedisStorage,
    Rule,
    Scope,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter.observer import MAX_LABELS, Observer
from bot_ratelimit.metrics import PrometheusMetrics
from bot_ratelimit.otel import NAMES, OpenTelemetryMetrics
from bot_ratelimit.testing import Clock, FlakyStorage
from tests import counting
from tests.processes import FORKS
from tests.promtools import NOT_RUN, find_promtool
from tests.servers import PATIENCE, Server

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(bot_ratelimit_\w+)`((?: \{[\w, ]+\})?) \| (\w+) \|", re.MULTILINE)


class Page:
    """The content of `/metrics`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {
            family.name: family
            for family in text_string_to_metric_families(text)
            if not family.name.endswith("_created")
        }
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.samples.get((f"bot_ratelimit_{name}", *sorted(labels.items())))

    def total(self, name: str, *by: str) -> Counter[Any]:
        """The sums of a counter by some of its labels."""
        found: Counter[Any] = Counter()
        for (sample, *labels), value in self.samples.items():
            if sample == f"bot_ratelimit_{name}":
                found[tuple(dict(labels)[each] for each in by)] += int(value)
        return found


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def page(registry: CollectorRegistry) -> Page:
    return Page(generate_latest(registry).decode())


def report_everything(metrics: Observer) -> None:
    """Report each event that no limiter of this test sends, and those of the storage."""
    metrics.waiting("acquire", 2)
    metrics.waiting("localhost:6379", 3)
    metrics.banned("bot:ratelimit:ban:4242424242", 60.0)
    metrics.noticed("message", "sent")
    metrics.slots_in_use("report", 1)
    metrics.in_flight(3, 200)
    metrics.turned_away("busy")
    metrics.configured(7)
    metrics.storage_failed("localhost:6379", "timeout")
    metrics.connected("localhost:6379")
    metrics.breaker_changed("localhost:6379", True)
    metrics.batch_answered("localhost:6379", 12, 0.001)
    metrics.request_done("SendMessage", "sent", 0.2)
    metrics.flood_waited("chat", 3.0)
    metrics.queued(5)


async def use_everything(metrics: Observer) -> None:
    limiter = Limiter(MemoryStorage(), observer=metrics)
    for _ in range(3):
        await limiter.hit(["2/m", Rule("1/m", name="trial", shadow=True)], Subject(4242424242))
    for _ in range(2):
        await limiter.acquire(Rule("1/m", name="waits"), Subject(7), timeout=0.01)
    report_everything(metrics)


async def test_every_event_has_its_metric(registry: CollectorRegistry) -> None:
    """Each event changes the metric of its name."""
    await use_everything(PrometheusMetrics(registry))
    found = page(registry)
    at = {"server": "localhost:6379"}
    for value, name, labels in [
        (2, "decisions_total", {"rule": "user", "outcome": "allowed", "source": "memory"}),
        (1, "decisions_total", {"rule": "user", "outcome": "refused", "source": "memory"}),
        (2, "decisions_total", {"rule": "trial", "outcome": "shadow", "source": "memory"}),
        (5, "decision_seconds_count", {}),
        (1, "near_limit_total", {"rule": "user"}),
        (5, "waiting", {}),
        (1, "bans_total", {}),
        (1, "notices_total", {"kind": "message", "result": "sent"}),
        (1, "slots_in_use", {"name": "report"}),
        (3, "in_flight", {}),
        (200, "in_flight_limit", {}),
        (1, "turned_away_total", {"why": "busy"}),
        (7, "config_version", {}),
        (1, "storage_failures_total", {"kind": "timeout"}),
        (1, "connected", at),
        (1, "breaker_open", at),
        (12, "batch_size_sum", {}),
        (1, "requests_total", {"method": "SendMessage", "outcome": "sent"}),
        (0.2, "request_wait_seconds_sum", {"kind": "message"}),
        (1, "acquire_wait_seconds_count", {"outcome": "allowed"}),
        (1, "acquire_wait_seconds_count", {"outcome": "timeout"}),
        (1, "flood_waits_total", {"scope": "chat"}),
        (5, "queued", {}),
    ]:
        assert found.value(name, **labels) == value, (name, labels)


def test_the_names_of_opentelemetry_are_documented() -> None:
    """docs/monitoring.md has each series with its metric of OpenTelemetry."""
    page = (ROOT / "docs" / "monitoring.md").read_text().partition("## OpenTelemetry")[2]
    told = {
        name for row in re.findall(r"(?m)^\| `.+", page) for name in re.findall(r"`([\w.]+)`", row)
    }
    assert told >= {*NAMES, *(name for name, _ in NAMES.values())}


async def test_the_documented_metrics_are_right(
    registry: CollectorRegistry,
) -> None:
    """docs/monitoring.md lists exactly the metrics, with labels and types."""
    await use_everything(PrometheusMetrics(registry))
    documented = {
        name: (labels.strip(" {}").replace(" ", ""), kind)
        for name, labels, kind in ROW.findall((ROOT / "docs" / "monitoring.md").read_text())
    }
    found = {}
    for family in page(registry).families.values():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (labels, family.type)
    assert {
        name: (set(filter(None, labels.split(","))), kind)
        for name, (labels, kind) in documented.items()
    } == found


async def test_promtool_accepts_the_metrics(registry: CollectorRegistry) -> None:
    """Names, units and help texts follow Prometheus' rules."""
    promtool = find_promtool()
    if promtool is None:
        pytest.skip(NOT_RUN)
    await use_everything(PrometheusMetrics(registry))
    text = "\n".join(line for line in page(registry).text.splitlines() if "_created" not in line)
    run = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=text + "\n",
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


async def test_a_ban_counts_once_and_its_refusals_as_banned(registry: CollectorRegistry) -> None:
    """Refusals by a penalty are counted separately from those by a limit."""
    limiter = Limiter(MemoryStorage(), observer=PrometheusMetrics(registry))
    for _ in range(10):
        await limiter.hit(["1/m", Penalty("3/m", "1h")], Subject(user=42))
    found = page(registry)
    assert found.value("bans_total") == 1
    assert found.total("decisions_total", "outcome") == {
        ("allowed",): 1,
        ("refused",): 2,
        ("banned",): 7,
    }


async def test_a_connection_that_was_closed_leaves_no_series(
    registry: CollectorRegistry, client: aioredis.Redis
) -> None:
    """A node that left the cluster must not look unreachable."""
    limiter = Limiter(RedisStorage(client), observer=PrometheusMetrics(registry))
    await limiter.hit("9/s", Subject(user=42))
    assert page(registry).total("connected") == {(): 1}
    await limiter.close()
    assert page(registry).total("connected") == {}
    assert page(registry).total("breaker_open") == {}
    assert page(registry).value("waiting") == 0


async def test_many_users_are_few_series_without_ids(registry: CollectorRegistry) -> None:
    """Series are bounded by the rules, not by the users: 5,000 of them are below 200 series."""
    clock = Clock()
    metrics = PrometheusMetrics(registry)
    limiter = Limiter(MemoryStorage(10, clock=clock), observer=metrics, clock=clock)
    report_everything(metrics)
    rules = [Rule("1/s"), Rule("5/m", Scope.CHAT), Penalty("3/m", "1h")]
    for user in range(5_000_000_000, 5_000_005_000):
        await limiter.hit(rules, Subject(user=user, chat=-user))
    found = page(registry)
    assert found.total("decisions_total") == {(): 5_000}
    assert len(found.text.splitlines()) - found.text.count("# ") < 200
    assert not re.search(r"500000\d{4}", found.text)


async def test_generated_names_are_bounded(registry: CollectorRegistry) -> None:
    """A hundred rule names are kept apart; further ones are `other`."""
    limiter = Limiter(MemoryStorage(), observer=PrometheusMetrics(registry))
    for i in range(MAX_LABELS + 50):
        await limiter.hit(Rule("1/s", name=f"n{i}"), Subject(user=42))
    by_rule = page(registry).total("decisions_total", "rule")
    assert len(by_rule) == MAX_LABELS + 1
    assert by_rule["other",] == 50


async def test_counts_are_exact_in_an_outage(registry: CollectorRegistry) -> None:
    """With an outage in between, the counts still equal the updates that were sent."""
    storage, clock = FlakyStorage(), Clock()
    limiter = Limiter(storage, clock=clock, observer=PrometheusMetrics(registry))
    for i in range(300):
        if i == 100:
            storage.fail(StorageError("gone", kind="refused"))
        if i == 200:
            storage.heal()
            clock.move(5)
        await limiter.hit("9/s", Subject(user=i))
    found = page(registry)
    assert found.total("decisions_total", "source") == {("memory",): 200, ("policy",): 100}
    assert found.total("storage_failures_total", "kind") == {("refused",): 3}
    assert found.value("breaker_open", server="memory") == 0


@pytest.fixture
def shared_directory(tmp_path: Path) -> Iterator[str]:
    directory = tmp_path / "metrics"
    directory.mkdir()
    yield str(directory)
    shutil.rmtree(directory)


@pytest.mark.slow
async def test_two_processes_count_exactly_what_was_sent(
    own_server: Server, shared_directory: str
) -> None:
    """With 2,400 updates through two bots the sums are right, with an outage in between."""
    ready, reports = FORKS.Barrier(3), FORKS.SimpleQueue()
    workers = [
        FORKS.Process(target=counting.run, args=(own_server.port, shared_directory, ready, reports))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    await asyncio.to_thread(ready.wait, PATIENCE)
    await asyncio.to_thread(ready.wait, PATIENCE)
    own_server.kill()
    await asyncio.to_thread(ready.wait, PATIENCE)
    own_server.start()
    await asyncio.to_thread(ready.wait, PATIENCE)
    await asyncio.to_thread(ready.wait, PATIENCE)  # everything is sent, and no process has ended
    command = f"import tests.counting as c; print(c.collected({shared_directory!r}))"
    text = await asyncio.to_thread(
        subprocess.check_output, [sys.executable, "-c", command], text=True, cwd=ROOT
    )
    await asyncio.to_thread(ready.wait, PATIENCE)
    for worker in workers:
        await asyncio.to_thread(worker.join, PATIENCE)
        assert worker.exitcode == 0
    sent = sum((reports.get() for _ in workers), Counter())
    reports.close()
    found = Page(text)
    counted = found.total("decisions_total", "outcome", "source")
    assert counted == sent
    assert counted.total() == 2 * counting.UPDATES
    assert {source for _, source in counted} == {"redis", "policy"}
    assert found.value("decision_seconds_count") == 2 * counting.UPDATES
    for user in range(counting.FIRST_USER, counting.FIRST_USER + counting.USERS):
        assert str(user) not in text
    assert not re.search(r"pid=", text)


def test_processes_that_end_leave_no_gauge(
    shared_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the multi-process mode gauges end with their process, however it ends; counts stay."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", shared_directory)

    def shown() -> tuple[float, Any]:
        found = Page(counting.collected(shared_directory))
        return len(found.total("connected")), found.value("bans_total")

    ready, alive = FORKS.Barrier(4), FORKS.SimpleQueue()
    workers = [
        FORKS.Process(target=counting.report, args=(shared_directory, ready, alive, end))
        for end in ("kill", "exit", "forgets to close")
    ]
    for worker in workers:
        worker.start()
    ready.wait(60)
    assert shown() == (1, 3)
    for _ in workers:
        alive.put(None)
    for worker in workers:
        wait([worker.sentinel], 60)  # it has ended, and is a zombie: nobody asked for its status
    assert shown() == (0, 3)
    for worker in workers:
        worker.join()
    alive.close()


async def test_bots_in_one_process_have_a_prefix_each(registry: CollectorRegistry) -> None:
    """With `prefix` each bot has its own series on one registry; a prefix twice is an error."""
    for prefix, users in (("shop", 2), ("news", 3)):
        metrics = PrometheusMetrics(registry, prefix=prefix)
        limiter = Limiter(MemoryStorage(), observer=metrics)
        for user in range(users):
            await limiter.hit("1/m", Subject(user=user))
        report_everything(metrics)
    found = page(registry)
    assert found.total("decisions_total", "prefix") == {("shop",): 2, ("news",): 3}
    assert found.value("queued", prefix="news") == 5
    assert all("prefix" in dict(labels) for _, *labels in found.samples)
    for prefix in ("shop", None):
        with pytest.raises(ConfigError, match="give each bot one with its own prefix"):
            PrometheusMetrics(registry, prefix=prefix)


def test_a_second_one_on_a_registry_is_an_error(registry: CollectorRegistry) -> None:
    """The error says that limiters share one PrometheusMetrics."""
    PrometheusMetrics(registry)
    for prefix in (None, "shop"):
        with pytest.raises(ConfigError, match="give that one to all limiters"):
            PrometheusMetrics(registry, prefix=prefix)


async def test_opentelemetry_gets_the_same_values() -> None:
    """Each event changes the metric of its name, with names and units of OpenTelemetry."""
    reader = InMemoryMetricReader()
    metrics = OpenTelemetryMetrics(MeterProvider([reader]), prefix="shop")
    await use_everything(metrics)
    found = collected(reader)
    assert found.keys() == {name for name, _ in NAMES.values()}
    decided = {"bot_ratelimit.outcome": "allowed", "bot_ratelimit.source": "memory"}
    at = {"server.address": "localhost:6379"}
    for value, name, attributes in [
        (2, "decisions", {**decided, "bot_ratelimit.rule": "user"}),
        (5, "decision.duration", {}),
        (1, "decisions.near_limit", {"bot_ratelimit.rule": "user"}),
        (5, "decisions.waiting", {}),
        (1, "acquire.wait.duration", {"bot_ratelimit.outcome": "allowed"}),
        (1, "acquire.wait.duration", {"bot_ratelimit.outcome": "timeout"}),
        (1, "notices", {"bot_ratelimit.kind": "message", "bot_ratelimit.result": "sent"}),
        (1, "slots.in_use", {"bot_ratelimit.name": "report"}),
        (1, "storage.failures", {"error.type": "timeout"}),
        (1, "storage.connected", at),
        (1, "storage.breaker_open", at),
    ]:
        key = tuple(sorted({**attributes, "bot_ratelimit.prefix": "shop"}.items()))
        assert found[f"bot_ratelimit.{name}"][key] == value, name
    assert "4242424242" not in str(found)
    metrics.closed("localhost:6379")
    assert "bot_ratelimit.storage.connected" not in collected(reader)


def collected(reader: InMemoryMetricReader) -> dict[str, dict[tuple[Any, ...], float]]:
    """The values by metric and attributes; of a histogram, how many there were."""
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    return {
        metric.name: {
            tuple(sorted((point.attributes or {}).items())): getattr(
                point, "value", getattr(point, "count", 0)
            )
            for point in metric.data.data_points
        }
        for metric in scope.metrics
    }


@pytest.mark.parametrize(
    ("module", "library", "told"),
    [
        ("metrics", "prometheus_client", "prometheus_client: pip install 'bot_ratelimit[metrics]'"),
        ("otel", "opentelemetry.metrics", "opentelemetry-api: pip install 'bot_ratelimit[otel]'"),
    ],
)
def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, library: str, told: str
) -> None:
    """The error of an import without the library is one line with the fix."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"bot_ratelimit.{module}")
    with pytest.raises(ModuleNotFoundError) as missing:
        import_module(f"bot_ratelimit.{module}")
    assert str(missing.value) == (f"bot_ratelimit.{module} needs {told}")
