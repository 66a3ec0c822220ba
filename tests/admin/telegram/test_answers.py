"""What operators are told in Telegram fits Telegram: its commands, its markup, its language."""

from __future__ import annotations

import pytest

from bot_ratelimit import MemoryStorage, Rule, Subject
from bot_ratelimit.admin import sheets
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.telegram.messages import page_of
from bot_ratelimit.admin.views import ConfigView, InstanceView
from bot_ratelimit.admin.words import Words
from bot_ratelimit.config.overrides import Overrides
from tests.admin.telegram.operators import GROUP, OperatedBot, operated_bot_on, units
from tests.incoming.support import message, user


async def test_the_question_hints_at_a_ban_in_a_chat(bot: OperatedBot) -> None:
    """A ban in a group is not lifted with the id alone, and the question says what to do."""
    await bot.middleware.limiter.ban(Subject(user=42, chat=GROUP["id"]), "1h")
    assert "In Telegram, reply there." in await bot.says("/unban 42")
    reply = message("spam", **{"from": user(42), "chat": GROUP})
    assert "reply there" not in await bot.says("/unban", chat=GROUP, reply_to_message=reply)
    assert "is not banned any more" in await bot.presses("Unban")


@pytest.mark.parametrize("option", ["--chat -100500", "—chat -100500", "--as-user"])
@pytest.mark.parametrize("command", ["/ban 42 1h", "/who 42", "/forgive 42"])
async def test_an_option_of_the_shell_is_no_text(
    bot: OperatedBot, command: str, option: str
) -> None:
    """The answer says how a chat is named, and nothing waits for a confirmation."""
    told = await bot.says(f"{command} {option}")
    assert f"<code>{option.split()[0]}</code>: options exist only in a shell" in told
    assert "a button of /bans" in told
    assert bot.buttons == {}
    assert "Reason: <code>he -- spams</code>" in await bot.says("/ban 42 1h he -- spams")


@pytest.mark.parametrize("language", ["en", "ru"])
async def test_no_answer_is_written_for_a_shell(bot: OperatedBot, language: str) -> None:
    """No command of the shell is named, and what is to be typed is code, not in backticks."""
    await bot.asks("/ban 42 1h", "Ban")
    said = [await bot.says(each, language=language) for each in ("/limits", "/ban 42", "/setlimit")]
    await bot.says("/forgive 42")
    said.append(await bot.presses("Forgive", language=language))
    assert "`" not in "".join(said)
    assert "<code>forever</code>" in said[1]
    assert ("Still banned until" in said[3]) == (language == "en")
    assert "unban" not in said[3]


async def test_the_question_of_a_rollback_is_in_russian(bot: OperatedBot) -> None:
    """What would change is said in the words of the history, not in those of the log."""
    await bot.asks("/setlimit messages shadow", "Change")
    await bot.asks("/penalty 9/h 1h", "Change")
    asked = await bot.says("/rollback", language="ru")
    assert "бан за флуд: 1h after 9/h -&gt; как в настройках" in asked
    asked = await bot.says("/rollback 0", language="ru")
    assert "messages: 3/hour (пробный) -&gt; 3/hour" in asked


async def test_a_long_question_fits_into_a_message() -> None:
    """Of many changes, exemptions or counts the first are shown; what they mean is never cut."""
    rules = [Rule("3/h", name=f"{'long' * 22}{n}") for n in range(60)]
    async with operated_bot_on(MemoryStorage(), *rules) as bot:
        control = Control.of(bot.middleware, "anna")
        for n, rule in enumerate(rules):
            await control.set_rule(rule.name, "5/h")
            await control.changes.set_exempt(1_000_000_000 + n, True)
        asked = await bot.says("/rollback 0")
        assert (units(asked) <= 4096, "/hour -&gt; 3/hour\n… +3" in asked) == (True, True)
        assert asked.endswith("You can roll back to version 120 at any time.")
        for rule in rules:
            await bot.middleware.limiter.hit(rule, Subject(42, 42))
        assert units(await bot.says("/forgive 42")) <= 4096
        assert units(await bot.presses("Forgive")) <= 4096
        await control.changes.rollback(0)
        for n in range(60):
            await control.changes.set_exempt(1_000_000_000 + n, True)
        asked = await bot.says("/rollback 0")
        assert "exempt: 1000000000 removed, " in asked
        assert units(asked) <= 1_000


def test_limits_of_a_bot_with_many_handlers_fit_into_a_message() -> None:
    """The first ten handlers that can get a limit are named below the limits."""
    handlers = tuple(f"orders.{'x' * 90}{n}" for n in range(30))
    instance = InstanceView("a", 0, 0, "", handlers=handlers)
    view = ConfigView("bot", "", (), Overrides(version=1), (instance,), ())
    assert units(page_of(sheets.limits(Words("ru"), view)).text) <= 4096 - 2_500


async def test_a_group_is_not_called_a_channel(bot: OperatedBot) -> None:
    """A message in the name of the group is by an anonymous admin, and the question says so."""
    reply = message("hi", **{"from": user(1087968824), "chat": GROUP, "sender_chat": GROUP})
    asked = await bot.says("/ban 1h", chat=GROUP, reply_to_message=reply)
    assert "channel <code>-100500</code> (or the anonymous admins of a group)" in asked
