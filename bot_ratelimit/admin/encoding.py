"""JSON of what operators are shown, the same for the shell and for HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from bot_ratelimit.rules.rule import Rule


def to_json(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value made of the types that JSON has; moments are Unix seconds."""
    if is_dataclass(value) and not isinstance(value, (type, Rule)):
        # Not asdict, which would also convert the rules inside.
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    as_dict = getattr(value, "_asdict", None)
    if as_dict is not None:  # a NamedTuple
        return {name: plain(each) for name, each in as_dict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return value.timestamp() if isinstance(value, datetime) else str(value)
