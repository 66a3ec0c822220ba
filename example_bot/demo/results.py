"""The results: what the demo expects, what happened, and where the two differ."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one person's messages, photos, button presses or payments."""

    person: int
    group: str
    sent: int
    handled: int
    expected: int
    lost: int
    """How many the bot did not accept: no answer, or a status other than 2xx."""
    told: Sequence[str]
    """The notices of a refusal that the person got."""
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

    def groups(self) -> dict[str, list[Outcome]]:
        """The outcomes of each group of people."""
        by_group = groupby(self.outcomes, key=lambda outcome: outcome.group)
        return {group: list(outcomes) for group, outcomes in by_group}


@dataclass(slots=True)
class Results:
    """All outcomes and checks, in the order of the scenarios."""

    steps: list[Step] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    """Expectations beyond the counts, and whether they are met."""

    def differences(self) -> list[str]:
        """One sentence for each difference from what the demo expects; empty if there is none."""
        outcomes = [(step.title, each) for step in self.steps for each in step.outcomes]
        if not any(outcome.sent for _, outcome in outcomes):
            return ["nothing was measured"]
        return [
            *(
                f"{title}: {each.group} {each.person}: {each.handled} of {each.sent} were handled, "
                f"expected {each.expected}, {each.lost} were not accepted"
                for title, each in outcomes
                if not each.as_expected
            ),
            *(f"not true: {sentence}" for sentence, holds in self.checks.items() if not holds),
        ]


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed; 0.0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
