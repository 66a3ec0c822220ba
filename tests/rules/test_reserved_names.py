"""The names that rules cannot have, as users read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bot_ratelimit.rules.checks import RESERVED_NAMES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "word"), [("", "Reserved"), ("ru", "Зарезервированы")])
def test_the_page_about_limits_lists_the_reserved_names(page: str, word: str) -> None:
    """Each reserved name is in the list, and no other."""
    text = (DOCS / page / "limits.md").read_text(encoding="utf-8")
    (listed,) = re.findall(rf"(?ms)^{word}.*?\.$", text)
    assert {*re.findall("`([a-z]+)`", listed)} - {"name", "key"} == RESERVED_NAMES
