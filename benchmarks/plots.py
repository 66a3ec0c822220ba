"""Plots: two pictures of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import decisions, distance
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records

_STYLE: Final[dict[Any, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.dpi": 110,
}
_OURS: Final = "#c1272d"
_OTHERS: Final = ("#1f4e79", "#2e8b57", "#b8860b", "#7b5ea7", "#4d4d4d", "#2aa1b3", "#9b9b9b")
_MARKERS: Final = "sD^vPX*"


def draw(records: Records, directory: Path) -> dict[str, str]:
    """Draw the pictures of these records; return their names and descriptions."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    with plt.rc_context(_STYLE):
        if records.has("decisions"):
            panels = {"decisions a second (more is better)": ("rate", 1.0)}
            panels["p99 in milliseconds (less is better)"] = ("p99_us", 1e-3)
            cases = {n: decisions.on_redis(n) for n in decisions.AT_A_TIME}
            figure, many = _lines(records, "decisions", cases, panels)
            for axes in many:
                axes.set(xscale="log", yscale="log", xlabel="decisions asked for at a time")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            figure.savefig(directory / "decisions.png")
            drawn["decisions"] = "Decisions a second and p99, by how many at a time"
        if records.has("distance"):
            panels = {"decided by Redis, one by one from the start, %": ("share_started", 100)}
            panels["decided by Redis, 100 at a time, %"] = ("share", 100)
            cases = {ms: distance.at(ms) for ms in distance.ROUND_TRIPS}
            figure, many = _lines(records, "distance", cases, panels)
            for axes in many:
                axes.set(ylim=(-3, 103), xlabel="round trip to Redis, in milliseconds")
            figure.savefig(directory / "distance.png")
            drawn["distance"] = "The share of updates that Redis decides in time, by round trip"
    plt.close("all")
    return drawn


def _lines(
    records: Records,
    benchmark: str,
    cases: Mapping[int, str],
    panels: Mapping[str, tuple[str, float]],
) -> tuple[Any, Any]:
    """A panel for each figure, a line for each candidate, a point for each case."""
    figure, many = plt.subplots(1, len(panels), figsize=(11, 4.2), layout="constrained")
    for axes, (title, (name, scale)) in zip(many, panels.items(), strict=True):
        others = iter(zip(_OTHERS, _MARKERS, strict=True))
        for who in records.who(benchmark, cases[min(cases)]):
            spreads = {x: records.spread(benchmark, case, who, name) for x, case in cases.items()}
            points = [(x, spread.median * scale) for x, spread in spreads.items() if spread]
            colour, marker = (_OURS, "o") if who == OURS else next(others)
            width = 2.4 if who == OURS else 1.3
            axes.plot(
                *zip(*points, strict=True), label=who, color=colour, marker=marker, linewidth=width
            )
        axes.set_title(title)
        axes.set_xticks(list(cases), [f"{x:,}" for x in cases])
    figure.legend(*many[0].get_legend_handles_labels(), loc="outside right center")
    return figure, many
