"""`python -m tests.deploy.picture` draws docs/images/dashboard.png of a run; needs matplotlib."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.servers import running

from .monitored import DEPLOY, legend, run

SECONDS = 120
COLUMNS = 4


def draw(drawn: dict[str, Any], stages: dict[str, float], path: Path) -> None:
    """All panels, as the dashboard has them."""
    from matplotlib import pyplot as plt

    began = stages["calm"]
    rows = -(-len(drawn) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(15, 2.2 * rows))
    for ax in axes.flat[len(drawn) :]:
        ax.axis("off")
    for ax, (title, targets) in zip(axes.flat, drawn.items(), strict=False):
        ax.axvspan(
            stages["outage"] - began, stages["recovery"] - began, color="grey", alpha=0.2, lw=0
        )
        for pattern, series in targets:
            for each in series:
                labels = {
                    name: "bot" if name == "instance" else value
                    for name, value in each["metric"].items()
                }
                times, values = zip(*each["values"], strict=True)
                ax.plot(
                    [float(time) - began for time in times],
                    [float(value) for value in values],
                    linewidth=1.2,
                    label=legend(pattern, labels),
                )
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_ylim(bottom=0)
        ax.set_xlim(0, SECONDS)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=6, frameon=False, loc="upper left")
    figure.text(0.01, 0.005, "seconds; grey: Redis is stopped", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)


async def main() -> int:
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with running("redis-server", directory) as server:
            drawn, _, _ = await run(
                server,
                directory,
                SECONDS,
                on_stage=lambda stage: stages.setdefault(stage, time.time()),
            )
    draw(drawn, stages, DEPLOY.parent / "docs" / "images" / "dashboard.png")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
