"""`python -m benchmarks`: compares all limiters in one run, on one redis-server."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks import felt, page, ratios
from benchmarks.bots import BOTS, FLOOD
from benchmarks.comparison import Run
from benchmarks.decisions import ALGORITHMS, CLUSTER, DECISIONS
from benchmarks.distance import BUSY, DISTANCE
from benchmarks.observers import OBSERVERS
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.server import redis_server
from benchmarks.storages import STORAGES
from benchmarks.webhooks import WEBHOOKS

BENCHMARKS: Final = {
    benchmark.name: benchmark
    for benchmark in (
        *(BOTS, WEBHOOKS, FLOOD, DISTANCE, BUSY),
        *(DECISIONS, CLUSTER, ALGORITHMS, STORAGES, OBSERVERS),
    )
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; rough figures")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, metavar="NAME", default=[*BENCHMARKS]
    )
    parser.add_argument("--rounds", type=int, help="how often each candidate is measured")
    parser.add_argument("--output", type=Path, help="write performance.md there")
    parser.add_argument("--save", type=Path, help="keep the measurements, as JSON")
    parser.add_argument("--load", type=Path, help="show these measurements instead of measuring")
    parser.epilog = f"NAME: {', '.join(BENCHMARKS)}"
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Records:
    records = Records()
    began = time.monotonic()
    logging.disable()  # lost decisions are counted here
    gc.freeze()
    with redis_server() as server:
        rounds, seconds = options.rounds or (1 if options.quick else 4), 0.25
        run = Run(server, rounds, 0.06 if options.quick else seconds, options.quick)
        records.machine = page.machine(server.version()) | {
            "command": "python -m benchmarks"
            + " --quick" * options.quick
            + f" --rounds {rounds}" * (not options.quick),
            "rounds": str(run.rounds),
            "seconds": f"{run.seconds:g}",
        }
        for name in options.only:
            concern_begun = time.monotonic()
            server.flush()
            records.add(BENCHMARKS[name].measure(run))
            took = time.monotonic() - concern_begun
            print(f"{name}: {took:.0f} s, load {page.load()}", flush=True)
    records.machine["load after"] = page.load()
    print(f"all: {time.monotonic() - began:.0f} s\n")
    return records


def main() -> int:
    options = arguments()
    records = Records.load(options.load) if options.load else measured(options)
    if options.save:
        records.save(options.save)
    short = {"felt": felt.table(records), "ratios": ratios.table(records)}
    for name, benchmark in BENCHMARKS.items():
        if records.has(name):
            for table in benchmark.tables(records):
                print(table.markdown())
    for table in short.values():
        print(table.markdown())
    for loss in page.losses(records):
        print(f"ahead of ours: {loss}")
    for where, who, reason in records.skipped:
        print(f"skipped: {who} ({where}): {reason}")
    if options.output:
        (options.output / "performance.md").write_text(page.render(records, short))
    return int(any(each.who.startswith(OURS) for each in records.skipped))


if __name__ == "__main__":
    sys.exit(main())
