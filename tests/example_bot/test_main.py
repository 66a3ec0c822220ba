"""`python -m example_bot`, as a separate process."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiogram import Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiohttp import ClientSession, web

from bot_ratelimit import ConfigError, Settings
from bot_ratelimit.admin.control import Control
from example_bot.__main__ import main
from example_bot.bot import PONG
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.updates import callback, message
from example_bot.serve import freeze
from example_bot.settings import BotSettings
from tests.admin.shell import python, run
from tests.servers import PATIENCE, Server, free_port

from .conftest import Process, Start

PREFIX, OPERATOR, PASSWORD = "test-instances", 7, "a-token-for-the-page-of-this-test"


def test_a_missing_token_is_one_clear_error(environment: pytest.MonkeyPatch) -> None:
    """The error names BOT_TOKEN and the demo that needs none; the status is 2."""
    environment.delenv("BOT_TOKEN", raising=False)
    ran = python("-W", "error", "-m", "example_bot")
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("BOT_TOKEN is not set: put the token that @BotFather gave you into")
    assert line.endswith("run 'make demo'.")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"BOT_TOKEN": ""}, "run 'make demo'"),
        ({"BOT_TOKEN": "hunter2"}, "BOT_TOKEN: expected the token as @BotFather"),
        (
            {"BOT_TOKEN": TOKEN, "WEBHOOK_URL": "bot.example.org"},
            "such as 'https://bot",
        ),
        ({"BOT_TOKEN": TOKEN, "WEB_SERVER_PORT": "http"}, "WEB_SERVER_PORT: Input should be"),
        ({"BOT_TOKEN": TOKEN, "RATE_LIMIT": "5 minutes"}, "RATE_LIMIT"),
        (
            {"BOT_TOKEN": TOKEN, "BOT_API_URL": "localhost:8081"},
            "such as 'https://bot",
        ),
        ({"BOT_TOKEN": TOKEN, "ADMIN_IDS": "@anna"}, "ADMIN_IDS: expected ids of users"),
        (
            {"BOT_TOKEN": TOKEN, "RATE_LIMIT_ADMIN_TOKEN": "hunter2"},
            "RATE_LIMIT_ADMIN_TOKEN (or token=): expected 16 to 512",
        ),
        ({"BOT_TOKEN": TOKEN, "BOT_API_URL": "http://h:99999"}, "such as 'https://bot"),
        (
            {"BOT_TOKEN": TOKEN, "BOT_API_URL": f"https://api.telegram.org/bot{TOKEN}"},
            "BOT_API_URL: expected only the server",
        ),
    ],
)
def test_an_invalid_setting_is_one_line(
    environment: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An invalid value is one line that names the variable and shows no secret."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # Metrics are registered once in a process, and this one starts the bot several times.
    monkeypatch.setattr("example_bot.__main__.metrics", list)
    assert main() == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert (out, err.count("\n")) == ("", 1)
    assert "hunter2" not in err
    assert TOKEN not in err


async def test_a_token_unknown_to_telegram_is_one_line(api: BotApi, start: Start) -> None:
    """A revoked token is named as the cause, without a traceback."""
    settings = {"BOT_TOKEN": TOKEN.replace("demo", "spam"), "BOT_API_URL": api.url}
    webhook = {"WEBHOOK_URL": "http://127.0.0.1:1/", "WEB_SERVER_PORT": str(free_port())}
    for process in [
        await start("example_bot", **settings),
        await start("example_bot", **settings, **webhook),
    ]:
        assert (await refused(process)).endswith("BOT_TOKEN: Telegram does not know this token.")


def test_settings_errors_contain_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither an invalid token nor a wrongly encoded `.env` is reachable from the error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOT_TOKEN", "hunter2")
    with pytest.raises(ConfigError) as error:
        BotSettings.load()
    assert error.value.__cause__ is error.value.__context__ is None
    (tmp_path / ".env").write_text("BOT_TOKEN=hunter2", "utf-16")
    with pytest.raises(ConfigError, match="save it as UTF-8") as error:
        BotSettings.load()
    assert error.value.__cause__ is error.value.__context__ is None


async def test_a_wrong_bot_api_url_is_one_line(start: Start) -> None:
    """An address without a Bot API is named in the error, without the token."""

    async def page(request: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>\nHello\n</html>", content_type="text/html")

    webhook = {"WEBHOOK_URL": "http://127.0.0.1:1/", "WEB_SERVER_PORT": str(free_port())}
    async with serving(page) as port:
        for each, more in ((port, webhook), (free_port(), {})):
            url = f"http://me:hunter2@127.0.0.1:{each}"
            process = await start("example_bot", BOT_TOKEN=TOKEN, BOT_API_URL=url, **more)
            last = await refused(process)
            assert last.startswith("The Bot API refused, or none answers: ")
            assert "Check the network, and BOT_API_URL" in last


async def refused(process: Process) -> str:
    """Wait until the bot has ended with status 2; the last line that it said, and no secret."""
    status, _, err = await process.finished()
    assert status == 2
    for word in ("Traceback", "Unclosed", "hunter2", TOKEN):
        assert word not in err
    return err.splitlines()[-1]


@asynccontextmanager
async def serving(handler: Callable[[web.BaseRequest], Any]) -> AsyncIterator[int]:
    """A web server that is no bot; yields its port."""
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield port
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("variable", ["WEB_SERVER_PORT", "HEALTH_PORT"])
async def test_a_busy_port_is_one_line(variable: str, api: BotApi, start: Start) -> None:
    """A port in use is named together with its variable."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        settings = {"BOT_TOKEN": TOKEN, "BOT_API_URL": api.url, variable: str(port)}
        if variable == "WEB_SERVER_PORT":
            settings["WEBHOOK_URL"] = f"http://127.0.0.1:{port}/"
        last = await refused(await start("example_bot", **settings))
    assert f"{variable}={port}: cannot listen there" in last


async def test_long_polling(api: BotApi, start: Start, tmp_path: Path) -> None:
    """With a token the bot polls, answers and limits, and SIGTERM lets it finish.

    It says what a page for operators needs, if that has no server.
    """
    (tmp_path / ".env").write_text(f"BOT_TOKEN={TOKEN}\nBOT_API_URL={api.url}\nWEBHOOK_URL=\n")
    process = await start("example_bot", RATE_LIMIT="3/minute", RATE_LIMIT_ADMIN_TOKEN=PASSWORD)
    await process.logged("The page for operators has no server: set HEALTH_PORT, or WEBHOOK_URL")
    await api.called("deleteWebhook", timeout=PATIENCE)
    await api.enqueue(message(42, "/ping"))
    await api.called("sendMessage", times=1)
    await api.enqueue(callback(42, "ping"))
    await api.called("answerCallbackQuery")
    await api.enqueue(message(42, "/report"))
    await api.called("sendMessage", times=2)

    process.terminate()
    assert len(await api.called("editMessageText")) == 1
    await assert_clean_end(process)

    pong, working = await api.called("sendMessage")
    (answer,) = await api.called("answerCallbackQuery")
    assert pong.text == f"{PONG}, 2 left"
    assert answer.text == f"{PONG}, 1 left"
    assert working.text.startswith("Working")


async def test_webhook(api: BotApi, start: Start) -> None:
    """With WEBHOOK_URL the bot serves, and SIGTERM lets the update in progress finish."""
    port = free_port()
    process = await start(
        "example_bot",
        BOT_TOKEN=TOKEN,
        BOT_API_URL=api.url,
        WEBHOOK_URL=f"http://127.0.0.1:{port}/telegram/webhook",
        WEB_SERVER_PORT=str(port),
        RATE_LIMIT="5/minute",
    )
    await process.logged("Listening on")
    await assert_pages(port)
    assert api.webhooks[0].secret
    assert (await api.deliver(message(42, "/ping"))).ok
    assert api.calls[-1].text == f"{PONG}, 4 left"

    report = asyncio.create_task(api.deliver(message(42, "/report")))
    await api.called("sendMessage", times=2)
    process.terminate()
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


@pytest.mark.parametrize("webhook", [False, True])
def test_freezing_is_the_last_step_of_the_start(
    webhook: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Long polling and the webhook both freeze after everything else has started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOT_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_URL", "http://127.0.0.1:1/hook" if webhook else "")

    async def nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr("aiohttp.web.run_app", lambda *_, **__: None)
    monkeypatch.setattr(Dispatcher, "start_polling", nothing)
    monkeypatch.setattr(AiohttpSession, "make_request", nothing)
    dispatcher = Dispatcher()
    monkeypatch.setattr("example_bot.__main__.build_dispatcher", lambda *_: dispatcher)
    # Metrics are registered once in a process, and this one starts the bot several times.
    monkeypatch.setattr("example_bot.__main__.metrics", list)
    assert main() == 0
    assert dispatcher.startup.handlers[-1].callback is freeze


@pytest.mark.slow
async def test_two_instances_share_the_limits_of_one_redis(
    api: BotApi, start: Start, redis_server: Server
) -> None:
    """They let exactly the limit through, notify once, and obey an operator on each front."""
    shared = {"REDIS_URL": redis_server.url, "REDIS_KEY_PREFIX": PREFIX}
    ports = [free_port(), free_port()]
    processes = [
        await start(
            "example_bot",
            BOT_TOKEN=TOKEN,
            BOT_API_URL=api.url,
            WEBHOOK_URL=f"http://127.0.0.1:{port}",
            WEB_SERVER_PORT=str(port),
            RATE_LIMIT="3/hour",
            ADMIN_IDS=str(OPERATOR),
            RATE_LIMIT_ADMIN_TOKEN=PASSWORD,
            **shared,
        )
        for port in ports
    ]
    for process in processes:
        await process.logged("Listening on")

    deliveries = await asyncio.gather(*(api.deliver(message(42, "/ping")) for _ in range(20)))
    assert all(delivery.ok for delivery in deliveries)
    # Once more: the answers may have been under way when the rest was refused.
    await api.deliver(message(42, "/ping"))
    answers = [call.text for call in await api.called("sendMessage", times=4)]
    assert len(answers) == 4
    assert sorted(text for text in answers if text.startswith(PONG)) == [
        f"{PONG}, {left} left" for left in range(3)
    ]

    async def in_a_shell() -> None:
        assert (await run("forgive", "42", "--yes", **shared)).status == 0

    before = len(api.calls)
    for forgive in (in_a_shell, partial(over_http, ports[0]), partial(in_telegram, api)):
        await forgive()
        assert await pressed(api, 4) == [True, True, True, False], forgive
    assert {call.chat_id for call in api.calls[before:] if call.method == "sendMessage"} <= {
        OPERATOR
    }
    await raise_the_limit(redis_server)
    assert await pressed(api, 2) == [True, True]

    for process in processes:
        process.terminate()
        await assert_clean_end(process)


async def over_http(port: int) -> None:
    """Forgive user 42 through the API of an instance, which wants its token."""
    address = f"http://127.0.0.1:{port}/admin/api/users/42/forgive"
    async with ClientSession() as session:
        for headers, status in ({}, 401), ({"Authorization": f"Bearer {PASSWORD}"}, 200):
            async with session.post(address, json={}, headers=headers) as answer:
                assert answer.status == status


async def in_telegram(api: BotApi) -> None:
    """Forgive user 42 as an operator in a chat with the bot; the user cannot."""
    await api.deliver(message(42, "/forgive 42"))  # nobody hears this
    await api.deliver(message(OPERATOR, "/forgive 42"))
    question = next(call for call in reversed(api.calls) if call.chat_id == OPERATOR)
    (yes, *_), *_ = json.loads(question.params["reply_markup"])["inline_keyboard"]
    await api.deliver(callback(OPERATOR, yes["callback_data"]))


async def pressed(api: BotApi, times: int) -> list[bool]:
    """Let user 42 press the button on the instances in turn; which presses were handled."""
    before = len(api.calls)
    for _ in range(times):
        assert (await api.deliver(callback(42, "ping"))).ok
    return [call.text.startswith(PONG) for call in api.calls[before:]]


async def raise_the_limit(redis_server: Server) -> None:
    """Change the limit for both instances, and wait until they obey."""
    settings = Settings(redis_url=redis_server.url, redis_key_prefix=PREFIX)
    control = Control.from_settings(settings, "anna")
    assert [each.statistics for each in await control.instances()] == [True, True]
    version = (await control.set_rule("user", "9/hour")).version
    assert [each.version for each in await control.wait_for(version)] == [version, version]
    await control.close()


async def test_a_polling_bot_serves_its_pages_on_a_port_of_their_own(
    api: BotApi, start: Start
) -> None:
    """HEALTH_PORT serves health, metrics and the page while the bot polls; closed at the end."""
    port = free_port()
    process = await start(
        "example_bot",
        BOT_TOKEN=TOKEN,
        BOT_API_URL=api.url,
        HEALTH_PORT=str(port),
        RATE_LIMIT_ADMIN_TOKEN=PASSWORD,
    )
    await process.logged(f"Health and metrics at http://127.0.0.1:{port}/")
    await api.called("deleteWebhook")
    await api.enqueue(message(42, "/ping"))
    await api.called("sendMessage", times=1)
    text = await assert_pages(port)
    assert (
        'bot_ratelimit_decisions_total{outcome="allowed",rule="user",source="memory"} 1.0' in text
    )
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/admin/") as page:
        assert (page.status, "password" in await page.text()) == (200, True)
    process.terminate()
    await assert_clean_end(process)


async def assert_pages(port: int) -> str:
    """Check health, readiness and metrics; return the text of the metrics."""
    async with ClientSession(f"http://127.0.0.1:{port}") as session:
        for page, status in (("health", "alive"), ("ready", "ready")):
            async with session.get(f"/{page}") as answer:
                assert (answer.status, (await answer.json())["status"]) == (200, status)
        async with session.get("/metrics") as answer:
            text = await answer.text()
    assert "# TYPE bot_ratelimit_decisions_total counter" in text
    return text


async def assert_clean_end(process: Process) -> None:
    status, _, err = await process.finished()
    assert status == 0, err
    for trouble in ("Traceback", "Unclosed", "ResourceWarning", "Exception"):
        assert trouble not in err, err
