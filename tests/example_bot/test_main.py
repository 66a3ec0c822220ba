"""`python -m example_bot`, as a separate process."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from bot_ratelimit import ConfigError, Settings
from bot_ratelimit.admin.control import Control
from example_bot.__main__ import main
from example_bot.bot import PONG
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.updates import callback, message
from example_bot.serve import freeze
from example_bot.settings import BotSettings
from tests.servers import PATIENCE, Server, free_port

from .conftest import Process, Start

PREFIX, OPERATOR, PASSWORD = "test-instances", 7, "a-token-for-the-page-of-this-test"
URL = "such as 'https://bot"


def test_an_invalid_setting_is_one_line(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid value is one line that names the variable and shows no secret."""
    # Metrics are registered once in a process, and this one starts the bot several times.
    environment.setattr("example_bot.__main__.metrics", list)
    for name, value, sentence in (
        ("BOT_TOKEN", "", "BOT_TOKEN is not set: put the token that @BotFather gave you into"),
        ("BOT_TOKEN", "", "run 'make demo'"),
        ("BOT_TOKEN", "hunter2", "BOT_TOKEN: expected the token as @BotFather"),
        ("WEBHOOK_URL", "bot.example.org", URL),
        ("WEB_SERVER_PORT", "http", "WEB_SERVER_PORT: Input should be"),
        ("RATE_LIMIT", "5 minutes", "RATE_LIMIT"),
        ("BOT_API_URL", "localhost:8081", URL),
        ("BOT_API_URL", "http://h:99999", URL),
        ("BOT_API_URL", f"https://api.telegram.org/bot{TOKEN}", "expected only the server"),
        ("ADMIN_IDS", "@anna", "ADMIN_IDS: expected ids of users"),
        ("RATE_LIMIT_ADMIN_TOKEN", "hunter2", "RATE_LIMIT_ADMIN_TOKEN (or token=): expected 16"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BOT_TOKEN", TOKEN)
            patch.setenv(name, value)
            assert main() == 2
        out, err = capsys.readouterr()
        assert sentence in err
        assert (out, err.count("\n")) == ("", 1)
        assert "hunter2" not in err
        assert TOKEN not in err
    # Nor is a secret reachable from the error, of a wrongly encoded `.env` either.
    environment.setenv("BOT_TOKEN", "hunter2")
    for told in ("expected the token", "save it as UTF-8"):
        with pytest.raises(ConfigError, match=told) as error:
            BotSettings.load()
        assert error.value.__cause__ is error.value.__context__ is None
        Path(".env").write_text("BOT_TOKEN=hunter2", "utf-16")


def bot_of(api: BotApi, **more: object) -> dict[str, str]:
    """The variables of a bot that talks to the stand-in."""
    given = {"BOT_TOKEN": TOKEN, "BOT_API_URL": api.url, "RATE_LIMIT_ADMIN_TOKEN": PASSWORD}
    return given | {name: str(value) for name, value in more.items()}


async def test_what_it_cannot_start_with_is_one_line(api: BotApi, start: Start) -> None:
    """A revoked token, an address without a Bot API, or a port in use is named as the cause.

    The page for operators without a server is named before.
    """

    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>\nHello\n</html>", content_type="text/html")

    unknown, no_api = "BOT_TOKEN: Telegram does not know", "The Bot API refused, or none answers: "
    runner = web.ServerRunner(web.Server(page))
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as other:
        await web.TCPSite(runner, "127.0.0.1", elsewhere := free_port()).start()
        busy = other.getsockname()[1]
        hook = {"WEBHOOK_URL": "http://127.0.0.1:1/", "WEB_SERVER_PORT": busy}
        secret, stranger = "http://me:hunter2@127.0.0.1", TOKEN.replace("demo", "spam")
        running = [
            (told, await start("example_bot", **bot_of(api, **settings)))
            for told, settings in (
                (unknown, {"BOT_TOKEN": stranger}),
                (unknown, {"BOT_TOKEN": stranger, **hook}),
                (no_api, {"BOT_API_URL": f"{secret}:{free_port()}"}),
                (no_api, {"BOT_API_URL": f"{secret}:{elsewhere}", **hook}),
                (f"WEB_SERVER_PORT={busy}: cannot listen there", hook),
                (f"HEALTH_PORT={busy}: cannot listen there", {"HEALTH_PORT": busy}),
            )
        ]
        logs = []
        for told, process in running:
            status, _, err = await process.finished()
            logs.append(err)
            assert (status, told in err.splitlines()[-1]) == (2, True), err
            for word in ("Traceback", "Unclosed", "hunter2", TOKEN):
                assert word not in err
        assert "The page for operators has no server: set HEALTH_PORT" in logs[0]
    await runner.cleanup()


async def test_long_polling(api: BotApi, start: Start, tmp_path: Path) -> None:
    """With a token the bot polls, answers and limits, and SIGTERM lets it finish.

    HEALTH_PORT serves health, metrics and the page meanwhile.
    """
    (tmp_path / ".env").write_text(f"BOT_TOKEN={TOKEN}\nBOT_API_URL={api.url}\nWEBHOOK_URL=\n")
    given = {"RATE_LIMIT_ADMIN_TOKEN": PASSWORD, "HEALTH_PORT": str(port := free_port())}
    process = await start("example_bot", RATE_LIMIT="3/minute", **given)
    await process.logged(f"Health and metrics at http://127.0.0.1:{port}/")
    await api.called("deleteWebhook", timeout=PATIENCE)
    await api.enqueue(message(42, "/ping"))
    (pong,) = await api.called("sendMessage")
    await api.enqueue(callback(42, "ping"))
    (answer,) = await api.called("answerCallbackQuery")
    assert (pong.text, answer.text) == (f"{PONG}, 2 left", f"{PONG}, 1 left")
    counted = 'bot_ratelimit_decisions_total{outcome="allowed",rule="user",source="memory"} 2.0'
    assert counted in await pages(port)
    await api.enqueue(message(42, "/report"))
    await api.called("sendMessage", times=2)
    process.stop()
    await api.called("editMessageText")
    await assert_clean_end(process)


async def test_webhook(api: BotApi, start: Start) -> None:
    """With WEBHOOK_URL the bot serves, and SIGTERM lets the update in progress finish."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/telegram/webhook"
    settings = bot_of(api, WEBHOOK_URL=url, WEB_SERVER_PORT=port, RATE_LIMIT="5/minute")
    process = await start("example_bot", **settings)
    await process.logged("Listening on")
    await pages(port)
    assert api.webhooks[0].secret
    assert (await api.deliver(message(42, "/ping"))).ok
    assert api.calls[-1].text == f"{PONG}, 4 left"
    report = asyncio.create_task(api.deliver(message(42, "/report")))
    await api.called("sendMessage", times=2)
    process.stop()
    assert (await report).ok
    assert api.calls[-1].method == "editMessageText"
    await assert_clean_end(process)
    # The other instances still need it.
    assert "deleteWebhook" not in {call.method for call in api.calls}


async def test_startup_objects_are_frozen_for_the_collector() -> None:
    """After the start, the garbage collector skips objects that live as long as the bot."""
    gc.unfreeze()
    assert gc.get_freeze_count() < 1_000  # some versions of Python freeze a little themselves
    await freeze()
    assert gc.get_freeze_count() > 100_000


@pytest.mark.slow
async def test_two_instances_share_the_limits_of_one_redis(
    api: BotApi, start: Start, redis_server: Server
) -> None:
    """They let exactly the limit through, notify once, obey an operator, and count requests."""
    shared = {"REDIS_URL": redis_server.url, "REDIS_KEY_PREFIX": PREFIX}
    ports = [free_port(), free_port()]
    processes = []
    for port in ports:
        url = f"http://127.0.0.1:{port}"
        settings = bot_of(api, WEBHOOK_URL=url, WEB_SERVER_PORT=port, ADMIN_IDS=OPERATOR, **shared)
        processes.append(await start("example_bot", RATE_LIMIT="3/hour", **settings))
    for process in processes:
        await process.logged("Listening on")

    deliveries = await asyncio.gather(*(api.deliver(message(42, "/ping")) for _ in range(20)))
    assert all(delivery.ok for delivery in deliveries)
    # Once more: the answers may have been under way when the rest was refused.
    await api.deliver(message(42, "/ping"))
    answers = sorted(call.text for call in await api.called("sendMessage", times=4))
    assert answers[1:] == [f"{PONG}, {left} left" for left in range(3)]  # before them the notice

    before = len(api.calls)
    await api.deliver(message(42, "/forgive 42"))  # nobody hears this
    await api.deliver(message(OPERATOR, "/forgive 42"))
    question = next(call for call in reversed(api.calls) if call.chat_id == OPERATOR)
    (yes, *_), *_ = json.loads(question.params["reply_markup"])["inline_keyboard"]
    await api.deliver(callback(OPERATOR, yes["callback_data"]))
    assert await pressed(api, 4) == [True, True, True, False]
    told = {call.chat_id for call in api.calls[before:] if call.method == "sendMessage"}
    assert told <= {OPERATOR}
    control = Control.from_settings(
        Settings(redis_url=redis_server.url, redis_key_prefix=PREFIX), "anna"
    )
    assert [each.statistics for each in await control.instances()] == [True, True]
    version = (await control.set_rule("user", "9/hour")).version
    assert [each.version for each in await control.wait_for(version)] == [version, version]
    assert await pressed(api, 2) == [True, True]
    for process in processes:
        process.stop()
        await assert_clean_end(process)
    requests = {each.method: each.sent for each in (await control.sending()).requests}
    assert requests["SendMessage"] >= 4
    await control.close()


async def pressed(api: BotApi, times: int) -> list[bool]:
    """Let user 42 press the button on the instances in turn; which presses were handled."""
    before = len(api.calls)
    for _ in range(times):
        assert (await api.deliver(callback(42, "ping"))).ok
    return [call.text.startswith(PONG) for call in api.calls[before:]]


async def pages(port: int) -> str:
    """Check health, readiness and the page for operators; return the text of the metrics."""
    async with ClientSession(f"http://127.0.0.1:{port}") as session:
        for page, told in (("health", '"alive"'), ("ready", '"ready"'), ("admin/", "password")):
            async with session.get(f"/{page}") as answer:
                assert (answer.status, told in await answer.text()) == (200, True), page
        async with session.get("/metrics") as answer:
            text = await answer.text()
    assert "# TYPE bot_ratelimit_decisions_total counter" in text
    return text


async def assert_clean_end(process: Process) -> None:
    status, _, err = await process.finished()
    assert status == 0, err
    for trouble in ("Traceback", "Unclosed", "ResourceWarning", "Exception"):
        assert trouble not in err, err
