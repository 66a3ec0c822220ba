"""The verdict: what the demo claims, what was seen, and where the two differ."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one person's messages, photos, presses or payments."""

    person: int
    group: str
    sent: int
    handled: int
    expected: int
    """How many ought to be handled."""
    lost: int
    """How many the bot did not take: no answer, or not a 2xx."""
    told: int
    """How many messages they got that say no more than that they are refused."""
    latencies: tuple[float, ...]
    """Seconds from the delivery of each until it was answered or refused."""

    @property
    def as_claimed(self) -> bool:
        """Whether this person got what they ought to get."""
        return self.handled == self.expected and not self.lost


@dataclass(frozen=True, slots=True)
class Scene:
    """What was seen of one part of the demo."""

    title: str
    outcomes: Sequence[Outcome]

    def groups(self) -> list[str]:
        """The groups of people in it, in order."""
        return list(dict.fromkeys(outcome.group for outcome in self.outcomes))

    def of(self, group: str) -> list[Outcome]:
        """The outcomes of one group."""
        return [outcome for outcome in self.outcomes if outcome.group == group]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim beyond the counts."""

    sentence: str
    holds: bool


@dataclass(slots=True)
class Findings:
    """Everything that was seen, in the order of the acts."""

    scenes: list[Scene] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def differences(self) -> list[str]:
        """A sentence for each thing that is not as the demo claims; none if all of it is true."""
        if not any(outcome.sent for scene in self.scenes for outcome in scene.outcomes):
            return ["nothing was measured"]
        return [
            *(
                difference
                for scene in self.scenes
                for outcome in scene.outcomes
                for difference in _differences(scene.title, outcome)
            ),
            *(f"not true: {claim.sentence}" for claim in self.claims if not claim.holds),
        ]

    def exit_status(self) -> int:
        """0 if what the demo claims is what happened, else 1."""
        return 1 if self.differences() else 0


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _differences(title: str, outcome: Outcome) -> Iterable[str]:
    who = f"{title}: {outcome.group} {outcome.person}"
    if outcome.handled != outcome.expected:
        yield (
            f"{who}: {outcome.handled} of {outcome.sent} were handled, expected {outcome.expected}"
        )
    if outcome.lost:
        yield f"{who}: {outcome.lost} of {outcome.sent} were not taken by the bot"
