"""PrometheusMetrics and OpenTelemetryMetrics: counts are exact, series are few."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Observer,
    Penalty,
    RedisStorage,
    Rule,
    Scope,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter.observer import MAX_LABELS
from bot_ratelimit.metrics import PrometheusMetrics, forget_dead_processes
from bot_ratelimit.otel import NAMES, OpenTelemetryMetrics
from bot_ratelimit.series import SERIES
from bot_ratelimit.testing import Clock, FlakyStorage
from tests import counting
from tests.processes import FORKS
from tests.promtools import NOT_RUN, find_promtool
from tests.servers import PATIENCE, Server

MONITORING = (Path(__file__).parents[1] / "docs" / "monitoring.md").read_text()
ANNA = Subject(user=4242424242)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, /, **labels: str) -> float | None:
    return registry.get_sample_value(f"bot_ratelimit_{name}", labels)


def total(registry: CollectorRegistry, name: str, *by: str) -> Counter[Any]:
    """The sums of a metric by some of its labels."""
    found: Counter[Any] = Counter()
    for sample in (each for metric in registry.collect() for each in metric.samples):
        if sample.name == f"bot_ratelimit_{name}":
            found[tuple(sample.labels[each] for each in by)] += int(sample.value)
    return found


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
        await limiter.hit(["2/m", Rule("1/m", name="trial", shadow=True)], ANNA)
    for _ in range(2):
        await limiter.acquire(Rule("1/m", name="waits"), Subject(7), timeout=0.01)
    report_everything(metrics)


async def test_every_event_has_its_metric(registry: CollectorRegistry) -> None:
    """Each event changes the metric of its name.

    docs/monitoring.md lists exactly these, with labels and types; their names, units and help texts
    follow Prometheus' rules.
    """
    await use_everything(PrometheusMetrics(registry))
    at = {"server": "localhost:6379"}
    for expected, name, labels in [
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
        assert value(registry, name, **labels) == expected, (name, labels)
    row = r"(?m)^\| `bot_ratelimit_(\w+?)(?:_total)?`(?: \{([\w, ]+)\})? \| (\w+) \|"
    assert {*re.findall(row, MONITORING)} == {
        (name, ", ".join(labels), kind) for name, (kind, _, labels, *_) in SERIES.items()
    }
    promtool = find_promtool()
    if promtool is None:
        pytest.skip(NOT_RUN)
    lines = generate_latest(registry).decode().splitlines()
    text = "".join(f"{line}\n" for line in lines if "_created" not in line)
    subprocess.run([promtool, "check", "metrics"], input=text, text=True, check=True, timeout=20)  # noqa: ASYNC221


async def test_opentelemetry_gets_the_same_values(registry: CollectorRegistry) -> None:
    """It has the documented names and units of OpenTelemetry, and no id of a user."""
    await use_everything(PrometheusMetrics(registry, prefix="shop"))
    reader = InMemoryMetricReader()
    metrics = OpenTelemetryMetrics(MeterProvider([reader]), prefix="shop")
    await use_everything(metrics)
    found = collected(reader)
    told = MONITORING.partition("## OpenTelemetry")[2]
    for name, (full, unit) in NAMES.items():
        assert f"`{name}`" in told
        assert f"`{full}`" in told
        kinds = ("", "_total", "_count")
        expected = {
            tuple(sorted(sample.labels.values())): sample.value
            for sample in (each for metric in registry.collect() for each in metric.samples)
            if sample.name in {f"bot_ratelimit_{name}{kind}" for kind in kinds}
        }
        assert {
            tuple(sorted(attributes.values())): value for attributes, value in found[full, unit]
        } == expected, name
    names = {name for points in found.values() for attributes, _ in points for name in attributes}
    assert names >= {"bot_ratelimit.prefix", "bot_ratelimit.rule", "error.type", "server.address"}
    assert "4242424242" not in str(found)
    metrics.closed("localhost:6379")
    assert NAMES["connected"] not in collected(reader)


def collected(reader: InMemoryMetricReader) -> dict[tuple[str, str], list[tuple[Any, float]]]:
    """The attributes and values by name and unit; of a histogram, how many there were."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, metric.unit): [
            (point.attributes, getattr(point, "value", getattr(point, "count", 0)))
            for point in metric.data.data_points
        ]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }


async def test_a_connection_that_was_closed_leaves_no_series(
    registry: CollectorRegistry, client: aioredis.Redis
) -> None:
    """A node that left the cluster must not look unreachable; one of two limiters may close."""
    metrics = PrometheusMetrics(registry)
    limiter = Limiter(RedisStorage(client), observer=metrics)
    other = Limiter(RedisStorage(client), key_prefix="other", observer=metrics)
    for each in (limiter, other):
        await each.hit("9/s", ANNA)
    await other.close()
    assert total(registry, "connected") == {(): 1}
    assert total(registry, "breaker_open") == {(): 0}
    await limiter.close()
    assert total(registry, "connected") == total(registry, "breaker_open") == {}
    assert value(registry, "waiting") == 0


async def test_many_users_are_few_series_without_ids(registry: CollectorRegistry) -> None:
    """Series are bounded by the rules, not by the users: 5,000 of them are below 200 series.

    A hundred rule names are kept apart; further ones are `other`.
    """
    clock = Clock()
    metrics = PrometheusMetrics(registry)
    limiter = Limiter(MemoryStorage(10, clock=clock), observer=metrics, clock=clock)
    report_everything(metrics)
    rules = [Rule("1/s"), Rule("5/m", Scope.CHAT), Penalty("3/m", "1h")]
    for user in range(5_000_000_000, 5_000_005_000):
        await limiter.hit(rules, Subject(user=user, chat=-user))
    assert total(registry, "decisions_total") == {(): 5_000}
    text = generate_latest(registry).decode()
    assert len(text.splitlines()) - text.count("# ") < 200
    assert not re.search(r"500000\d{4}", text)
    for number in range(MAX_LABELS + 50):
        await limiter.hit(Rule("1/s", name=f"n{number}"), ANNA)
    by_rule = total(registry, "decisions_total", "rule")
    assert len(by_rule) == MAX_LABELS + 1
    assert by_rule.total() == 5_000 + MAX_LABELS + 50


async def test_counts_are_exact_in_an_outage(registry: CollectorRegistry) -> None:
    """With an outage in between, the counts still equal the updates that were sent.

    A ban counts once, and refusals by it are counted separately from those by a limit.
    """
    storage, clock = FlakyStorage(), Clock()
    limiter = Limiter(storage, clock=clock, observer=PrometheusMetrics(registry))
    for number in range(300):
        if number == 100:
            storage.fail(StorageError("gone", kind="refused"))
        if number == 200:
            storage.heal()
            clock.move(5)
        await limiter.hit("9/s", Subject(user=number))
    assert total(registry, "decisions_total", "source") == {("memory",): 200, ("policy",): 100}
    assert total(registry, "storage_failures_total", "kind") == {("refused",): 3}
    assert value(registry, "breaker_open", server="memory") == 0
    for _ in range(10):
        await limiter.hit(["1/m", Penalty("3/m", "1h")], ANNA)
    assert value(registry, "bans_total") == 1
    by_outcome = total(registry, "decisions_total", "outcome")
    assert by_outcome == {("allowed",): 301, ("refused",): 2, ("banned",): 7}


@pytest.mark.slow
def test_processes_count_exactly_what_was_sent(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the multi-process mode the sums are right, without labels of users or processes.

    Gauges end with their process, however it ends; counts stay.
    """
    (tmp_path / "metrics").mkdir()
    directory = str(tmp_path / "metrics")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", directory)
    ready, reports = FORKS.Barrier(4), FORKS.SimpleQueue()
    given = (own_server.port, directory, ready, reports)
    workers = [
        FORKS.Process(target=counting.run, args=(*given, end))
        for end in ("kill", "exit", "forgets to close")
    ]
    for worker in workers:
        worker.start()
    sent = sum((reports.get() for _ in workers), Counter())
    ready.wait(PATIENCE)
    for alive in (True, False):
        forget_dead_processes()
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)
        assert total(registry, "decisions_total", "outcome") == {
            (each,): sent[each] for each in sent
        }
        assert sent == {"allowed": 500, "refused": 3 * counting.UPDATES - 500}
        assert value(registry, "decision_seconds_count") == 3 * counting.UPDATES
        assert value(registry, "connected", server="gone:6379") == (0 if alive else None)
        text = generate_latest(registry).decode()
        assert not re.search(rf"pid=|{counting.FIRST_USER // 1_000}\d\d\d", text)
        if alive:
            ready.wait(PATIENCE)
            for worker in workers:
                wait([worker.sentinel], 60)  # a zombie: nobody asked for its status
    for worker in workers:
        worker.join()
    reports.close()


async def test_bots_in_one_process_have_a_prefix_each(registry: CollectorRegistry) -> None:
    """With `prefix` each bot has its own series on one registry; a prefix twice is an error."""
    for prefix, users in (("shop", 2), ("news", 3)):
        metrics = PrometheusMetrics(registry, prefix=prefix)
        limiter = Limiter(MemoryStorage(), observer=metrics)
        for user in range(users):
            await limiter.hit("1/m", Subject(user=user))
        report_everything(metrics)
    assert total(registry, "decisions_total", "prefix") == {("shop",): 2, ("news",): 3}
    assert value(registry, "queued", prefix="news") == 5
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    assert all("prefix" in sample.labels for sample in samples)
    alone = CollectorRegistry()
    PrometheusMetrics(alone)
    told = "give that one to all limiters, give each bot one with its own prefix"
    for taken, prefix in ((registry, "shop"), (registry, None), (alone, None), (alone, "shop")):
        with pytest.raises(ConfigError, match=told):
            PrometheusMetrics(taken, prefix=prefix)
    wrong: Any = "shop"
    with pytest.raises(ConfigError, match=r"registry is a str: .* a key prefix goes into prefix="):
        PrometheusMetrics(wrong)
    with pytest.raises(ConfigError, match=r"^prefix='a b': expected 1 to 128 characters"):
        PrometheusMetrics(CollectorRegistry(), prefix="a b")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of an import without the library is one line with the fix."""
    for module, library, distribution in (
        ("metrics", "prometheus_client", "prometheus_client"),
        ("otel", "opentelemetry.metrics", "opentelemetry-api"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"bot_ratelimit.{module}")
        with pytest.raises(ModuleNotFoundError) as missing:
            import_module(f"bot_ratelimit.{module}")
        told = f"needs {distribution}: pip install 'bot_ratelimit[{module}]'"
        assert str(missing.value) == f"bot_ratelimit.{module} {told}"
