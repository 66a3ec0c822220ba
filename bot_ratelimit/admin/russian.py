"""Russian: what operators read, by its English form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

RUSSIAN: Final[Mapping[str, str]] = {}
