"""`.venv-bench/bin/python -m benchmarks.dashboard` draws docs/images/dashboard.png of a run."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.deploy.monitored import ROOT, run
from tests.servers import running

SECONDS = 120
COLUMNS = 4


def legend(pattern: str, labels: dict[str, str]) -> str:
    """The legend of a series, as Grafana shows it."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), pattern)


def draw(drawn: dict[str, Any], stages: dict[str, float]) -> None:
    """All panels, as the dashboard has them."""
    from matplotlib import pyplot as plt

    began = stages["calm"]
    outage = (stages["outage"] - began, stages["recovery"] - began)
    rows = -(-len(drawn) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(15, 2.2 * rows))
    for ax in axes.flat[len(drawn) :]:
        ax.axis("off")
    for ax, (title, targets) in zip(axes.flat, drawn.items(), strict=False):
        ax.axvspan(*outage, color="grey", alpha=0.2, lw=0)
        for pattern, series in targets:
            for each in series:
                times, values = zip(*each["values"], strict=True)
                labels = {**each["metric"], "instance": "bot"}
                ax.plot(
                    [float(time) - began for time in times],
                    [*map(float, values)],
                    linewidth=1.2,
                    label=legend(pattern, labels),
                )
        ax.set_title(title, fontsize=9, loc="left")
        ax.set(ylim=(0, None), xlim=(0, SECONDS))
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=6, frameon=False, loc="upper left")
    figure.text(0.01, 0.005, "seconds; grey: Redis is stopped", fontsize=7)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / "dashboard.png", dpi=70)


def main() -> None:
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, running("redis-server", Path(name)) as server:

        def note(stage: str) -> None:
            stages[stage] = time.time()

        drawn, _, _ = asyncio.run(run(server, Path(name), SECONDS, on_stage=note))
    draw(drawn, stages)


if __name__ == "__main__":
    main()
