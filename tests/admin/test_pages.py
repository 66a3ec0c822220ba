"""The operators' page as it leaves the server: without a browser, over real HTTP and Redis."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Decision, Penalty, RedisStorage, Rule, Subject
from bot_ratelimit.admin.fields import Counted, checked
from bot_ratelimit.admin.views import Total
from bot_ratelimit.admin.web.chart import chart_of
from bot_ratelimit.storage.base import Storage
from tests.servers import Server
from tests.tables import table

from .web import PAGE, Reply, Site, Visitor, running_bot, sending


class Reader:
    """Somebody who is logged in, and reads pages."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor

    async def get(self, path: str = "", status: int = 200) -> Reply:
        """A page."""
        reply = await self._visitor.get(path, headers=PAGE)
        assert reply.status == status, path
        return reply

    async def text(self, path: str = "", status: int = 200) -> str:
        return (await self.get(path, status)).text

    async def words(self, path: str = "", status: int = 200) -> str:
        return (await self.get(path, status)).words

    async def post(self, path: str, **fields: Any) -> str:
        """What comes after sending the form that a page shows, with these fields, too."""
        return await self.send(path.partition("?")[0], await self.get(path), **fields)

    async def send(self, path: str, page: Reply, status: int = 200, **fields: Any) -> str:
        """What comes after sending the second form of a page; the first one is for logging out."""
        form = re.findall(
            r'<form method="post" action="\./' + path + r'">(.*?)</form>', page.text, re.S
        )
        hidden = r'<input type="hidden" name="([^"]*)" value="([^"]*)">'
        found = {name: unescape(value) for name, value in re.findall(hidden, form[0])}
        reply = await self._visitor.ask("POST", path, data=found | fields, headers=PAGE)
        assert reply.status == status
        return reply.words


@pytest.fixture
async def bot(shared: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr("bot_ratelimit.config.live.EVERY", 0.02)
    async with running_bot(shared, penalty=Penalty("20/hour", "1h")) as found:
        yield found


@pytest.fixture
async def reader(bot: Site) -> AsyncIterator[Reader]:
    async with bot.visitor() as visitor:
        await visitor.log_in()
        yield Reader(visitor)


async def test_nothing_that_people_wrote_becomes_html(bot: Site, reader: Reader) -> None:
    """A reason, an address and a form are shown as they were typed.

    Fifty bans are on a page, with a way to the next and back.
    """
    await bot.control.ban(Subject(user=7), "1h", "<script>alert(1)</script>")
    for path in ("", "bans", "history", "user?user=7", "unban?user=7"):
        page = await reader.text(path)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page, path
    odd = '"><b>'
    for path in (f"user?user={odd}", f"ban?user={odd}&how_long=1h", f"limit?name=x&limit={odd}"):
        assert odd not in await reader.text(path, 422)
    for user in range(101, 155):
        await bot.control.ban(Subject(user=user, chat=-200), f"{user}h")
    first, second = [await reader.text(f"bans{each}") for each in ("", "?offset=50")]
    assert (first.count('<th scope="row"'), second.count('<th scope="row"')) == (50, 5)
    assert ("bans?offset=50" in first, "bans?offset=0" in second) == (True, True)
    assert "User 101 in chat -200" in await reader.words("bans")
    assert "All bans" in await reader.words()


async def test_pages_need_nothing_from_elsewhere(reader: Reader) -> None:
    """Every link is relative, so any path and proxy will do; no style or script is inline."""
    for path in (
        *("", "bans", "history", "user?user=7", "forgive?user=7", "ban?user=7&how_long=1h"),
        *("unban?user=7", "exempt?user=7", "limit?name=messages", "penalty", "pause", "resume"),
        *("limit?name=messages&limit=2/minute", "penalty?after=5/minute&ban=1h&grows=yes"),
        *("pause?how_long=1h", "rollback?version=0"),
    ):
        page = await reader.text(path)
        targets = re.findall(r'(?:href|src|action)="([^"]*)"', page)
        assert all(each.startswith(("./", "#")) for each in targets), path
        assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?! src=)", page), path
    for path, id_ in (("user?user=7&chat=-200", 7), ("user?user=-200", -200)):
        assert f'="./exempt?id={id_}&amp;exempt=yes"' in await reader.text(path)
    for name in ("console.css", "console.js", "icon.svg"):
        text = await reader.text(f"static/{name}")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    await reader.get("static/pages.py", 404)


async def test_what_makes_no_sense_is_told(bot: Site, reader: Reader) -> None:
    """A mistake gets 422 and one sentence, on the page where it was made.

    A value that the preview refuses is refused when it is sent as well, and shown again.
    """
    for path, said in {
        "user?user=4x": "'4x': expected a whole number, for example 123456789.",
        "ban?user=7&how_long=soon": "'soon'",
        "ban?how_long=1h": "Expected the id of a user, or the negative id of a chat.",
        "ban?user=7&how_long=1h&reason=" + "x" * 501: "at most 500 characters",
        "limit?name=messages&limit=3/hour&state=on": "No change for 'messages'",
        "limit?name=nope": "No rule is called 'nope': expected one of ban, bots:member, chat",
        "penalty?after=5/minute&ban=soon": "soon",
        "pause?how_long=0s": "'0s': limits can be off for 1 s at least and a day at most.",
        "rollback?version=9": "There is no version 9 to roll back to: expected 0.",
    }.items():
        assert said in await reader.words(path, 422), path
    for path, fields in (
        ("limit?name=messages&limit=9/hour", {"limit": "lots"}),
        ("ban?user=7&how_long=1h", {"how_long": "soon"}),
    ):
        page = await reader.get(path)
        said = await reader.send(path.partition("?")[0], page, 422, **fields)
        assert next(iter(fields.values())) in said
    assert (await bot.control.changes.current()).version == 0
    assert await bot.control.bans() == []
    for name, is_limit in (("messages", True), ("ban", False)):  # what a penalty cannot be asked
        form = await reader.text(f"limit?name={name}")
        assert ('name="limit"' in form, 'value="trial"' in form) == (is_limit, is_limit)


async def test_the_limit_of_a_function_is_replaced(storage: Storage) -> None:
    """A rule whose limit a function decides has a field for a limit, which may stay empty."""
    rules: Any = {"rules": lambda event, data: "3/h"}
    async with running_bot(storage, **rules) as bot, bot.visitor() as visitor:
        await visitor.log_in()
        reader, changes = Reader(visitor), bot.control.changes
        assert 'name="limit" value=""' in await reader.text("limit?name=user")
        await reader.post("limit?name=user&limit=&state=trial")
        assert (await changes.current()).rules == {"user": {"shadow": True}}
        await reader.post("limit?name=user&limit=9/hour&state=on")
        assert await bot.send(12) == 9
        await reader.post("limit?name=user&default=yes")
        assert (await changes.current()).rules == {}


async def test_two_operators_do_not_overwrite_each_other(bot: Site, reader: Reader) -> None:
    """A change to a version that is outdated is refused, and shown again for the newest one."""
    await bot.control.set_rule("chat", "50/hour")
    page = await reader.get("limit?name=messages&limit=9/hour&state=on")
    await bot.control.set_rule("chat", "60/hour")
    said = await reader.send("limit", page, 409)
    assert "Nothing was changed: anna@shell changed the live limits in the meantime" in said
    assert (await bot.control.changes.current()).version == 2
    said = await reader.post("limit?name=messages&limit=9/hour&state=on")
    assert "Version 3 is in force on 1 of 1 instances" in said
    rules = (await bot.control.changes.current()).rules
    assert rules == {"chat": {"limit": "60/hour"}, "messages": {"limit": "9/hour"}}


async def test_every_step_does_what_it_said(
    bot: Site, reader: Reader, client: aioredis.Redis
) -> None:
    """Limit, trial, penalty, exemption, pause, resume and roll back arrive in the document.

    A document that nobody can read is named, with the way back.
    """
    changes = bot.control.changes
    trial = {"messages": {"limit": "9/hour", "shadow": True}}
    penalty = {"after": "5/minute", "ban": "1h", "grows": True}
    for path, name, value in (
        ("limit?name=messages&limit=9/hour&state=trial", "rules", trial),
        ("limit?name=messages&default=yes", "rules", {}),
        ("limit?name=ban&state=off", "rules", {"ban": {"off": True}}),
        ("penalty?after=5/minute&ban=1h&grows=yes", "penalty", penalty),
        ("penalty?after=default", "penalty", None),
        ("exempt?user=7", "exempt", {7}),
        ("exempt?user=7&exempt=no", "limited", {7}),
    ):
        await reader.post(path)
        await bot.obey()
        assert getattr(await changes.current(), name) == value
    await reader.post("pause?how_long=1h")
    assert "All limits are off until" in await reader.words()
    await reader.post("resume")
    assert (await changes.current()).off_until == 0
    said = await reader.post("rollback?version=1")
    assert "Version 10 is in force on 1 of 1 instances: rollback to 1" in said
    assert (await changes.current()).rules == trial
    assert {entry.by for entry in await bot.control.audit()} == {"token@web"}
    await client.set("bot:ratelimit:live", b"{nonsense")
    page = await reader.words()
    said = "the live document is not JSON; a rollback replaces it with the last good version"
    assert page.count(said) == 1
    assert "Until then the last good version stays in force." in page
    page = await reader.words("rollback")
    assert "is invalid; version 10 stays in force until it is replaced." in page
    await reader.post("rollback")
    assert (await changes.current()).rules == trial


async def test_numbers_of_the_chart_are_sums_of_the_rows(bot: Site, reader: Reader) -> None:
    """Allowed, refused and banned of all rows, also of rules that are gone, are the chart's.

    By minute, so that a flood can be watched, and by hour. Only the selected counts are forgiven.
    """
    await bot.send(5, 7)
    page = await reader.words("forgive?user=7&rules=chat")
    assert "chat: 3 of 100 used. The count is deleted" in page
    assert "messages: 3 of 3 used" not in page
    await reader.post("forgive?user=7&rules=chat")
    left = {each.rule: each.remaining for each in (await bot.control.show(Subject(7, 7))).counts}
    assert (left["messages"], left["chat"]) == (0, 100)
    assert "no such counts" in await reader.words("forgive?user=7&rules=chat")
    await bot.control.ban(Subject(user=7), "1h")
    await bot.send(2, 7)
    gone = Decision(True, Rule("1/s", name="gone"), 0, 0.0, 0.0, "redis")
    statistics = bot.middleware.limiter._statistics
    assert statistics is not None
    statistics.decided(gone, Subject(user=1), 0.0)
    number = re.compile(r'<td class="number"[^>]*>(\d+)</td>')
    for path, bars in (("", {60, 61}), ("?hours=24", {24, 25})):
        text = await reader.text(path)
        assert text.count('class="slot"') in bars
        totals = [int(each) for each in re.findall(r"<dd>(\d+)</dd>", text)]
        table = text.partition('id="limits"')[2].partition("</table>")[0]
        rows = [number.findall(row)[:3] for row in table.split("<tr>")]
        sums = [sum(int(row[n]) for row in rows if len(row) == 3) for n in range(3)]
        assert sums == totals == [4, 2, 2]
        assert "no rule in force" in text


async def test_the_page_shows_what_the_bot_sends(
    bot: Site, reader: Reader, shared: RedisStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests, 429s, what waits, blocks and broadcasts; or what they need.

    Without statistics, bans and changes the page says so, and how to get them.
    """
    assert "That needs OutgoingLimits(..., statistics=True)" in await reader.words()
    async with sending(shared, monkeypatch):
        part = (await reader.words()).partition("What the bot sends")[2]
    for said in ("Waiting to be sent: ", "Answers 429: 1.", " of 1000 chats", "SendMessage"):
        assert said in part
    async with running_bot(shared, statistics=False) as other, other.visitor() as visitor:
        await visitor.log_in()
        page = (await visitor.get("", headers=PAGE)).words
        for said in ("statistics=True", "Nobody is banned.", "Nothing was changed yet"):
            assert said in page


async def test_limits_that_are_off_are_not_called_on(bot: Site, reader: Reader) -> None:
    """A limit that is off or on trial, or a pause of all, is named, and the overview is orange.

    Then, or for exempt users, a ban does not hold, which its pages say.
    """
    assert 'class="notice ok' in await reader.text()
    for change, said in (
        ("limit?name=messages&state=off", "that refuse nobody: messages 3/hour (off)."),
        ("limit?name=messages&state=trial", "that refuse nobody: messages 3/hour (trial)."),
        ("pause?how_long=1h", "All limits are off until 20"),
    ):
        await bot.control.changes.rollback(0)
        await bot.obey()
        assert "All limits are on." in await reader.words()
        await reader.post(change)
        await bot.obey()
        page = await reader.get()
        assert (said in page.words, 'class="notice warn' in page.text) == (True, True)
        assert "All limits are on" not in page.words
    assert "All limits are off until" in await reader.words("user?user=7")
    assert "as long as all limits are off" in await reader.words("ban?user=7&how_long=1h")
    await reader.post("exempt?user=7")
    assert "as long as user 7 is exempt" in await reader.words("ban?user=7&how_long=1h")
    await reader.post("ban?user=7&how_long=1h")
    assert "so the ban does not apply" in await reader.words("user?user=7")


async def test_an_outage_leaves_a_page(own_server: Server, own: RedisStorage) -> None:
    """With Redis away every page answers at once: the overview says what is wrong, others 503."""
    async with running_bot(own) as bot, bot.visitor(**PAGE) as visitor:
        await visitor.log_in()
        own_server.kill()
        page = (await visitor.get("")).words
        assert "Redis does not answer: meanwhile the bot handles every update" in page
        assert "messages 3/hour per user" in page  # what this process knows stays visible
        assert " 0 ms" not in page
        assert page.count("check that Redis is running") == 1  # the reason is said once
        user = await visitor.get("user?user=7")
        assert (user.status, "Service Unavailable" in user.words) == (503, True)


@table(
    ("fields", "subject"),
    [
        ({"id": "7"}, Subject(7, 7)),
        ({"id": "7", "chat": "-100"}, Subject(7, -100)),
        ({"id": "-100"}, Subject(None, -100)),
        ({"id": "-100", "topic": "3", "bot": "9"}, Subject(None, -100, 3, 9)),
        ({"id": "-200", "as_user": True, "chat": "-100"}, Subject(-200, -100)),
    ],
)
def test_fields_say_who_is_meant(fields: dict[str, Any], subject: Subject) -> None:
    """A user is looked at in the private chat unless another is named; a chat's id is negative."""
    assert checked(Counted, fields).subject == subject


def test_a_single_refusal_is_seen_in_the_chart() -> None:
    """Bars stack from below; each outcome that happened is high enough to be seen.

    The upper edge of the chart is a number whose half is round, too.
    """
    hour = datetime(2026, 1, 1, tzinfo=UTC)
    chart = chart_of([Total(hour, 999_999, 1, 0), Total(hour)])
    assert chart.totals == {"allowed": 999_999, "refused": 1, "banned": 0}
    assert chart.top == 1_000_000
    allowed, refused, banned = chart.bars[0].parts
    assert (allowed[2], refused[2], banned[2]) == (100, 1.5, 0)
    assert all(part[1:] == (100, 0) for part in chart.bars[1].parts)
    tops = [chart_of([Total(hour, count)]).top for count in (0, 4, 5, 11, 31, 4_124)]
    assert [chart_of([]).top, *tops] == [4, 4, 4, 6, 12, 40, 6_000]
