"""The limits file: its content, how flags use it, and the errors for a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot_ratelimit import (
    ConfigError,
    Limit,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
    Settings,
)
from bot_ratelimit.config.limits_file import LimitsFile, read_limits_file
from bot_ratelimit.rules.rule import rules_of
from tests.incoming.support import HANDLED, Instance, callback, message
from tests.tables import table

pytestmark = pytest.mark.usefixtures("environment")

EXAMPLE = Path(__file__).parents[2] / "docs" / "limits.toml"


def written(text: str) -> str:
    Path("limits.toml").write_text(text, encoding="utf-8")
    return "limits.toml"


def middleware(
    environment: pytest.MonkeyPatch, text: str, **overrides: object
) -> RateLimitMiddleware:
    environment.setenv("RATE_LIMIT_FILE", written(text))
    return RateLimitMiddleware.from_settings(**overrides)


def test_the_documented_file_is_complete() -> None:
    """The example in the docs has every part, and is read as it says.

    [[rules]] can have all fields of `Rule`; an editor may put a byte order mark before them.
    """
    found = read_limits_file(EXAMPLE)
    assert found.rules == rules_of("1/s; 20/minute")
    assert found.exempt == {42, -100123}
    assert found.limits["ai"] == {"limit": "5/minute; 50/day"}
    assert found.limits["report"]["scope"] is Scope.CHAT
    assert found.penalty == Penalty("10/minute", "15m", grows=True, longest="1d")
    assert "(limits.toml)" in (EXAMPLE.parent / "limits.md").read_text("utf-8")
    assert sorted(found.notices) == ["en", "ru"]
    assert found.outgoing["per_group"] == "20/minute sliding"
    empty = LimitsFile()
    assert all(getattr(found, name) != getattr(empty, name) for name in LimitsFile.__slots__)
    file = written(
        "\ufeff[[rules]]\nlimit='9/s'\n[[rules]]\nlimit='5/m'\nscope='chat'\nname='x'\ncost=2\n"
        "[[rules]]\nlimit='3/day in UTC'\nname='image'\non_error='deny'\n"
    )
    image = Rule("3/day in UTC", name="image", on_error="deny")
    assert read_limits_file(file).rules == (Rule("9/s"), Rule("5/m", Scope.CHAT, "x", 2), image)


@table(
    ("text", "told"),
    [
        ("a = 1\nb = 1/s", "limits.toml: not TOML: Expected newline or end of document after"),
        ("a = 1\nb = 1/s", "(at line 2, column 6); a text needs quotes, for example ai ="),
        ("rate_limit = '5 minutes'", "limits.toml: rate_limit: '5 minutes'"),
        ("rate_limit = '5/s'\n[[rules]]\nlimit='1/s'", "rate_limit and [[rules]] are both"),
        ("[[rules]]\nname='x'", "limits.toml: [[rules]] limit is missing, for example"),
        ("[[rules]]\nlimit='1/s'\nscope='users'", "scope='users': expected one of user, chat"),
        ("[limits]\nai = '5'", "limits.toml: [limits] ai: '5'"),
        ("[limits]\nai = {limit='5/m', cots=2}", "[limits] ai: cots is unknown; expected limit"),
        ("[limits]\nai = {limit='5/m', cost=9}", "never grants more than 5 at once"),
        ("[limits]\nai = {limit='5/m', cost=true}", "[limits] ai: cost=true: expected a whole"),
        ("[limits]\nai = 2026-01-01", "[limits] ai: "),
        ("[limits]\nban = '5/m'", "name='ban'"),
        ("limits = 3", "limits: 3: expected a table"),
        ("exempt = ['42']", "limits.toml: exempt: '42' is not the id of a user or a chat"),
        ("exempt = 42", "exempt: 42: expected a list of ids, for example [42, -100123]"),
        ("exempt = [true]", "exempt: True is not the id of a user"),
        ("exempt = ['12345:AAHx']", "exempt: a value that may be a token"),
        ("exempt = '12345:AAHx'", "exempt: a value that may be a token"),
        ("exempt = [99999999999999999]", "exempt: 99999999999999999 is not the id"),
        ("[penalty]\nafter = '10/m'", "[penalty] ban is missing, for example ban = '15m'"),
        ("[penalty]\nafter='10/m'\nban='x'", "limits.toml: [penalty] ban='x'"),
        ("[penalty]\nafter='9/m'\nban='1h'\ngrows=1", "[penalty] grows=1: expected true or false"),
        ("[notices]\nen = '{minutes}'", "no placeholder but {wait} and {seconds}, for example"),
        ("[notices]\nen = '{wait:999999999}'", "[notices] en: the text of a notice"),
        ("[notices]\npt_BR = 'Espere'", "[notices] the language of a notice 'pt_BR': expected"),
        ("[outgoing]\nper_chat = '5'", "limits.toml: [outgoing] per_chat: '5'"),
        ("[outgoing]\nmax_wait = nan", "[outgoing] max_wait=nan: expected a number from 0 up"),
        ("[limits]\nexempt = 42", "[limits] exempt: write it above the first table of the file"),
        ("[limits]\nrate_limit = '1/s'", "of the file; a limit needs another name"),
        ("[[rules]]\nlimit='1/s'\nexempt=[42]", "[[rules]] exempt: write it above the first"),
        ("rate_limit = '1/s " + 5_000 * "x " + "'", "limits.toml: rate_limit: '1/s x x"),
        ("rate_limits = '1/s'", "rate_limits: unknown; expected one of rate_limit, rules, limits"),
    ],
)
def test_a_bad_file_is_one_line_with_place_value_and_fix(text: str, told: str) -> None:
    """The error has the file, the line or table, the value and the fix in one line."""
    with pytest.raises(ConfigError) as raised:
        read_limits_file(written(text))
    assert told in str(raised.value)
    assert str(raised.value).startswith("limits.toml: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert "AAHx" not in str(raised.value)


def test_the_environment_wins_over_the_file_and_the_file_over_code(
    environment: pytest.MonkeyPatch,
) -> None:
    """RATE_LIMIT and RATE_LIMIT_EXEMPT win if set, then the file, then the default.

    A wrong path or encoding of the file is an error at the start.
    """
    assert Settings().origin("rate_limit") == "code"
    environment.setenv("RATE_LIMIT_FILE", written("rate_limit='7/s'\nexempt=[7]"))
    found = Settings()
    assert (found.rules(), found.exempt()) == (rules_of("7/s"), {7})
    assert {found.origin("rate_limit"), found.origin("rate_limit_exempt")} == {"file"}
    environment.setenv("RATE_LIMIT", "8/s")
    environment.setenv("RATE_LIMIT_EXEMPT", "8")
    found = Settings()
    assert (found.rules(), found.exempt()) == (rules_of("8/s"), {8})
    assert found.origin("rate_limit") == "environment"
    Path("limits.toml").write_bytes("[notices]\nru = 'Ждите'".encode("cp1251"))
    with pytest.raises(ConfigError, match=r"limits\.toml: not UTF-8 \(at byte 16\)"):
        Settings()
    environment.setenv("RATE_LIMIT_FILE", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"^RATE_LIMIT_FILE=nowhere\.toml: cannot be read: No"):
        Settings()


@pytest.mark.parametrize(
    ("limit", "flag", "rule"),
    [
        ("4/h", {"cost": 2, "scope": "chat"}, Rule("4/h", Scope.CHAT, "ai", 2)),
        (Limit.parse("2/h"), {}, Rule("2/h", name="ai")),
        (Rule("2/h", Scope.CHAT), {}, Rule("2/h", Scope.CHAT, "ai")),
        ([Rule("2/h"), Rule("9/h", Scope.GLOBAL)], {}, Rule("2/h", name="ai")),
    ],
)
async def test_a_named_limit_can_be_given_in_code(
    limit: Any, flag: dict[str, Any], rule: Rule
) -> None:
    """`named_limits` replaces the file, and may have anything that a flag may be; the flag
    completes what it leaves open."""
    limits = RateLimitMiddleware(
        "99/h", limiter=Limiter(MemoryStorage()), named_limits={"ai": limit}
    )
    instance = Instance(limits, ())
    instance.dispatcher.message.middleware(limits)
    flags = {"rate_limit": {"key": "ai"} | flag}
    instance.dispatcher.message.register(instance._handle, flags=flags)
    assert await instance.send("1", "2", "3") == [True, True, False]
    assert instance.decisions[0] is not None
    assert instance.decisions[0].rule == rule


async def test_a_flag_finds_its_limit_by_its_key(environment: pytest.MonkeyPatch) -> None:
    """With `key="ai"` the limit comes from the file, which wins over one in the flag.

    Penalty, exemptions and notices of the file reach the middleware; arguments win over them.
    """
    text = "rate_limit='99/h'\nexempt=[7]\n[limits]\nai='1/h'\nloud={limit='2/h'}\n"
    text += "[penalty]\nafter='2/h'\nban='1h'\n[notices]\nen='Halt!'"
    limits = middleware(environment, text)
    instance = Instance(limits, ())
    for name, flag in (("message", {"key": "ai"}), ("callback_query", {"key": "loud", "rate": 1})):
        instance.dispatcher.observers[name].middleware(limits)
        instance.dispatcher.observers[name].register(instance._handle, flags={"rate_limit": flag})
    assert await instance.send("1", "2") == [True, False]
    assert [getattr(each, "text", "") for each in instance.session.requests] == ["Halt!"]
    assert await instance.send("1", "2", **{"from": message()["from"] | {"id": 7}}) == [True, True]
    pressed = [await instance.feed(callback_query=callback()) for _ in range(3)]
    assert pressed == [HANDLED, HANDLED, None]
    decision = instance.decisions[0]
    assert decision is not None
    assert decision.rule == Rule(Limit.parse("1/h"), name="ai")
    assert limits.rules[-1] == Penalty("2/h", "1h")
    assert middleware(environment, text, penalty=None).rules == rules_of("99/h")
