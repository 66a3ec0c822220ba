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
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from bot_ratelimit.config.ids import check_id
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, Scope, check_name, rules_of

NamedLimits: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The settings of each named limit: `limit`, and if given `scope`, `cost` and `shadow`."""

_FIELDS: Final = ("limit", "scope", "cost", "shadow")
_OUTGOING_LIMITS: Final = ("per_chat", "per_group", "broadcast")
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
        content = tomllib.loads(Path(path).read_text("utf-8").removeprefix("\ufeff"))
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
            check_name(name)
            found[name] = _named_limit(value)
        except ConfigError as error:
            raise ConfigError(f"[limits] {name}: {error}") from None
    return found


def check_notice(text: object) -> None:
    """Raise ConfigError unless this is a valid text of a notice."""
    try:
        ok = isinstance(text, str) and bool(text.format(seconds=1, wait="1 s").strip())
    except (LookupError, ValueError, AttributeError, TypeError):
        ok = False
    if not ok:
        raise ConfigError(
            f"the text of a notice {text!r}: expected a text with no placeholder but {{wait}} "
            "and {seconds}, for example 'Try again in {wait}.'"
        )


def check_language(language: object) -> None:
    """Raise ConfigError unless Telegram could send this as the language of a user."""
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        raise ConfigError(
            f"the language of a notice {language!r}: expected a code as Telegram sends it, "
            "for example 'en' or 'pt-br'"
        )


def scope_named(value: object) -> Scope:
    """Return the scope with this name.

    Raises:
        ConfigError: There is none.
    """
    try:
        return Scope(value)
    except ValueError:
        scopes = ", ".join(scope.value for scope in Scope)
        raise ConfigError(f"scope={value!r}: expected one of {scopes}") from None


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
            raise ConfigError(f"{path}: {_place(name, value)}{error}") from None
    return LimitsFile(path, **found)


def _place(name: str, value: object) -> str:
    if name == "limits" and isinstance(value, dict):
        return ""  # the reader of this table names the limit too
    if isinstance(value, dict):
        return f"[{name}] "
    is_tables = isinstance(value, list) and any(isinstance(each, dict) for each in value)
    return f"[[{name}]] " if is_tables else f"{name}: "


def _rules(value: object) -> Rules:
    return rules_of([_rule(each) for each in _tables(value)])


def _rule(table: Mapping[str, Any]) -> Rule:
    fields = _checked_fields(table, (*_FIELDS, "name"))
    if "limit" not in fields:
        raise ConfigError("limit is missing, for example limit = '20/minute'")
    if "scope" in fields:
        fields["scope"] = scope_named(fields["scope"])
    return Rule(**fields)


def _limits(value: object) -> NamedLimits:
    return named_limits(_table(value))


def _named_limit(value: Any) -> Mapping[str, Any]:
    fields = _checked_fields(value, _FIELDS) if isinstance(value, Mapping) else {"limit": value}
    if "limit" not in fields:
        raise ConfigError("limit is missing, for example limit = '5/minute'")
    if "scope" in fields and not isinstance(fields["scope"], Scope):
        fields["scope"] = scope_named(fields["scope"])
    for rule in rules_of(fields["limit"]):
        Rule(rule.limit, **{name: fields[name] for name in fields if name in ("cost", "shadow")})
    return fields


def penalty_of(value: object) -> Penalty:
    """Make a penalty of a table with `after`, `ban`, and optionally `grows`, `longest` and `scope`.

    Raises:
        ConfigError: One of them is missing, unknown or invalid.
    """
    fields = _checked_fields(_table(value), ("after", "ban", "grows", "longest", "scope"))
    for name, example in (("after", "10/minute"), ("ban", "15m")):
        if name not in fields:
            raise ConfigError(f"{name} is missing, for example {name} = '{example}'")
    if not isinstance(fields.get("grows", False), bool):
        raise ConfigError(f"grows={fields['grows']!r}: expected true or false")
    if "scope" in fields:
        fields["scope"] = scope_named(fields["scope"])
    return Penalty(fields.pop("after"), fields.pop("ban"), **fields)


def _exempt(value: object) -> frozenset[int]:
    if not isinstance(value, list):
        raise ConfigError(f"{value!r}: expected a list of ids, for example [42, -100123]")
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
    fields = _checked_fields(_table(value), (*_OUTGOING_LIMITS, "max_wait", "retries"))
    for name, each in fields.items():
        if name in _OUTGOING_LIMITS:
            try:
                Limit.of(each)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
        elif isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each < 1e6:
            raise ConfigError(f"{name}={each!r}: expected a number from 0 up")
        elif name == "retries" and not isinstance(each, int):
            raise ConfigError(f"retries={each!r}: expected a whole number from 0 up")
    return fields


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r}: expected a table, [name] on a line of its own")
    return value


def _tables(value: object) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(f"{value!r}: expected tables, each under [[rules]] on its own line")
    return value


def _checked_fields(table: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    for name in table:
        if name not in known:
            raise ConfigError(f"{name} is unknown; expected {', '.join(known)}")
    return dict(table)
