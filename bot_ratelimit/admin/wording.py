"""Wording: durations and changes as text, for all front ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from bot_ratelimit.overrides import Overrides

UNITS: Final = ("d", "h", "min", "s")
"""Days, hours, minutes and seconds, in English."""

_LENGTHS: Final = (86_400, 3_600, 60, 1)
_CHANGES: Final = ("rules", "penalty", "exempt", "limited", "off_until")


def duration(seconds: float, units: Sequence[str] = UNITS) -> str:
    """Seconds as text: `7 s`, `2 min 5 s`, `3 d 4 h`."""
    left = max(0, round(seconds))
    if 0 < seconds < 1:
        return f"{seconds:.1g} {units[-1]}"
    parts = []
    for length, unit in zip(_LENGTHS, units, strict=True):
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2]) or f"0 {units[-1]}"


def changed(live: Overrides) -> Mapping[str, Any]:
    """What a version changes: only the parts that change something."""
    content = {name: each for name, each in asdict(live).items() if name in _CHANGES and each}
    if live.off_until:  # nobody reads Unix seconds
        content["off_until"] = f"{datetime.fromtimestamp(live.off_until, UTC):%Y-%m-%d %H:%M} UTC"
    return {
        name: sorted(each) if isinstance(each, frozenset) else each
        for name, each in content.items()
    }


def changes(live: Overrides) -> str:
    """What a version changes, in a line; empty if it changes nothing."""
    content = changed(live)
    return json.dumps(content, ensure_ascii=False) if content else ""
