"""Texts: both languages say the same, and nothing in them breaks a message."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from bot_ratelimit.admin.telegram.texts import TEXTS, Html, Words

import bot_ratelimit.admin.telegram as package
from bot_ratelimit import MemoryStorage
from tests.admin.telegram.operators import operated_bot_on

FOLDER = Path(package.__file__).parent
SOURCES = "".join(each.read_text() for each in FOLDER.glob("*.py") if each.name != "texts.py")
ALERTS = ("gone", "not_yours", "away")


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def tags(text: str) -> list[str]:
    return sorted(re.findall(r"<[^>]+>", text))


def test_every_language_has_the_same_keys_and_fields() -> None:
    """A text that exists in one language exists in all, with the same fields and markup."""
    english = TEXTS["en"]
    for language, texts in TEXTS.items():
        assert set(texts) == set(english), language
        for key, text in texts.items():
            assert fields(text) == fields(english[key]), (language, key)
            assert tags(text) == tags(english[key]), (language, key)


@pytest.mark.parametrize("key", TEXTS["en"])
def test_a_text_is_used_and_well_formed(key: str) -> None:
    """Each text is looked up somewhere; its tags are closed; an alert is plain and short."""
    family = f'"{key.split("_")[0]}_{{'  # f"scope_{...}"
    is_looked_up = re.search(f"['\"]{key}['\"]", SOURCES) or family in SOURCES
    assert is_looked_up or (key.endswith("_reason") and '{key}_reason"' in SOURCES)
    for texts in TEXTS.values():
        opened, closed = (re.findall(p, texts[key]) for p in (r"<(\w+)>", r"</(\w+)>"))
        assert sorted(opened) == sorted(closed)
        if key in ALERTS:
            assert not tags(texts[key])
            assert len(texts[key]) <= 200


@pytest.mark.parametrize(
    ("language", "said"),
    [("ru", "Лимиты"), ("RU-ru", "Лимиты"), ("en", "Limits"), ("de", "Limits"), (None, "Limits")],
)
async def test_operators_read_their_language(language: str | None, said: str) -> None:
    """Operators who use Telegram in Russian get Russian answers, all others English ones."""
    async with operated_bot_on(MemoryStorage()) as bot:
        assert f"<b>{said}</b>" in await bot.says("/limits", language=language)


async def test_a_whole_conversation_in_russian(storage: Any) -> None:
    """Every command, question and button has its Russian words."""
    async with operated_bot_on(storage, statistics=True) as bot:
        for _ in range(5):
            await bot.is_handled()
        heard = [
            await bot.says(text, language="ru")
            for text in ("/limits", "/who 42", "/try 42", "/top", "/stats", "/health", "/bans",
                         "/history", "/forgive 42", "/ban 42 1h spam", "/unban 42",
                         "/setlimit messages 1/h", "/setlimit", "/rollback", "/pause 1d",
                         "/resume", "/penalty 9/h 1h", "/penalty", "/exempt 42", "/exempt 42 off",
                         "/exempt 42 x", "/who", "/who x", "/ban 42", f"/ban {1002} 1h")
        ]  # fmt: skip
        for text in heard:
            assert re.search("[а-я]{3}", text)
            assert not re.search(r"\b(?:the|is|of|for|left|banned)\b", text), text
        await bot.says("/ban 42 90m", language="ru")
        assert "Забанить" in bot.buttons
        assert "бан до" in await bot.presses("Забанить", language="ru")
        assert "осталось 1 ч 30 мин" in await bot.says("/bans", language="ru")


def test_fields_are_escaped_and_cut() -> None:
    """A field is text: no markup, one line, no invisible characters, at most 500 characters."""
    words = Words("en")
    said = words("wrong", error="<b>&\n\u202e" + "x" * 1_000)
    assert "&lt;b&gt;&amp;\\n\\u202e" in said
    assert said.count("x") < 500
    assert said.endswith("…</code>")
    assert words("wrong", error=Html("<i>")) == "That did not work: <code><i></code>"
    assert words("wrong", error="{prefix}") == "That did not work: <code>{prefix}</code>"
