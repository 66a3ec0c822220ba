"""`python -m example_bot`, as a process of its own."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import pytest
from aiogram import Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiohttp import ClientSession, web

from bot_ratelimit import ConfigError
from example_bot.__main__ import main
from example_bot.bot import PONG
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.updates import callback, message
from example_bot.serve import freeze
from example_bot.settings import BotSettings
from tests.servers import Server, free_port

from .conftest import Process, Start


async def test_without_a_token_it_says_what_to_do(start: Start) -> None:
    """One sentence names BOT_TOKEN and the demo that needs none; the status is 2."""
    process = await start("example_bot")
    status, out, err = await process.finished()
    assert (status, out) == (2, "")
    assert err.startswith("BOT_TOKEN is not set: put the token that @BotFather gave you into")
    assert err.endswith("run 'make demo'.\n")
    assert err.count("\n") == 1


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
            "such as 'http://local",
        ),
        ({"BOT_TOKEN": TOKEN, "BOT_API_URL": "http://h:99999"}, "such as 'http://localhost"),
        (
            {"BOT_TOKEN": TOKEN, "BOT_API_URL": f"https://api.telegram.org/bot{TOKEN}"},
            "BOT_API_URL: expected only the server",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    environment: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad value is one line that names the variable, and never shows a secret."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert (out, err.count("\n")) == ("", 1)
    assert "hunter2" not in err
    assert TOKEN not in err


async def test_a_token_that_telegram_does_not_know_is_one_sentence(
    api: BotApi, start: Start
) -> None:
    """A revoked token is named as the cause, without a traceback, polling or webhook."""
    settings = {"BOT_TOKEN": TOKEN.replace("demo", "spam"), "BOT_API_URL": api.url}
    webhook = {"WEBHOOK_URL": "http://127.0.0.1:1/", "WEB_SERVER_PORT": str(free_port())}
    for process in [
        await start("example_bot", **settings),
        await start("example_bot", **settings, **webhook),
    ]:
        status, _, err = await process.finished()
        assert status == 2
        assert err.endswith("BOT_TOKEN: Telegram does not know this token.\n")
        assert "Traceback" not in err
        assert "Unclosed" not in err


def test_an_error_of_the_settings_has_no_secret_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a wrong token nor a `.env` in another encoding is reachable from the error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOT_TOKEN", "hunter2")
    with pytest.raises(ConfigError) as error:
        BotSettings.load()
    assert error.value.__cause__ is error.value.__context__ is None
    (tmp_path / ".env").write_text("BOT_TOKEN=hunter2", "utf-16")
    with pytest.raises(ConfigError, match="save it as UTF-8") as error:
        BotSettings.load()
    assert error.value.__cause__ is error.value.__context__ is None


@pytest.mark.parametrize("webhook", [False, True])
async def test_a_bot_api_that_is_none_is_one_sentence(start: Start, webhook: bool) -> None:
    """An address where nothing or something else answers is named, without the token."""

    async def page(request: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>\nHello\n</html>", content_type="text/html")

    settings = {"BOT_TOKEN": TOKEN}
    if webhook:
        settings |= {"WEBHOOK_URL": "http://127.0.0.1:1/", "WEB_SERVER_PORT": str(free_port())}
    runner = web.ServerRunner(web.Server(page))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    for each in (port, free_port()):
        process = await start(
            "example_bot", BOT_API_URL=f"http://me:hunter2@127.0.0.1:{each}", **settings
        )
        status, _, err = await process.finished()
        assert status == 2
        last = err.splitlines()[-1]
        assert last.startswith(f"No Bot API answers at http://127.0.0.1:{each}: ")
        assert "BOT_API_URL" in last
        for word in ("Traceback", "Unclosed", "hunter2", TOKEN):
            assert word not in err
    await runner.cleanup()


async def test_a_busy_port_is_one_sentence(api: BotApi, start: Start) -> None:
    """A port that something else uses is named with its variable."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        process = await start(
            "example_bot",
            BOT_TOKEN=TOKEN,
            BOT_API_URL=api.url,
            WEBHOOK_URL=f"http://127.0.0.1:{port}/",
            WEB_SERVER_PORT=str(port),
        )
        status, _, err = await process.finished()
    assert status == 2
    assert f"WEB_SERVER_PORT={port}: cannot listen there" in err.splitlines()[-1]
    for word in ("Traceback", "Unclosed", TOKEN):
        assert word not in err


async def test_long_polling(api: BotApi, start: Start, tmp_path: Path) -> None:
    """With a token the bot polls, answers, limits, and finishes at SIGTERM what it has begun."""
    (tmp_path / ".env").write_text(f"BOT_TOKEN={TOKEN}\nBOT_API_URL={api.url}\nWEBHOOK_URL=\n")
    process = await start("example_bot", RATE_LIMIT="3/minute")
    await api.called("deleteWebhook", timeout=60)
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
    """With WEBHOOK_URL the bot serves, and SIGTERM lets the update under way be answered."""
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
    check = await start("example_bot.health", WEB_SERVER_PORT=str(port))
    assert await check.finished() == (0, "", "")
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


async def test_an_instance_that_does_not_answer_is_unhealthy(start: Start) -> None:
    """The health check says so in one line, and its status is 1, also if something else answers."""

    async def nothing(request: web.BaseRequest) -> web.Response:
        raise web.HTTPNotFound

    runner = web.ServerRunner(web.Server(nothing))
    await runner.setup()
    other = free_port()
    await web.TCPSite(runner, "127.0.0.1", other).start()
    for port, reason in ((free_port(), "No answer from the bot on port"), (other, "answered 404")):
        process = await start("example_bot.health", WEB_SERVER_PORT=str(port))
        status, _, err = await process.finished()
        assert (status, err.count("\n")) == (1, 1)
        assert reason in err
    await runner.cleanup()


async def test_what_the_start_has_built_is_frozen() -> None:
    """After the start the collector no longer looks at what lives as long as the bot."""
    try:
        assert gc.get_freeze_count() < 1_000  # some versions of Python freeze a little themselves
        await freeze()
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("webhook", [False, True])
def test_freezing_is_the_last_of_the_start(
    webhook: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Long polling and the webhook both freeze, after everything else of the start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOT_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_URL", "http://127.0.0.1:1/hook" if webhook else "")

    async def nothing(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr("aiohttp.web.run_app", lambda *_, **__: None)
    monkeypatch.setattr(Dispatcher, "start_polling", nothing)
    monkeypatch.setattr(AiohttpSession, "make_request", nothing)
    dispatcher = Dispatcher()
    monkeypatch.setattr("example_bot.__main__.build_dispatcher", lambda _: dispatcher)
    # Metrics are registered once in a process, and this one starts the bot several times.
    monkeypatch.setattr("example_bot.__main__.metrics", list)
    assert main() == 0
    assert dispatcher.startup.handlers[-1].callback is freeze


async def test_two_instances_share_the_limits_of_one_redis(
    api: BotApi, start: Start, redis_server: Server
) -> None:
    """Two processes behind one load balancer let exactly the limit through, and tell it once."""
    processes = []
    for port in (free_port(), free_port()):
        process = await start(
            "example_bot",
            BOT_TOKEN=TOKEN,
            BOT_API_URL=api.url,
            WEBHOOK_URL=f"http://127.0.0.1:{port}",
            WEB_SERVER_PORT=str(port),
            RATE_LIMIT="5/minute",
            REDIS_URL=redis_server.url,
            REDIS_KEY_PREFIX="test-two-instances",
        )
        processes.append(process)
    for process in processes:
        await process.logged("Listening on")

    deliveries = await asyncio.gather(*(api.deliver(message(42, "/ping")) for _ in range(20)))
    assert all(delivery.ok for delivery in deliveries)
    answers = [call.text for call in await api.called("sendMessage")]
    assert sorted(text for text in answers if text.startswith(PONG)) == [
        f"{PONG}, {left} left" for left in range(5)
    ]
    assert len(answers) == 6

    for process in processes:
        process.terminate()
        await assert_clean_end(process)


async def test_a_polling_bot_has_its_pages_on_a_port_of_their_own(
    api: BotApi, start: Start
) -> None:
    """HEALTH_PORT serves health and metrics while the bot polls, and is closed at the end."""
    port = free_port()
    process = await start(
        "example_bot", BOT_TOKEN=TOKEN, BOT_API_URL=api.url, HEALTH_PORT=str(port)
    )
    await process.logged(f"Health and metrics at http://127.0.0.1:{port}/")
    await api.called("deleteWebhook")
    await api.enqueue(message(42, "/ping"))
    await api.called("sendMessage", times=1)
    text = await assert_pages(port)
    assert (
        'bot_ratelimit_decisions_total{outcome="allowed",rule="user",source="memory"} 1.0' in text
    )
    process.terminate()
    await assert_clean_end(process)


async def test_a_busy_health_port_is_one_sentence(api: BotApi, start: Start) -> None:
    """The variable to change is HEALTH_PORT, not that of the webhook."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        process = await start(
            "example_bot", BOT_TOKEN=TOKEN, BOT_API_URL=api.url, HEALTH_PORT=str(port)
        )
        status, _, err = await process.finished()
    assert status == 2
    assert f"HEALTH_PORT={port}: cannot listen there" in err.splitlines()[-1]
    for word in ("Traceback", "Unclosed", TOKEN):
        assert word not in err


async def assert_pages(port: int) -> str:
    """Health, readiness and metrics answer; the text of the metrics."""
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
