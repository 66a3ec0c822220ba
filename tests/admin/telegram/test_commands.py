"""The operators' commands in Telegram, through a dispatcher."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bot_ratelimit import MemoryStorage, RedisStorage, Rule, Scope, Subject
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.telegram import commands
from bot_ratelimit.admin.telegram.messages import page_of
from bot_ratelimit.storage.base import Storage
from tests.admin.telegram.operators import (
    ANNA,
    BORIS,
    GROUP,
    OperatedBot,
    operated_bot_on,
    units,
)
from tests.incoming.support import message, user
from tests.servers import Server
from tests.tables import table


async def test_limits_lists_what_is_in_force(bot: OperatedBot) -> None:
    """Each rule with its limit, scope and origin, then the live version, then the commands."""
    text = await bot.says("/limits")
    assert "<code>messages</code>: 3/hour, per user, every handler, from code" in text
    assert "/who /try /forgive /ban" in text
    await bot.asks("/setlimit messages shadow", "Change")
    text = await bot.says("/limits")
    assert "<code>messages</code>: 3/hour (trial), per user, every handler, from live" in text
    told = "Live changes: version 1, set messages shadow=True, by <code>Anna (1001)</code>, 20"
    assert told in text
    assert "in force on 1 of 1 instances." in text
    # A message has no columns, so each number says what it counts; zeros are left out.
    sheet = Sheet(head=("METHOD", "SENT", "FAILED", "429"), rows=[("SendMessage", 40, 0, 2)])
    assert page_of(sheet).text == "SendMessage: sent 40, 429 2"


async def test_a_refused_user_is_forgiven(storage: Storage) -> None:
    """A confirmed /forgive lets the user through at once, and not before.

    With per_bot, the counts and bans are those of the bot that the operators write to.
    """
    who = "ser <code>42</code>, bot <code>1</code>"
    async with operated_bot_on(storage, per_bot=True) as bot:
        assert await bot.says("/try 42") == "Allowed: 3 left of <code>messages</code> (3/hour)."
        assert [await bot.is_handled() for _ in range(4)] == [True, True, True, False]
        assert f"U{who}: refused, allowed again in " in await bot.says("/who 42")
        assert "Refused by <code>messages</code> (3/hour), for " in await bot.says("/try 42")
        assert f"<b>Forgive u{who}?</b>" in await bot.says("/forgive 42")
        assert not await bot.is_handled()
        assert await bot.presses("Forgive") == f"U{who} is forgiven: <code>messages</code>"
        assert await bot.is_handled()
        assert "nothing to forgive" in await bot.asks("/forgive 77", "Forgive")
        await bot.asks("/ban 42 1h", "Ban")
        assert not await bot.is_handled()


async def test_a_ban_holds_until_it_is_lifted(bot: OperatedBot) -> None:
    """/ban shows its duration and reason, /bans also who did it, and /unban lifts the ban.

    The buttons under a user lead to the same questions.
    """
    await bot.says("/who 42")
    assert list(bot.buttons) == ["Forgive", "Ban 1 h", "Ban 1 d", "Refresh"]
    assert "for 1 d?" in await bot.presses("Ban 1 d")
    asked = await bot.says("/ban 42 1h selling tea")
    assert "Ban user <code>42</code> for 1 h?" in asked
    assert "Reason: <code>selling tea</code>" in asked
    assert await bot.is_handled()
    assert "User <code>42</code> is banned until 2" in await bot.presses("Ban")
    assert not await bot.is_handled()
    assert "It replaces the ban " in await bot.says("/ban 42 2h")
    assert "stays. It has to be lifted separately." in await bot.says("/forgive 42")
    assert "Refused: banned for " in await bot.says("/try 42")
    assert "<code>Anna (1001)</code>, <code>selling tea</code>" in await bot.says("/bans")
    assert "User <code>42</code>: banned" in await bot.says("/who 42")
    assert list(bot.buttons) == ["Forgive", "Unban", "Refresh"]
    assert ": banned" in await bot.presses("Refresh")
    assert "selling tea" in await bot.presses("Unban")
    assert await bot.presses("Unban") == "User <code>42</code> is not banned any more."
    assert await bot.is_handled()
    assert "is not banned: nothing will happen" in await bot.says("/unban 42")
    assert await bot.says("/bans") == "Nobody is banned."


@table(
    ("command", "shown"),
    [
        ("/setlimit messages 5 per 2 hours", "3/hour -&gt; 5/2h"),
        ("/setlimit messages off", "3/hour -&gt; 3/hour (off)"),
        ("/setlimit messages ENFORCE", "3/hour -&gt; 3/hour\n"),
        ("/setlimit messages on", "3/hour -&gt; 3/hour\n"),
        ("/setlimit messages default", "'messages' has no live changes"),
        ("/setlimit messages 5 minutes", "expected AMOUNT/PERIOD"),
        ("/setlimit", "expected the name of a rule"),
        ("/setlimit messages", "For example <code>/setlimit NAME 2/minute</code>"),
        ("/rollback 9", "there is no version 9 to roll back to: expected 0"),
        ("/rollback last", "To which version?"),
        ("/ban 42 forever", "is refused forever, except payments"),
        ("/pause 1h", "<b>Switch all limits off for 1 h?</b>"),
        ("/pause", "at most a day"),
        ("/pause 2d", "a day at most"),
        ("/exempt 42 off", "Limit user <code>42</code> again"),
        ("/exempt 42 now", "to limit them again"),
        ("/exempt", "Which user?"),
        ("/penalty 5/hour 2h", "penalty: none -&gt; ban of 2 h after 5/hour"),
        ("/penalty default", "-&gt; as configured"),
        ("/penalty 5/hour 1h shrinks", "undoes the change"),
        ("/penalty often 1h", "That did not work"),
    ],
)
async def test_what_commands_understand(command: str, shown: str) -> None:
    """A limit as in code, a switch or `default` is accepted; other input gets an example."""
    async with operated_bot_on(MemoryStorage()) as bot:
        assert shown in await bot.says(command)


async def test_an_outdated_question_changes_nothing(
    bot: OperatedBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If somebody else has changed the limits meanwhile, confirming changes nothing.

    Also if they change while the question, which shows the present penalty, is being put.
    """
    for command in ("/setlimit messages 1/h", "/rollback", "/pause 1h", "/resume"):
        await bot.says(command)
        stale = next(iter(bot.buttons.values()))
        await bot.asks("/setlimit messages 2/h", "Change", by=BORIS)
        told = "Somebody else has changed the limits in the meantime; nothing was changed"
        assert told in await bot.presses(stale)
    assert "2/hour" in await bot.says("/limits")
    changes, limits = Control.of(bot.middleware, "other").changes, Control.limits

    async def then_changed(control: Control) -> object:
        found = await limits(control)
        await changes.set_penalty("9/hour", "3h")
        return found

    monkeypatch.setattr(Control, "limits", then_changed)
    await bot.says("/penalty 4/hour 1h")
    monkeypatch.undo()
    await bot.presses("Change")
    assert (await changes.current()).penalty == {"after": "9/hour", "ban": "3h"}


async def test_history_has_a_button_for_each_version(bot: OperatedBot) -> None:
    """What is confirmed arrives: changes of limits, penalty and exemptions, a pause, its end.

    /history lists versions, with who and when, and a button to roll back to each.
    """
    changes = Control.of(bot.middleware, "test").changes
    assert "<code>messages</code>: 3/hour -&gt; 1/hour" in await bot.says("/setlimit messages 1/h")
    assert "Version 1 is in force on 1 of 1 instances" in await bot.presses("Change")
    assert [await bot.is_handled() for _ in range(2)] == [True, False]
    assert "penalty 2h after 5/hour" in await bot.asks("/penalty 5/hour 2h grows", "Change")
    assert (await changes.current()).penalty == {"after": "5/hour", "ban": "2h", "grows": True}
    assert ": exempt 42" in await bot.asks("/exempt 42", "Exempt")
    assert "exempt from all limits" in await bot.says("/who 42")
    assert await bot.is_handled()
    assert "Version 4" in await bot.asks("/exempt 42 off", "Limit again")
    assert not await bot.is_handled()
    assert "Version 5" in await bot.asks("/pause 1h", "Switch off")
    assert await bot.is_handled()
    for command in ("/limits", "/who 42", "/try 42", "/health"):
        assert "All limits are off until" in await bot.says(command)
    await bot.asks("/resume", "Switch on")
    assert not await bot.is_handled()
    text = await bot.says("/history")
    assert "1: 20" in text
    assert "<code>Anna (1001)</code>, set messages 1/hour, messages: 3/hour -&gt; 1/hour" in text
    assert list(bot.buttons) == [f"↩ {version}" for version in (5, 4, 3, 2, 1, 0)]
    asked = await bot.presses("↩ 0")
    assert "<b>Roll back to version 0?</b>\nmessages: 1/hour -&gt; 3/hour\n" in asked
    assert "rollback to 0" in await bot.presses("Roll back")
    assert [await bot.is_handled(by=43) for _ in range(4)] == [True, True, True, False]


async def test_top_and_stats_count_refusals(storage: Storage) -> None:
    """/top ranks users, with a button for each; /stats has a line for each hour."""
    async with operated_bot_on(storage, statistics=True) as bot:
        assert "Nobody was refused" in await bot.says("/top")
        assert "Nothing was decided" in await bot.says("/stats")
        assert "Waiting to be sent: 0. Answers 429: 0." in await bot.says("/sending")
        for _ in range(5):
            await bot.is_handled()
        assert "<code>42</code>: 2" in await bot.says("/top")
        assert "User <code>42</code>" in await bot.presses("42")
        assert re.search(r"\d\d:00: 3 / 2 / 0", await bot.says("/stats"))
        assert "Refused in the last 24 hours: 2" in await bot.says("/who 42")


async def test_what_needs_an_option_says_which() -> None:
    """Commands that need live=True or statistics=True name the missing option; others work."""
    async with operated_bot_on(MemoryStorage(), live=False) as bot:
        assert "when a bot with live=True starts" in await bot.says("/setlimit messages 1/h")
        for command in ("/top", "/stats", "/sending"):
            assert "statistics=True" in await bot.says(command)
        assert "live=True" in await bot.says("/limits")
        assert "<code>messages</code>: 3/hour" in await bot.says("/limits")
        assert "is banned" in await bot.asks("/ban 42 1h", "Ban")
        assert "Healthy, in this process alone: without Redis" in await bot.says("/health")


async def test_pages_are_turned(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lists have pages that fit into a message, with buttons for next and previous.

    Of the bans these are the first 1,000, and a line says so if there may be more.
    """
    rules = [Rule("3/h", name=f"long{'😀' * 90}{n}") for n in range(60)]
    async with operated_bot_on(storage, *rules) as bot:
        for command in ("/limits", "/who 42"):
            seen = set()
            text = await bot.says(command)
            for page in range(2, 99):
                assert units(text) <= 4096
                seen.update(re.findall(r"<code>(long\S+)</code>", text))
                if f"{page} ›" not in bot.buttons:
                    break
                text = await bot.presses(f"{page} ›")
            assert len(seen) == 60
            assert page > 2
            assert units(await bot.presses(f"‹ {page - 2}")) <= 4096
        control = Control.of(bot.middleware, by="anna")
        for n in range(20):
            await control.ban(Subject(user=100 + n), f"{n + 1}h", "r" * 500)
        assert (await bot.says("/bans")).count("User") == 8
        users = [each for each in bot.buttons if each.isdecimal()]
        assert users == [str(100 + n) for n in range(8)]
        assert [(await bot.presses(each)).count("User") for each in ("2 ›", "3 ›")] == [8, 4]
        assert ("‹ 2" in bot.buttons, "4 ›" in bot.buttons) == (True, False)
        assert "<code>119</code>: banned" in await bot.presses("119")
        assert "r" * 500 in str(bot.shown[-1].text)
        assert "There may be more" not in await bot.says("/bans")
        monkeypatch.setitem(commands._ALL, "bans", {"limit": 20})
        assert (await bot.says("/bans")).endswith("\n\nThe first 20. There may be more.")


async def test_hostile_names_and_reasons_stay_text(storage: Storage) -> None:
    """Markup, newlines and invisible characters in names and reasons never reach the message."""
    name = "</code><b>&lt;x>" + "é" * 150
    async with operated_bot_on(storage, Rule("3/h", name=name)) as bot:
        reason = "</code><a href='x'>\u202espam\n\nUser 43 is not banned & so on " + "😀" * 450
        hostile = user(ANNA) | {"first_name": "<b>\u202e\n" + "A" * 200}
        texts = [
            await bot.says(f"/ban 42 1h {reason[:500]}", **{"from": hostile}),
            await bot.presses("Ban", **{"from": hostile}),
            await bot.says("/bans"),
            await bot.says("/who 42"),
            await bot.says("/limits"),
            await bot.says(f"/setlimit {name} 1/h"),
            await bot.says(f"/setlimit {name} {'<i>' * 100}"),
            await bot.says("/who <b>x</b>"),
            await bot.says("/forgive 42 <u>rule</u>"),
        ]
        for text in texts:
            assert re.findall(r"<[^>]*>", text) == re.findall(r"</?(?:b|code)>", text), text
            assert text.count("<code>") == text.count("</code>")
            assert not {"\u202e"} & set(text)
            assert "\nUser 43" not in text
            assert units(text) <= 4096


async def test_redis_away_is_a_short_answer(own_server: Server, own: RedisStorage) -> None:
    """Every command and button says that Redis cannot be reached, and nothing is raised."""
    async with operated_bot_on(own, statistics=True) as bot:
        await bot.says("/ban 42 1h")
        yes = bot.buttons["Ban"]
        own_server.kill()
        for command in (
            *("/limits", "/who 42", "/try 42", "/forgive 42", "/ban 42 1h", "/unban 42", "/bans"),
            *("/top", "/stats", "/sending", "/setlimit messages 1/h", "/history", "/rollback"),
            *("/pause 1h", "/resume"),
        ):
            assert "Redis cannot be reached" in await bot.says(command), command
        assert "Redis does not answer: meanwhile" in await bot.says("/health")
        assert "Redis cannot be reached" in await bot.presses(yes)


async def test_who_in_a_group_is_about_that_group(storage: Storage) -> None:
    """As a reply in a group, /who shows the counts there, and /forgive resets them.

    /exempt exempts the user, not the group; the group's id exempts all in it.
    """
    rules = [Rule("1/h", Scope.MEMBER), Rule("9/h", Scope.CHAT)]
    async with operated_bot_on(storage, *rules) as bot:
        spam = message("spam", **{"from": user(42), "chat": GROUP})
        await bot.feed(message=spam)
        assert not await bot.is_handled(chat=GROUP)
        reply: dict[str, Any] = {"chat": GROUP, "reply_to_message": spam}
        shown = await bot.says("/who", **reply)
        assert "User <code>42</code> in chat <code>-100500</code>: refused" in shown
        assert "<code>member</code>: 0 of 1 left" in shown
        assert {each.chat_id for each in bot.shown} == {ANNA}
        await bot.presses("Forgive")
        assert "member" in await bot.presses("Forgive")
        assert await bot.is_handled(chat=GROUP)
        assert ": exempt 42" in await bot.asks("/exempt", "Exempt", **reply)
        assert "Exempt chat <code>-100500</code>" in await bot.says("/exempt -100500")
        assert ": exempt -100500" in await bot.presses("Exempt")
        assert all([await bot.is_handled(by=43, chat=GROUP) for _ in range(5)])
