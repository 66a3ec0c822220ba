"""The dashboard and the alerts work with the metrics of the package."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.promtools import NOT_RUN, find_prometheus, find_promtool
from tests.servers import PATIENCE, Server

from .monitored import DASHBOARD, DEPLOY, PANELS, ROOT, run

RULES = DEPLOY / "prometheus" / "rules.yml"


def documented(start: str) -> set[str]:
    """The names in the tables of docs/monitoring.md that start like this."""
    page = (ROOT / "docs" / "monitoring.md").read_text()
    return set(re.findall(rf"^\| `({start}\w+)`", page, re.MULTILINE))


def metrics(expression: str) -> set[str]:
    names = re.findall(r"\bbot_ratelimit_\w+", re.sub(r"job:\w+", "", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_they_use_the_documented_metrics() -> None:
    """Every metric is in a panel; each alert is explained, and no other metric is used."""
    shown = [metrics(target["expr"]) for panel in PANELS for target in panel["targets"]]
    assert set().union(*shown) == documented("bot_ratelimit_")
    assert metrics(RULES.read_text()) <= documented("bot_ratelimit_")
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert alerts == documented("BotRateLimit") != set()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It has a stable uid, asks for the Prometheus to use, and no panels overlap."""
    assert DASHBOARD["uid"] == "bot-ratelimit"
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        for target in panel["targets"]:
            assert panel["datasource"] == target["datasource"] == source
            rated = "rate(" in target["expr"] or "increase(" in target["expr"]
            assert rated == ("$__rate_interval" in target["expr"])
            assert 'job=~"$job"' in target["expr"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    """The alerts are valid, fire when they should, and are silent when they should not.

    prometheus.yml reads them if they are there.
    """
    promtool = find_promtool()
    if promtool is None:
        pytest.skip(NOT_RUN)
    for file in (DEPLOY / "prometheus.yml", RULES, RULES.with_name("rules_test.yml")):
        shutil.copy(file, tmp_path)
    for what in (
        "check config prometheus.yml",
        "check rules rules.yml",
        "test rules rules_test.yml",
    ):
        subprocess.run([promtool, *what.split()], cwd=tmp_path, check=True, timeout=PATIENCE)


async def test_every_panel_shows_data_of_a_flood_and_an_outage(
    own_server: Server, tmp_path: Path
) -> None:
    """With a real Prometheus, every panel has data and every rule can be evaluated.

    Labels stay few, and none has the id of a user.
    """
    if find_prometheus() is None:
        pytest.skip(NOT_RUN)
    directory = tmp_path / "prometheus"
    await asyncio.to_thread(directory.mkdir)
    drawn, rules, page = await run(own_server, directory, 16, on_stage=lambda _: None)
    highest: dict[str, float] = {}
    for title, targets in drawn.items():
        for pattern, series in targets:
            values = [float(value) for each in series for _, value in each["values"]]
            finite = [value for value in values if math.isfinite(value)]
            assert finite, f"{title}: {pattern}"
            highest[title] = max(*finite, highest.get(title, 0))
    assert [rule["health"] for rule in rules] == ["ok"] * 8
    assert highest["Share refused"] > 0.3
    assert highest["Failures by kind"] > 0
    assert highest["Circuit and connections"] == 1
    ((_, answering),) = drawn["Who answers"]
    assert {"policy", "redis"} <= {each["metric"]["source"] for each in answering}
    assert len([line for line in page.splitlines() if not line.startswith("#")]) < 200
    assert not re.search(r"70000000\d\d|70000001\d\d|70000002\d\d", page)
