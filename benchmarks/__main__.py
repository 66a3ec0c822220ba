"""`python -m benchmarks`: one run, one redis-server, everybody side by side."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Final

from rich.console import Console

from benchmarks import (
    algorithms,
    bots,
    ceiling,
    clients,
    decisions,
    growth,
    machine,
    observers,
    page,
    processes,
    targets,
    webhooks,
)
from benchmarks.ours import NAME as OURS
from benchmarks.race import Run
from benchmarks.records import Records
from benchmarks.server import redis_server
from benchmarks.tables import Table

CONCERNS: Final[dict[str, ModuleType]] = {
    concern.NAME: concern
    for concern in (
        decisions,
        algorithms,
        clients,
        ceiling,
        bots,
        webhooks,
        processes,
        growth,
        observers,
    )
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; rough figures")
    parser.add_argument("--only", nargs="+", choices=CONCERNS, metavar="NAME", default=[*CONCERNS])
    parser.add_argument("--rounds", type=int, help="how often everybody takes a turn")
    parser.add_argument("--output", type=Path, help="write performance.md and images/ there")
    parser.add_argument("--save", type=Path, help="keep the measurements, as JSON")
    parser.add_argument("--load", type=Path, help="show these measurements instead of measuring")
    parser.epilog = f"NAME: {', '.join(CONCERNS)}"
    return parser.parse_args()


def measured(options: argparse.Namespace, console: Console) -> Records:
    records = Records()
    rounds = options.rounds or (1 if options.quick else 7)
    seconds = 0.06 if options.quick else 0.25
    begun = time.monotonic()
    gc.freeze()
    with redis_server() as server, console.status("") as status:
        run = Run(server, rounds, seconds, options.quick, status.update)
        records.machine = machine.description(server.version()) | {
            "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
            "rounds": str(rounds),
            "seconds": f"{seconds:g}",
        }
        for name in options.only:
            concern_begun = time.monotonic()
            server.flush()
            records.add(CONCERNS[name].measure(run))
            console.print(f"{name}: {time.monotonic() - concern_begun:.0f} s", style="dim")
    console.print(f"all: {time.monotonic() - begun:.0f} s", style="dim")
    return records


def main() -> int:
    options, console = arguments(), Console()
    if not console.is_terminal:
        console = Console(width=150)
    records = Records.load(options.load) if options.load else measured(options, console)
    if options.save:
        records.save(options.save)
    sections: dict[str, list[Table]] = {
        name: concern.tables(records) for name, concern in CONCERNS.items() if records.has(name)
    }
    aims = targets.table(records)
    sections["targets"] = [aims] if aims.rows else []
    for tables in sections.values():
        for table in tables:
            table.show(console)
    for loss in page.losses(records):
        console.print(f"ahead of us: {loss}", highlight=False)
    for where, who, reason in records.absences:
        console.print(f"did not take part: {who} ({where}): {reason}", highlight=False)
    if options.output:
        from benchmarks import plots  # matplotlib takes a second that other runs need not wait

        pictures = plots.draw(records, options.output / "images")
        text = page.render(records, sections, pictures)
        (options.output / "performance.md").write_text(text)
    failed = [
        absence
        for absence in records.absences
        if absence.who.startswith(OURS) and not absence.reason.endswith("is not installed")
    ]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
