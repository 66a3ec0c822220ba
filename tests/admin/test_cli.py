"""The command `bot-ratelimit` as a process, beside a running bot."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
import typer

from bot_ratelimit import (
    Limiter,
    Penalty,
    RedisStorage,
    Rule,
    Scope,
    Subject,
)
from bot_ratelimit.admin.cli import app, terminal
from bot_ratelimit.admin.control import Control
from tests.admin.shell import ROOT, python, run
from tests.admin.web import running_bot
from tests.incoming.support import Instance
from tests.servers import Server, free_port


@pytest.fixture
async def bot(
    redis_server: Server, shared: RedisStorage, environment: pytest.MonkeyPatch
) -> AsyncIterator[Instance]:
    """A running bot in this process, and a `.env` that leads the command to its Redis."""
    Path(".env").write_text(f"REDIS_URL={redis_server.url}\nREDIS_KEY_PREFIX=shop\n")
    rules, penalty = [Rule("3/h", name="messages"), Rule("50/h", Scope.CHAT)], Penalty("99/h", "1h")
    options: dict[str, Any] = {"key_prefix": "shop", "statistics": False, "penalty": penalty}
    async with running_bot(shared, rules=rules, **options) as found:
        yield found.instance


async def test_a_refused_user_is_seen_and_forgiven(bot: Instance) -> None:
    """`show` says how much is left, `try` has status 1; after `forgive` the user gets through."""
    assert await bot.send("1", "2", "3", "4") == [True, True, True, False]
    shown, tried = await asyncio.gather(run("show", "42"), run("try", "42", "--json"))
    # Rounded to seconds, so less than half a second later it is still an hour.
    assert re.match(r"User 42: refused, allowed again in (1 h|59 min)\b", shown.out)
    assert re.search(r"^messages +0 of 3 left +in (1 h|59 min)\b", shown.out, re.MULTILINE)
    assert "shop:ratelimit:messages:42" in shown.out
    assert (tried.status, tried.json["allowed"]) == (1, False)
    asked = await run("forgive", "42", typed="n\n")
    assert (asked.status, "not confirmed" in asked.err) == (5, True)
    assert asked.out.startswith("messages: 3 of 3 used. The count is deleted.\n")
    assert await bot.send("5") == [False]
    done = await run("forgive", "42", typed="y\n")
    forgiven = "User 42 is forgiven: messages, chat, ban"
    assert (done.status, done.out.splitlines()[-1]) == (0, forgiven)
    assert await bot.send("6") == [True]


async def test_a_limit_is_set_and_rolled_back(bot: Instance) -> None:
    """`set` shows, asks, and waits until the instances obey; `history` and `rollback` follow.

    If somebody else changes the limits before the answer, nothing is done: status 4.
    """
    done = await run("set", "messages", "1/minute", typed="y\n")
    first, *_, last = done.out.splitlines()
    assert first == "messages: 3/hour -> 1/minute"
    assert last == "Version 1 is in force on 1 of 1 instances: set messages 1/minute"
    assert await bot.send("1", "2") == [True, False]
    listed, audited = await asyncio.gather(run("history", "--json"), run("audit"))
    assert listed.json[0]["changed"] == ["messages: 3/hour -> 1/minute"]
    assert "messages: 3/hour -> 1/minute" in audited.out
    asked = await run("rollback", typed="n\n")
    assert (asked.status, asked.out.splitlines()[0]) == (5, "messages: 1/minute -> 3/hour")
    assert "Roll back to version 0? [y/N] not confirmed" in asked.err
    back = await run("rollback", "--yes", "--json")
    assert back.json == {"version": 2, "obeying": 1, "instances": 1}
    assert await bot.send("3") == [True]
    process = await started("rollback")
    assert await process.stderr.readuntil(b"[y/N] ")
    await run("set", "messages", "9/h", "--yes")
    _, told = await process.communicate(b"y\n")
    assert (process.returncode, b"version 3 follows 2; look again" in told) == (4, True)
    assert (await run("history", "--json")).json[0]["what"] == "set messages 9/hour"


async def started(*arguments: str) -> Any:
    """The command as another Python, with pipes as its standard streams."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot_ratelimit", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def test_it_works_in_60_columns_and_through_a_pipe(bot: Instance) -> None:
    """In 60 columns nothing is cut and no line is longer; in a pipe a rule is one line.

    Where no bot reports, a line names the prefix and what to check.
    """
    narrow, piped, elsewhere = await asyncio.gather(
        run("config", COLUMNS="60"),
        run("limits"),
        run("limits", REDIS_KEY_PREFIX="other", RATE_LIMIT="7/h"),
    )
    assert max(map(len, narrow.out.splitlines())) <= 60
    assert "…" not in narrow.out
    assert "RATE_LIMIT_MEMORY_SIZE" in narrow.out.replace("\n", "")
    names = [line.split()[0] for line in piped.out.splitlines()]
    assert names[:5] == ["NAME", "messages", "chat", "ban", "bots:member"]
    assert "No running bot" not in piped.out
    told = "No running bot reports under 'other': is REDIS_KEY_PREFIX that of the bot"
    assert told in " ".join(elsewhere.out.split())
    assert "7/h" in elsewhere.out


async def test_a_mistake_is_one_line_before_anything_is_asked(bot: Instance) -> None:
    """Status 2, one line on standard error that says what is wrong, and nothing to confirm."""
    Path("bad.toml").write_text("[limits]\nai = '5 minutes'\n")
    for command, told in {
        "set massages 2/m": "no rule is called 'massages': expected one of ban, bots:member, ",
        "set messages 2h --json": "'2h'",
        "ban 0 1h": "0 is not the id of a user or a chat, such as 42 or -100123",
        "ban -100 1h --as_user --yes": "no such option: --as_user",
        "ban 42 1h -yes": "no such option: -es",
        "exempt 777000": "share: use the id of one user or chat",
        "penalty 3/h 1x": "'1x'",
        "rollback 99": "there is no version 99",
        "stats --json": "pass statistics=True to RateLimitMiddleware",
        "sending 49": "expected a whole number from 1 to 48",
        "check bad.toml": "bad.toml: [limits] ai: '5 minutes': expected",
    }.items():
        found = await run(*command.split(), typed="y\n")
        assert (found.status, found.out, found.err.count("\n")) == (2, "", 1), command
        assert found.err.startswith("error: ")
        assert told in found.err, command
    right = await run("check", str(ROOT / "docs" / "limits.toml"))
    assert (right.status, right.out.endswith("limits.toml: no mistakes\n")) == (0, True)
    Path(".env").unlink()
    nowhere = await run("limits")
    assert (nowhere.status, "set REDIS_URL or REDIS_HOST" in nowhere.err) == (2, True)


async def test_watch_keeps_showing_the_state(bot: Instance) -> None:
    """With --json each look is a line; without, a table. In an outage it says so and goes on."""
    look, away = ("watch", "--count", "2", "--every", "0.1"), f"redis://127.0.0.1:{free_port()}"
    lines, table, out, out_table, none = await asyncio.gather(
        run(*look, "--json"),
        run("watch", "--count", "1"),
        run(*look, "--json", REDIS_URL=away),
        run(*look, REDIS_URL=away),
        run("watch", "--count", "0"),
    )
    assert [json.loads(line)["health"]["ok"] for line in lines.out.splitlines()] == [True, True]
    assert "messages" in table.out
    looks = [json.loads(line) for line in out.out.splitlines()]
    assert [(each["health"]["ok"], each["config"]) for each in looks] == [(False, None)] * 2
    assert (out_table.status, "Connection refused" in out_table.out) == (0, True)
    assert none.status == 2
    # Ctrl-C ends it with status 130, as every other command, and without a traceback.
    process = await started("watch", "--json")
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()
    assert (process.returncode, told) == (130, b"")


async def test_health_has_a_status_of_its_own(bot: Instance) -> None:
    """0 while limits are enforced, 1 when Redis is away, 6 while they are off; else 3 then."""
    away = f"redis://127.0.0.1:{free_port()}"
    well, ill, out = await asyncio.gather(
        run("health"), run("health", REDIS_URL=away), run("show", "42", REDIS_URL=away)
    )
    assert (well.status, well.out.startswith("Redis answered in ")) == (0, True)
    assert (ill.status, ill.out.startswith("Redis does not answer: meanwhile ")) == (1, True)
    assert (out.status, out.err.startswith("error: ")) == (3, True)
    await run("pause", "1h", "--yes")
    for command, status in (("health", 6), ("limits", 0), ("try 42", 0), ("watch --count 1", 0)):
        found = await run(*command.split())
        assert (found.status, "All limits are off until 20" in found.out) == (status, True), command


@pytest.mark.parametrize("arguments", [("bans",), ("bans", "--json"), ("--version",)])
def test_a_result_that_cannot_be_written_is_one_line(
    redis_server: Server, arguments: tuple[str, ...]
) -> None:
    """A full, closed or broken standard output is one line with status 2, and no traceback.

    1 would say that the answer is no.
    """
    command = ("-m", "bot_ratelimit", *arguments)
    for redirected, status, told in (
        (">/dev/full", 2, "error: cannot write the result: No space left on device"),
        (">&-", 2, "error: standard output is closed"),
        (">/dev/null", 0, ""),
    ):
        ran = python(*command, shell=redirected, REDIS_URL=redis_server.url)
        assert (ran.returncode, ran.stderr.strip()) == (status, told)
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": redis_server.url}
    command = (sys.executable, *command)
    ran = subprocess.run(
        command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    told = "error: cannot write the result: Broken pipe"
    assert (ran.returncode, ran.stderr.strip()) == (2, told)


def test_help_version_and_mistakes_do_not_wait_for_aiogram() -> None:
    """What needs no bot imports none; commands that only talk to Redis do not either.

    The table in docs/operate.md names every command, and none that is not there.
    """
    statuses = {"--version": 0, "--help": 0, "bna": 2, "ban --help": 0, "health": 1}
    code = (
        "import sys\n"
        "from bot_ratelimit.__main__ import main\n"
        f"for each in {[*statuses]}:\n"
        "    sys.argv[1:] = each.split()\n"
        "    try: main()\n"
        "    except SystemExit as end: print('\\n', end.code, 'aiogram' in sys.modules)"
    )
    ran = python("-c", code, REDIS_URL="redis://127.0.0.1:1")
    found = [line.split() for line in ran.stdout.splitlines() if line.endswith("False")]
    assert found == [[str(status), "False"] for status in statuses.values()], ran.stderr
    text = (ROOT / "docs" / "operate.md").read_text("utf-8")
    group: Any = typer.main.get_group(app)
    assert {*re.findall(r"^\| `bot-ratelimit (\w+)", text, re.MULTILINE)} == {*group.commands}


LONG = " ".join(["spam"] * 90)
"""A reason."""


async def test_a_user_is_banned_and_unbanned(bot: Instance) -> None:
    """`ban` shows and asks; `show`, `try` and `bans` say until when, by whom and why.

    A negative id is a chat's; a ban with `--chat` is of a user there, and is lifted with it. If a
    page of the list is full, a line says so.
    """
    asked = await run("ban", "42", "forever", "spam", typed="n\n")
    first, reason, _ = asked.out.splitlines()
    assert first.startswith("Everything from user 42 is refused forever, except payments and ")
    assert (asked.status, reason) == (5, "Reason: spam")
    done, chat, member = await asyncio.gather(
        run("ban", "42", "forever", LONG, "--yes"),
        run("ban", "-100", "1h", "--yes", "--json"),
        run("ban", "43", "1h", "--chat", "-100", "--yes", "--json"),
    )
    assert (done.status, done.out.splitlines()[-1]) == (0, "User 42 is banned forever.")
    whos = [(each.json["subject"]["user"], each.json["subject"]["chat"]) for each in (chat, member)]
    assert whos == [(None, -100), (43, -100)]
    shown, tried, listed, page = await asyncio.gather(
        run("show", "42"), run("try", "42"), run("bans"), run("bans", "--limit", "2")
    )
    assert re.search(rf"^Banned forever, by \S+@\S+, {LONG}$", shown.out, re.MULTILINE)
    assert (tried.status, tried.out) == (1, "Refused: banned forever.\n")
    assert re.search(rf"^User 42 +forever +\S+@\S+ +{LONG[:199]}", listed.out, re.MULTILINE)
    assert page.out.splitlines()[-1] == "There may be more: --offset 2"
    assert "There may be more" not in listed.out
    forgiven = await run("forgive", "42", "--yes")
    assert forgiven.out.splitlines()[-1].startswith("Still banned forever, by ")
    limited = await run("exempt", "42", "--not", "--yes")
    assert "even if the bot's configuration exempts user 42" in limited.out + limited.err
    for command, told in (
        ("unban 42", "User 42 is not banned any more."),
        ("unban 43", "User 43 was not banned."),
        ("unban 43 --chat -100", "User 43 in chat -100 is not banned any more."),
    ):
        assert (await run(*command.split(), "--yes")).out.splitlines()[-1] == told


HOSTILE = "\x1b]0;x\x07\x9b2J[/red][link=https://evil.example]\u202espam\r\nuser 43 :bomb:"
"""What a reason may contain: terminal escapes, markup of rich, and the beginning of a line."""


async def test_what_a_terminal_would_obey_is_only_shown(
    bot: Instance, client: aioredis.Redis
) -> None:
    """Escape sequences, newlines and markup in a reason, a name or an error do nothing.

    In a terminal of another encoding, text is readable and JSON is valid.
    """
    limiter = Limiter(RedisStorage(client), key_prefix="shop", timeout=5)
    await Control(limiter, f"anna {HOSTILE}").ban(Subject(user=42), "1h", HOSTILE)
    await limiter.close()
    plain = "\\x1b]0;x\\x07\\x9b2J[/red][link=https://evil.example]\\u202espam\\r\\nuser 43 :bomb:"
    commands = (("bans",), ("audit",), ("show", "42"), ("forgive", "42", "--yes"))
    wide = {"COLUMNS": "1000"}
    shown = await asyncio.gather(*(run(*each, **wide) for each in commands))
    asked = await run("ban", "42", "2h", HOSTILE, typed="n\n", **wide)
    for ran in (*shown, asked):
        assert plain in ran.out
        assert all(each.isprintable() for each in ran.out.replace("\n", ""))
        assert not any(line.startswith("user 43") for line in ran.out.splitlines())
    as_json = await run("bans", "--json")
    assert as_json.json[0]["reason"] == HOSTILE
    assert all(each.isprintable() for each in as_json.out.replace("\n", ""))
    wrong = await run("try", "42", "--rule", "x\x1b[2J\nerror")
    assert (wrong.status, wrong.err.count("\n"), "\x1b" in wrong.err) == (2, 1, False)
    wrong = await run("ban", "42", "1h", "\udcff", "--yes")  # bytes that are not UTF-8
    assert (wrong.status, wrong.out) == (2, "")
    assert wrong.err == "error: reason='\\udcff': expected text that can be written in UTF-8\n"
    await run("ban", "42", "1h", "спам 😀", "--yes")
    for options in ([], ["--json"]):
        command = ("-m", "bot_ratelimit", "bans", *options)
        found = await asyncio.to_thread(python, *command, PYTHONIOENCODING="ascii")
        assert (found.returncode, "\\u0441\\u043f" in found.stdout) == (0, True), found.stderr
    assert json.loads(found.stdout)[0]["reason"] == "спам 😀"


async def test_what_is_not_confirmed_is_not_done(bot: Instance, client: aioredis.Redis) -> None:
    """With --json, the change is shown beside the question; standard output has only the result.

    A service without standard input confirms nothing. `clear` asks twice.
    """
    asked = await run("ban", "42", "1h", "spam", "--json", typed="n\n")
    assert (asked.status, asked.out) == (5, "")
    assert asked.err.startswith("Everything from user 42 is refused until 20")
    assert "Ban user 42 for 1 h? [y/N] not confirmed" in asked.err
    closed = ("-m", "bot_ratelimit", "ban", "42", "1h")
    ran = await asyncio.to_thread(python, *closed, shell="<&-")
    assert (ran.returncode, "Traceback" in ran.stderr) == (5, False)
    assert (await run("bans")).out == "Nobody is banned.\n"
    done = await run("ban", "42", "1h", "--json", typed="y\n")
    assert (done.status, done.json["subject"]["user"]) == (0, 42)
    assert (await run("unban", "42", "--json", "--yes")).err == ""
    counts = ("shop:ratelimit:messages:1", "shop2:ratelimit:1")
    await client.mset(dict.fromkeys(counts, 1))
    assert (await run("clear", typed="y\nwrong\n")).status == 5
    assert await client.exists(*counts) == 2
    done = await run("clear", typed="y\nshop\n")
    assert (done.status, done.out.splitlines()[-1]) == (0, "Keys deleted: 2")  # one of bans
    assert not await client.exists(counts[0])
    assert await client.exists(counts[1])  # of another bot


def test_a_user_without_a_name_operates(environment: pytest.MonkeyPatch) -> None:
    """In a container, where the user is only a number, that number is the operator's name."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        environment.delenv(name, raising=False)
    environment.setattr(pwd, "getpwuid", dict[int, Any]().__getitem__)  # KeyError
    assert terminal.operator() == str(os.getuid())


def test_each_front_end_imports_only_what_it_needs() -> None:
    """The package imports no front end, the router and the command no web server.

    Where a library is missing, one line says what to install.
    """
    code = """
import sys, aiogram
known = {*sys.modules}
def new(*names): print(*[each for each in {*sys.modules} - known if each.startswith(names)])
import bot_ratelimit
new("typer", "rich", "bot_ratelimit.admin")
import bot_ratelimit.admin as admin
new("bot_ratelimit.admin.telegram", "bot_ratelimit.admin.web")
admin.admin_router
new("typer", "rich", "jinja2", "bot_ratelimit.admin.web")
import bot_ratelimit.admin.control, bot_ratelimit.admin.cli
new("jinja2", "aiohttp.web", "bot_ratelimit.admin.web")
sys.modules["jinja2"] = None
admin.admin_app(bot_ratelimit.RateLimitMiddleware(), token="correct-horse-battery")
"""
    ran = python("-c", code)
    needs = "ConfigError: admin_app needs jinja2: pip install 'bot_ratelimit[admin]'"
    assert (ran.stdout, ran.stderr.splitlines()[-1][-len(needs) :]) == ("\n\n\n\n", needs)
    main = "from bot_ratelimit.__main__ import main; main()"
    ran = python("-c", f"import sys; sys.modules['typer'] = None; {main}")
    said = "bot-ratelimit needs typer: pip install 'bot_ratelimit[cli]'"
    assert (ran.returncode, ran.stderr.strip()) == (1, said)
