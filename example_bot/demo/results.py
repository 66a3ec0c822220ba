"""The results: what the demo expects, what happened, and where the two differ."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one person's messages, photos, button presses or payments."""

    person: int
    group: str
    sent: int
    handled: int
    expected: int
    """How many should be handled."""
    lost: int
    """How many the bot did not accept: no answer, or a status other than 2xx."""
    told: int
    """How many notices of a refusal the person got."""
    latencies: tuple[float, ...]
    """Seconds from the delivery of each update until it was answered or refused."""

    @property
    def as_expected(self) -> bool:
        """Whether exactly the expected number was handled, and nothing was lost."""
        return self.handled == self.expected and not self.lost


@dataclass(frozen=True, slots=True)
class Step:
    """The outcomes of one step of the demo."""

    title: str
    outcomes: Sequence[Outcome]

    def groups(self) -> list[str]:
        """The groups of people in this step, in order."""
        return list(dict.fromkeys(outcome.group for outcome in self.outcomes))

    def of(self, group: str) -> list[Outcome]:
        """The outcomes of one group."""
        return [outcome for outcome in self.outcomes if outcome.group == group]


@dataclass(frozen=True, slots=True)
class Check:
    """An expectation beyond the counts, and whether it is met."""

    sentence: str
    holds: bool


@dataclass(slots=True)
class Results:
    """All outcomes and checks, in the order of the scenarios."""

    steps: list[Step] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def differences(self) -> list[str]:
        """One sentence for each difference from what the demo expects; empty if there is none."""
        if not any(outcome.sent for step in self.steps for outcome in step.outcomes):
            return ["nothing was measured"]
        return [
            *(
                difference
                for step in self.steps
                for outcome in step.outcomes
                for difference in _differences(step.title, outcome)
            ),
            *(f"not true: {check.sentence}" for check in self.checks if not check.holds),
        ]

    def exit_status(self) -> int:
        """0 if everything happened as expected, else 1."""
        return 1 if self.differences() else 0


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed; 0.0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _differences(title: str, outcome: Outcome) -> Iterable[str]:
    who = f"{title}: {outcome.group} {outcome.person}"
    if outcome.handled != outcome.expected:
        yield (
            f"{who}: {outcome.handled} of {outcome.sent} were handled, expected {outcome.expected}"
        )
    if outcome.lost:
        yield f"{who}: {outcome.lost} of {outcome.sent} were not accepted by the bot"
