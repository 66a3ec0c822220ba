"""The limits file of RATE_LIMIT_FILE: rules, named limits, exemptions, penalty, notices, budgets.

::

    rate_limit = "1/s; 20/minute"       or [[rules]] tables, for scopes, names and costs
    exempt = [42, -100123]

    [limits]                            a flag's key="ai" finds its limit here
    ai = "5/minute"
    report = { limit = "2/minute; 20/day", scope = "chat", cost = 2, shadow = true }

    [penalty]
    after = "10/minute"
    ban = "15m"

    [notices]
    en = "Try again in {wait}."

    [outgoing]
    per_chat = "1/s burst 5"
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Final, TypeAlias

from bot_ratelimit.config.ids import check_id, hidden
from bot_ratelimit.config.tables import (
    ABOVE,
    FIRST,
    NamedLimit,
    OutgoingTable,
    RuleTable,
    checked,
    penalty_of,
    shown,
)
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import check_name
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rules, rules_of

NamedLimits: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The settings of each named limit: `limit`, and if given `scope`, `cost` and `shadow`."""

MAX_NOTICE: Final = 4_096
"""How many characters a notice may have; Telegram takes no more in a message."""
MAX_ERROR: Final = 500
"""How many characters of an error are shown; it may repeat a long value."""

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True, slots=True)
class LimitsFile:
    """The content of a limits file; a missing part is None or empty."""

    path: str = ""
    rules: Rules | None = None
    limits: NamedLimits = field(default_factory=dict)
    exempt: frozenset[int] | None = None
    penalty: Penalty | None = None
    notices: Mapping[str, str] = field(default_factory=dict)
    outgoing: Mapping[str, Any] = field(default_factory=dict)
    """`per_chat`, `per_group`, `broadcast` (limits as text), `max_wait` (seconds), `retries`."""


def read_limits_file(path: str | Path) -> LimitsFile:
    """Read a limits file.

    Raises:
        ConfigError: It cannot be read, or something in it is invalid. The message is one line with
            the file, the line or table, the value and the fix.
    """
    try:
        # Some editors begin a file with a byte order mark.
        content = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}; check the path and its permissions"
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8 (at byte {error.start}): save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        wrong = f"not TOML: {error}; a text needs quotes, for example ai = '5/minute'"
    else:
        return _read(str(path), content)
    raise ConfigError(f"{path}: {wrong}")


def named_limits(limits: Mapping[str, Any]) -> NamedLimits:
    """Make named limits of a limit for each name, or of a mapping with `limit`.

    Raises:
        ConfigError: A name or a limit is invalid.
    """
    if not isinstance(limits, Mapping):
        raise ConfigError(f"named_limits={limits!r}: expected limits by name, {{'ai': '5/minute'}}")
    found = {}
    for name, value in limits.items():
        try:
            if name in FIRST:
                raise ConfigError(f"{ABOVE}; a limit needs another name")
            check_name(name)
            table = value if isinstance(value, Mapping) else {"limit": value}
            found[name] = checked(NamedLimit, table).given()
        except ConfigError as error:
            raise ConfigError(f"[limits] {name}: {error}") from None
    return found


def check_notice(text: object) -> None:
    """Raise ConfigError unless this is a valid text of a notice."""
    try:
        ok = isinstance(text, str) and len(text) <= MAX_NOTICE and _is_filled(text)
    except (LookupError, ValueError, AttributeError, TypeError):
        ok = False
    if not ok:
        raise ConfigError(
            f"the text of a notice {shown(text)}: expected at most {MAX_NOTICE:,} characters and "
            "no placeholder but {wait} and {seconds}, for example 'Try again in {wait}.'"
        )


def check_language(language: object) -> None:
    """Raise ConfigError unless Telegram could send this as the language of a user."""
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        raise ConfigError(
            f"the language of a notice {shown(language)}: expected a code as Telegram sends it, "
            "for example 'en' or 'pt-br'"
        )


def _is_filled(text: str) -> bool:
    # A format such as {wait:999999999} would fill the memory.
    if any(len(spec or "") > 4 for _, _, spec, _ in Formatter().parse(text)):
        return False
    return bool(text.format(seconds=1, wait="1 s").strip())


def _read(path: str, content: dict[str, Any]) -> LimitsFile:
    readers: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "rate_limit": ("rules", rules_of),
        "rules": ("rules", _rules),
        "limits": ("limits", _limits),
        "exempt": ("exempt", _exempt),
        "penalty": ("penalty", penalty_of),
        "notices": ("notices", _notices),
        "outgoing": ("outgoing", _outgoing),
    }
    found: dict[str, Any] = {}
    for name, value in content.items():
        try:
            if name not in readers:
                raise ConfigError(f"unknown; expected one of {', '.join(readers)}")
            part, read = readers[name]
            if part in found:
                raise ConfigError("rate_limit and [[rules]] are both given: keep one of them")
            found[part] = read(value)
        except ConfigError as error:
            wrong = textwrap.shorten(str(error), MAX_ERROR, placeholder=" …")
            raise ConfigError(f"{path}: {_place(name, value)}{wrong}") from None
    return LimitsFile(path, **found)


def _place(name: str, value: object) -> str:
    if name == "limits" and isinstance(value, dict):
        return ""  # the reader of this table names the limit too
    if isinstance(value, dict):
        return f"[{name}] "
    is_tables = isinstance(value, list) and any(isinstance(each, dict) for each in value)
    return f"[[{name}]] " if is_tables else f"{shown(name)[1:-1]}: "


def _rules(value: object) -> Rules:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(f"{shown(value)}: expected tables, each under [[rules]] on its own line")
    return rules_of([checked(RuleTable, each).rule() for each in value])


def _limits(value: object) -> NamedLimits:
    return named_limits(_table(value))


def _exempt(value: object) -> frozenset[int]:
    if not isinstance(value, list):
        raise ConfigError(f"{hidden(value)}: expected a list of ids, for example [42, -100123]")
    return frozenset(map(check_id, value))


def _notices(value: object) -> dict[str, str]:
    texts = dict(_table(value))
    for language, text in texts.items():
        check_language(language)
        try:
            check_notice(text)
        except ConfigError as error:
            raise ConfigError(f"{language}: {error}") from None
    return texts


def _outgoing(value: object) -> dict[str, Any]:
    return checked(OutgoingTable, value).model_dump(exclude_unset=True)


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{shown(value)}: expected a table, [name] on a line of its own")
    return value
