"""What the demo shows: sentences while it runs, and one table at the end."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from example_bot.demo.results import Outcome, Results, percentile

if TYPE_CHECKING:
    from example_bot.demo.outgoing import Sending


class Display:
    """Prints to a terminal of 80 columns or more."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged: set[object] = set()

    def say(self, sentence: str = "", style: str = "") -> None:
        """Print a sentence."""
        # Printed as it is: square brackets in it are not rich's markup.
        self._console.print(Text(sentence, style), highlight=False)

    def scenario(self, title: str, sentence: str) -> None:
        """Print the heading of a scenario and its description."""
        self.say()
        self.say(title, "bold")
        self.say(sentence)

    def quote(self, *lines: str, style: str = "cyan") -> None:
        """Print lines of code, or what somebody was told."""
        for line in lines:
            text = Padding(Text(line or " ", style), (0, 0, 0, 2), expand=False)
            self._console.print(text, highlight=False)

    def log(self, records: Sequence[logging.LogRecord]) -> None:
        """Print what the package logged, each kind of message once in the whole demo."""
        for record in records:
            if record.msg not in self._logged:
                self._logged.add(record.msg)
                self.quote(f"log: {record.levelname} {record.getMessage()}", style="yellow")

    def table(self, results: Results) -> None:
        """Print all counts."""
        headings = ("Sent", "Handled", "Expected", "Refused", "p50", "p99")
        table = _table("Step", "Who", numbers=headings)
        for step in results.steps:
            title = step.title
            for group, outcomes in step.groups().items():
                table.add_row(title, f"{len(outcomes)} {group}", *_row(outcomes))
                title = ""
            table.add_section()
        self.say()
        self._console.print(table)
        self.say(
            "Sent: messages, photos, button presses; a payment counts as two, the pre-checkout and "
            "the payment itself. Expected: how many should be handled. OK: this is true for each "
            "person. p50, p99: milliseconds from the delivery of an update until it was handled or "
            "refused; everything runs in one process."
        )

    def deliveries(self, found: Sequence["Sending"]) -> None:
        """Print what happened to the requests that the bot sent."""
        table = _table("Step", "What", numbers=("Requested", "Arrived", "429s", "Seconds"))
        for each in found:
            numbers = (each.asked, each.arrived, each.refused, f"{each.seconds:.1f}")
            table.add_row(each.title, each.what, *map(str, numbers), "yes" if each.ok else "NO")
        self._console.print(table)
        self.say("OK: Telegram refused nothing, and all arrived; of the edits, the last one.")

    def conclusion(self, results: Results) -> None:
        """Print the other checks, and whether everything happened as expected."""
        self.say()
        for sentence, holds in results.checks.items():
            self.say(f"{'yes' if holds else ' NO'}: {sentence}")
        self.say()
        differences = results.differences()
        self.say(f"{'Not everything' if differences else 'Everything'} happened as expected.")
        self.quote(*differences[:10], style="")

    def points(self, heading: str, points: Sequence[str]) -> None:
        """Print a heading and a list of points."""
        self.say()
        self.say(heading, "bold")
        self.quote(*(f"- {point}" for point in points), style="")


def _table(*texts: str, numbers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in texts:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("OK", no_wrap=True)
    return table


def _row(outcomes: Sequence[Outcome]) -> list[str]:
    sent = sum(outcome.sent for outcome in outcomes)
    handled = sum(outcome.handled for outcome in outcomes)
    expected = sum(outcome.expected for outcome in outcomes)
    latencies = [latency for outcome in outcomes for latency in outcome.latencies]
    return [
        *map(str, (sent, handled, expected, sent - handled)),
        *(f"{percentile(latencies, share) * 1000:.0f}" for share in (0.5, 0.99)),
        "yes" if all(outcome.as_expected for outcome in outcomes) else "NO",
    ]
