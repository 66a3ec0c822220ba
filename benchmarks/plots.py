"""Plots: three pictures of the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks import bots, decisions, growth, webhooks
from benchmarks.guards import Nobody
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records

_STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
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
    """The pictures that the records allow: their file names, and what each shows."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    for name, concern, shows, picture in (
        ("decisions", decisions.NAME, "Decisions a second and p99, by how many at a time", _speed),
        ("bots", bots.NAME, "What middlewares leave of a bot's updates a second", _bots),
        ("growth", growth.NAME, "Time for a decision, by the number of users", _growth),
    ):
        if records.has(concern):
            with plt.rc_context(_STYLE):
                figure = picture(records)
                figure.savefig(directory / f"{name}.png")
                plt.close(figure)
            drawn[name] = shows
    return drawn


def _speed(records: Records) -> Any:
    figure, (rates, tails) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axes, figure_name, scale in ((rates, "rate", 1.0), (tails, "p99_us", 1e-3)):
        others = iter(zip(_OTHERS, _MARKERS, strict=True))
        for who in records.who(decisions.NAME, decisions.on_redis(1)):
            points = [
                (n, spread.median * scale)
                for n in decisions.CONCURRENCY
                if (
                    spread := records.spread(
                        decisions.NAME, decisions.on_redis(n), who, figure_name
                    )
                )
            ]
            _line(axes, points, who, others)
        axes.set(xscale="log", yscale="log", xlabel="decisions asked for at a time")
        axes.set_xticks(decisions.CONCURRENCY, [f"{n:,}" for n in decisions.CONCURRENCY])
        _decades(axes.yaxis)
    rates.set_title("decisions a second on Redis (more is better)")
    tails.set_title("p99 in milliseconds (less is better)")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside right center")
    return figure


def _decades(axis: Any) -> None:
    """Plain numbers at 1, 2, 5, 10, ..."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _line(axes: Any, points: list[tuple[int, float]], who: str, others: Any) -> None:
    colour, marker = (_OURS, "o") if who.startswith(OURS) else next(others)
    width = 2.4 if who.startswith(OURS) else 1.3
    axes.plot(*zip(*points, strict=True), label=who, color=colour, marker=marker, linewidth=width)


def _bots(records: Records) -> Any:
    panels = [(bots.NAME, bots.case(100), "feed_update, 100 at a time")]
    if records.has(webhooks.NAME):
        panels.append((webhooks.NAME, webhooks.case(100), "webhook, 100 at a time"))
    figure, many = plt.subplots(
        1, len(panels), figsize=(11, 3.6), layout="constrained", sharey=True, squeeze=False
    )
    for axes, (concern, at, title) in zip(many[0], panels, strict=True):
        guards = [who for who in records.who(concern, at) if who != Nobody.name][::-1]
        kept = [records.ratio(concern, at, who, Nobody.name) for who in guards]
        for who, spread in zip(guards, kept, strict=True):
            if spread is None:
                continue
            median, low, high = spread
            colour = _OURS if who.startswith(OURS) else _OTHERS[0]
            error = [[median - low], [high - median]]
            axes.barh(who, median, color=colour, height=0.62, xerr=error, ecolor="#808080")
            axes.text(high + 0.02, who, f"{median:.0%}", va="center")
        axes.axvline(1, color="#404040", linewidth=1)
        axes.set_title(title)
        axes.set_xlim(0, 1.25)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("updates a second, of those without a middleware")
    return figure


def _growth(records: Records) -> Any:
    figure, many = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, storage in zip(many, ("Redis", "memory"), strict=True):
        others = iter(zip(_OTHERS, _MARKERS, strict=True))
        styles = iter(("-", "--", ":"))
        for who in records.who(growth.NAME):
            if f", {storage}, " not in who:
                continue
            points = [
                (n, spread.median)
                for n in growth.USERS
                if (spread := records.spread(growth.NAME, str(n), who, "us"))
            ]
            label = who.replace(f", {storage}, ", ": ")
            _line(axes, points, label, others)
            if who.startswith(OURS):
                axes.lines[-1].set_linestyle(next(styles))
        axes.set(xscale="log", yscale="log", xlabel="users", ylabel="µs for a decision")
        axes.set_ylim(5, max(500, axes.get_ylim()[1]))
        axes.set_title("Redis, 100 at a time" if storage == "Redis" else "memory")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _decades(axes.yaxis)
        axes.legend(fontsize=9, loc="upper left")
    return figure
