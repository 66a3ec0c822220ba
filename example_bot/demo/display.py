"""What the demo shows: progress while it runs, and one table at the end."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from example_bot.demo.results import Outcome, Results, percentile

if TYPE_CHECKING:
    from example_bot.demo.outgoing import Sending
# The smallest width of a terminal for the whole table.
_WIDE = 78


class Display:
    """Prints to a terminal with progress bars, or plain lines to anything else.

    Args:
        console: The rich console to print to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged: set[object] = set()

    def say(self, sentence: str = "") -> None:
        """Print a sentence."""
        # Printed as it is: square brackets in it are not rich's markup.
        self._console.print(Text(sentence), highlight=False)

    def scenario(self, title: str, sentence: str) -> None:
        """Print the heading of a scenario and its description."""
        self._console.print()
        self._console.print(Text(title, style="bold"), highlight=False)
        self.say(sentence)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Show progress; call the function that this gives after each step."""
        if not self._console.is_terminal:
            yield _Quarters(label, total, self.say)
            return
        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)

    def log(self, records: Sequence[logging.LogRecord]) -> None:
        """Print what the package logged, each kind of message once in the whole demo."""
        for record in records:
            if record.msg not in self._logged:
                self._logged.add(record.msg)
                line = Text(f"log: {record.levelname} {record.getMessage()}", style="yellow")
                self._console.print(Padding(line, (0, 0, 0, 2), expand=False), highlight=False)

    def table(self, results: Results) -> None:
        """Print all counts; a narrow terminal gets fewer columns, and none of them is cut."""
        wide = self._console.width >= _WIDE
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for heading in ("Step", "Who") if wide else ("Step and who",):
            table.add_column(heading, no_wrap=True)
        latencies = ("p50", "p99") if wide else ("p99",)
        for heading in ("Sent", "Handled", "Expected", "Refused", *latencies):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("OK", no_wrap=True)
        for step in results.steps:
            if not wide:
                table.add_row(step.title)
            for number, group in enumerate(step.groups()):
                who, *counts = _row(group, step.of(group))
                if wide:
                    table.add_row("" if number else step.title, who, *counts)
                else:
                    table.add_row(f"  {who}", *counts[:4], *counts[5:])
            table.add_section()
        self._console.print()
        self._console.print(table)
        self.say(
            "Sent: messages, photos, button presses; a payment counts as two, the pre-checkout and "
            "the payment itself. Expected: how many should be handled. OK: this is true for each "
            f"person. {', '.join(latencies)}: milliseconds from the delivery of an update until it "
            "was handled or refused; everything runs in one process."
        )

    def deliveries(self, found: Sequence["Sending"]) -> None:
        """Print what happened to the requests that the bot sent."""
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in ("Step", "What"):
            table.add_column(heading, no_wrap=True)
        for heading in ("Requested", "Arrived", "429s", "Seconds"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in found:
            numbers = (each.asked, each.arrived, each.refused)
            table.add_row(each.title, each.what, *map(str, numbers), f"{each.seconds:.1f}")
        self._console.print(table)

    def conclusion(self, results: Results) -> None:
        """Print the other checks, and whether everything happened as expected."""
        self.say()
        for check in results.checks:
            self.say(f"{'yes' if check.holds else ' NO'}: {check.sentence}")
        differences = results.differences()
        self.say()
        if not differences:
            self.say("Everything happened as expected.")
            return
        self.say("Not everything happened as expected:")
        for difference in differences[:10]:
            self.say(f"  {difference}")
        if len(differences) > 10:
            self.say(f"  … and {len(differences) - 10} more")

    def points(self, heading: str, points: Sequence[str]) -> None:
        """Print a heading and a list of points."""
        self.say()
        self._console.print(Text(heading, style="bold"), highlight=False)
        for point in points:
            self._console.print(Padding(Text(f"- {point}"), (0, 0, 0, 2)), highlight=False)


class _Quarters:
    """Reports progress in four plain lines, for a log file or a pipe."""

    def __init__(self, label: str, total: int, say: Callable[[str], None]) -> None:
        self._label = label
        self._total = total
        self._say = say
        self._done = 0

    def __call__(self) -> None:
        before = self._done * 4 // self._total
        self._done += 1
        if self._done * 4 // self._total > before:
            self._say(f"  {self._label}: {self._done} of {self._total}")


def _row(group: str, outcomes: Sequence[Outcome]) -> list[str]:
    sent = sum(outcome.sent for outcome in outcomes)
    handled = sum(outcome.handled for outcome in outcomes)
    latencies = [latency for outcome in outcomes for latency in outcome.latencies]
    return [
        f"{len(outcomes)} {group}",
        str(sent),
        str(handled),
        str(sum(outcome.expected for outcome in outcomes)),
        str(sent - handled),
        *(f"{percentile(latencies, share) * 1000:.0f}" for share in (0.5, 0.99)),
        "yes" if all(outcome.as_expected for outcome in outcomes) else "NO",
    ]
