"""Wording: what a version of the limits changes, as text for all front ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from bot_ratelimit.config.overrides import Overrides

_CHANGES: Final = ("rules", "penalty", "exempt", "limited", "off_until")


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
