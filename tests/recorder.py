"""An observer that records events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bot_ratelimit import Observer
from bot_ratelimit.limiter.observer import EVENTS


class Recorder(Observer):
    """Records each event as its name and its values."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        """The events with these names, in order."""
        return [event for event in self.events if event[0] in names]


def _recording(name: str) -> Callable[..., None]:
    def record(self: Recorder, *values: Any) -> None:
        self.events.append((name, *values))

    return record


for _name in EVENTS:
    setattr(Recorder, _name, _recording(_name))
