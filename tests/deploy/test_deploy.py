"""The files in deploy/ work with the metrics of the package."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.promtools import NOT_RUN, find_prometheus, find_promtool
from tests.servers import PATIENCE, Server

from .monitored import DASHBOARD, DEPLOY, PANELS, run

ROOT = DEPLOY.parent
NAMES = re.compile(r"\bbot_ratelimit_\w+")


def documented() -> set[str]:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    return set(re.findall(r"^\| `(bot_ratelimit_\w+)`", page, re.MULTILINE))


def test_the_dashboard_uses_every_metric_and_no_other() -> None:
    """Every metric is shown in a panel, and every panel has its metric."""
    found = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in PANELS
        for target in panel["targets"]
        for name in NAMES.findall(target["expr"])
    }
    assert found == documented()


def test_alerts_are_documented_and_use_existing_metrics() -> None:
    """Each alert is explained with a fix, and each metric in a rule exists."""
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text()
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert re.findall(r"- alert: (\w+)", rules)
    assert set(re.findall(r"- alert: (\w+)", rules)) == set(
        re.findall(r"^\| `(BotRateLimit\w+)`", page, re.MULTILINE)
    )
    used = {re.sub(r"_bucket$", "", name) for name in NAMES.findall(re.sub(r"job:\w+", "", rules))}
    assert used <= documented()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It has a stable uid, asks for the Prometheus to use, and no panels overlap."""
    assert DASHBOARD["uid"] == "bot-ratelimit"
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    sources = {
        json.dumps(each["datasource"]) for panel in PANELS for each in (panel, *panel["targets"])
    }
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    for panel in PANELS:
        for target in panel["targets"]:
            assert ("rate(" in target["expr"] or "increase(" in target["expr"]) == (
                "$__rate_interval" in target["expr"]
            )
            assert 'job=~"$job"' in target["expr"]
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("arguments", ["check rules rules.yml", "test rules rules_test.yml"])
def test_promtool_accepts_the_rules(arguments: str) -> None:
    """The alerts are valid, fire when they should, and are silent when they should not."""
    promtool = find_promtool()
    if promtool is None:
        pytest.skip(NOT_RUN)
    ran = subprocess.run(
        [promtool, *arguments.split()],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


async def test_every_panel_shows_data_of_a_flood_and_an_outage(
    own_server: Server, tmp_path: Path
) -> None:
    """With a real Prometheus, every panel has data and every rule can be evaluated."""
    if find_prometheus() is None:
        pytest.skip(NOT_RUN)
    directory = tmp_path / "prometheus"
    await asyncio.to_thread(directory.mkdir)
    drawn, rules, page = await run(own_server, directory, 16, on_stage=lambda _: None)
    empty = [
        f"{title}: {pattern}"
        for title, targets in drawn.items()
        for pattern, series in targets
        if not any(is_number(value) for each in series for _, value in each["values"])
    ]
    assert empty == []
    assert {rule["health"] for rule in rules} == {"ok"}
    assert len(rules) == 8
    assert highest(drawn["Share refused"]) > 0.3
    assert highest(drawn["Failures by kind"]) > 0
    assert highest(drawn["Circuit and connections"]) == 1
    assert {"policy", "redis"} <= {
        each["metric"]["source"] for _, series in drawn["Who answers"] for each in series
    }
    assert len([line for line in page.splitlines() if not line.startswith("#")]) < 200
    assert not re.search(r"70000000\d\d|70000001\d\d|70000002\d\d", page)


def is_number(value: str) -> bool:
    return math.isfinite(float(value))


def highest(targets: Any) -> float:
    return max(
        float(value)
        for _, series in targets
        for each in series
        for _, value in each["values"]
        if is_number(value)
    )
