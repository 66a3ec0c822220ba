"""Words: everything that operators read, in their language.

A text is looked up by its English form, with its fields in braces: `words("unban {who}", who=...)`;
`russian.toml` has the Russian form.
Fields are shown on one line, whatever they contain. `code` marks what is easy to copy in Telegram;
`plain` and `as_html` say what becomes of the mark.
"""

from __future__ import annotations

import html
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final

from bot_ratelimit.errors import printable
from bot_ratelimit.rules.duration import RUSSIAN_UNITS, UNITS, duration

LONGEST: Final = 500
"""Characters of a field: a message of Telegram has to fit."""

# Control characters, which no field contains: `printable` escapes them.
_ON, _OFF = "\x0e", "\x0f"
_LANGUAGES: Final = frozenset({"ru"})
# Not at every comma, and a label keeps its colon: reasons and rules are called as operators like.
_PARTS: Final = re.compile(r"( -> |; |[()]|,? (?=-?\d|by )|(?<=[:\d]) )")


class Marked(str):
    """A text whose fields are checked and marked already."""

    __slots__ = ()


@cache
def _russian() -> Mapping[str, str]:
    return tomllib.loads((files("bot_ratelimit.admin") / "russian.toml").read_text("utf-8"))


class Words:
    """The texts in one language.

    Args:
        language: A language code, such as `ru` or `ru-RU`; English if there are no texts for it.
    """

    def __init__(self, language: str | None = None) -> None:
        code = (language or "").lower().partition("-")[0]
        self.language = code if code in _LANGUAGES else "en"
        self._texts = _russian() if code == "ru" else {}

    @classmethod
    def accepted(cls, header: str) -> Words:
        """In the first language of an `Accept-Language` that there is: browsers sort them."""
        codes = (each.partition(";")[0].strip().lower()[:2] for each in header.split(","))
        return cls(next((code for code in codes if code in {"en", *_LANGUAGES}), None))

    def __call__(self, text: str, /, **fields: object) -> Marked:
        """The text in this language, with its fields."""
        found = self._texts.get(text, text)
        if not fields:
            return Marked(found)
        return Marked(found.format(**{name: shown(each) for name, each in fields.items()}))

    def known(self, text: object) -> str:
        """A text that was made in English, with those parts translated that are known."""
        said, texts = str(text), self._texts
        return texts.get(said) or "".join(texts.get(each, each) for each in _PARTS.split(said))

    def duration(self, seconds: float) -> Marked:
        """`2 min 5 s`."""
        return Marked(duration(seconds, RUSSIAN_UNITS if self.language == "ru" else UNITS))


def moment(at: float | datetime) -> str:
    """A time in UTC, for operators in several time zones: `2026-03-01 12:00:00 UTC`."""
    when = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def shown(value: object) -> str:
    """A field: on one line, without invisible characters, and not too long."""
    return value if isinstance(value, Marked) else clipped(str(value))


def clipped(text: str, longest: int = LONGEST) -> str:
    """The text in one line, without invisible characters, cut to at most `longest`."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def code(value: object, longest: int = LONGEST) -> Marked:
    """A value that is easy to copy; Telegram makes no link, mention or command of it."""
    return Marked(f"{_ON}{clipped(str(value), longest)}{_OFF}")


def joined(parts: Iterable[object], between: str = ", ") -> Marked:
    """Texts one after the other."""
    return Marked(between.join(map(shown, parts)))


def plain(text: object) -> str:
    """A text for a terminal."""
    return shown(text).replace(_ON, "").replace(_OFF, "")


def as_html(text: object) -> str:
    """A text for Telegram."""
    escaped = html.escape(shown(text), quote=False)
    return escaped.replace(_ON, "<code>").replace(_OFF, "</code>")


def capital(text: object) -> Marked:
    """A text at the beginning of a sentence."""
    found: Any = shown(text)
    return Marked(found[:1].upper() + found[1:])
