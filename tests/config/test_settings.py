"""Settings: the environment and `.env` become objects; mistakes are told, and no secrets."""

from __future__ import annotations

import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    RateLimitMiddleware,
    RedisStorage,
    Rule,
    Settings,
    Subject,
)
from bot_ratelimit.rules.rule import rules_of
from tests.servers import Server, black_hole, free_port
from tests.tables import table

SECRET = "hunter2"  # the password that no text may show
TCP = {"host": "h", "port": 6379, "db": 0, "password": None}
pytestmark = pytest.mark.usefixtures("environment")


def settings(**variables: str) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return Settings()


@table(
    ("name", "text", "field", "value"),
    [
        *(("REDIS_ENABLED", text, "redis_enabled", True) for text in ["true", "1", "yes", "ON"]),
        *(("REDIS_ENABLED", text, "redis_enabled", False) for text in ["false", "0", "no", "Off"]),
        ("REDIS_HOST", "redis.local", "redis_host", "redis.local"),
        ("REDIS_PORT", "7000", "redis_port", 7000),
        ("REDIS_DB", "3", "redis_db", 3),
        ("REDIS_KEY_PREFIX", "booking_bot:client1", "redis_key_prefix", "booking_bot:client1"),
        ("RATE_LIMIT", "1/s; 20/minute", "rate_limit", "1/s; 20/minute"),
        ("RATE_LIMIT_ON_ERROR", "memory", "rate_limit_on_error", "memory"),
        ("RATE_LIMIT_TIMEOUT", "0.5", "rate_limit_timeout", 0.5),
        ("RATE_LIMIT_CONNECT_TIMEOUT", "7.5", "rate_limit_connect_timeout", 7.5),
        ("RATE_LIMIT_MEMORY_SIZE", "250", "rate_limit_memory_size", 250),
        ("RATE_LIMIT_EXEMPT", "42, -100123 7", "rate_limit_exempt", {42, -100123, 7}),
        ("redis_host", "lower.case", "redis_host", "lower.case"),
    ],
)
def test_every_variable_is_used(name: str, text: str, field: str, value: object) -> None:
    """Each variable sets its own field, and nothing else."""
    assert getattr(settings(**{name: text}), field) == value
    assert settings(**{name: text}).model_copy(update={field: None}) == Settings().model_copy(
        update={field: None}
    )


def test_the_defaults_are_those_of_the_contract() -> None:
    """By default: one event a second in memory, the prefix `bot`, and fail open.

    An empty variable, as in a copied `.env.example`, is not set. A limit may be a number.
    """
    found = Settings()
    assert (found.redis_port, found.redis_db, found.redis_key_prefix) == (6379, 0, "bot")
    assert (found.rate_limit_on_error, found.rate_limit_timeout) == ("allow", 0.25)
    assert found.rules() == (Rule(1.0),)
    assert isinstance(found.storage(), MemoryStorage)
    names = [name.upper() for name in Settings.model_fields]
    assert settings(**dict.fromkeys(names, "")) == found
    for text, limit in (("1.5", 1.5), (" 2 ", 2), ("1/s; 20/minute", "1/s; 20/minute")):
        assert settings(RATE_LIMIT=text).rules() == rules_of(limit)


def test_an_env_file_is_read_and_the_environment_wins() -> None:
    """`.env` may have lines of other programs, quotes, and the byte order mark of Notepad.

    In another encoding it is one line of error, without any of its content.
    """
    text = "REDIS_HOST=\"file\"\nBOT_TOKEN=1:x\nREDIS_PORT=7000\nREDIS_DB=\nRATE_LIMIT='1/s; 2/m'\n"
    Path(".env").write_text(text, "utf-8-sig")
    found = Settings()
    assert (found.redis_host, found.redis_port, found.redis_db) == ("file", 7000, 0)
    assert found.rate_limit == "1/s; 2/m"
    assert settings(REDIS_HOST="environment").redis_host == "environment"
    assert Settings(redis_host="code").redis_host == "code"
    Path(".env").write_text(f"# пароль\nREDIS_PASSWORD={SECRET}\n", "cp1251")
    with pytest.raises(ConfigError, match=r"^\.env is not UTF-8 .*: save it as UTF-8$") as error:
        Settings()
    assert error.value.__cause__ is error.value.__context__ is None


@table(
    ("variables", "expected"),
    [
        ({}, None),
        ({"REDIS_PORT": "7000", "REDIS_PASSWORD": SECRET, "REDIS_DB": "1"}, None),
        ({"REDIS_ENABLED": "false", "REDIS_HOST": "h", "REDIS_URL": "redis://h"}, None),
        ({"REDIS_ENABLED": "1"}, TCP | {"host": "localhost"}),
        ({"REDIS_ENABLED": "", "REDIS_HOST": "h"}, TCP),
        ({"REDIS_HOST": "h", "REDIS_PORT": "7000", "REDIS_DB": "2"}, TCP | {"port": 7000, "db": 2}),
        ({"REDIS_HOST": "::1"}, TCP | {"host": "::1"}),
        ({"REDIS_HOST": "[::1]"}, TCP | {"host": "::1"}),
        ({"REDIS_HOST": "h", "REDIS_PASSWORD": "a:b@c/d#e%41"}, TCP | {"password": "a:b@c/d#e%41"}),
        ({"REDIS_URL": "redis://h:6379", "REDIS_HOST": "x", "REDIS_PORT": "1"}, TCP),
        ({"REDIS_URL": "redis://h:6379", "REDIS_DB": "2"}, TCP | {"db": 2}),
        ({"REDIS_URL": "redis://:u@h:6379/5", "REDIS_DB": "2"}, TCP | {"db": 5, "password": "u"}),
        ({"REDIS_URL": "redis://h:6379", "REDIS_PASSWORD": "p"}, TCP | {"password": "p"}),
    ],
)
async def test_where_the_client_connects(
    variables: dict[str, str], expected: dict[str, Any] | None
) -> None:
    """Redis is used when enabled, or by default when a URL or host is set.

    The URL wins over host and port; the other variables fill in the rest.
    """
    found = settings(**variables)
    client = found.redis_client()
    assert (client is not None) is found.uses_redis is (expected is not None)
    assert isinstance(found.storage(), MemoryStorage if client is None else RedisStorage)
    if client is None or expected is None:
        return
    options = client.connection_pool.connection_kwargs
    assert {name: options.get(name) for name in expected} == expected
    # A hit is charged at most once, and waits at most for the limiter's time-out.
    assert options["retry"].get_retries() == 0
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (None, None)


@table(
    ("variables", "parts"),
    [
        ({"REDIS_ENABLED": "maybe"}, ["REDIS_ENABLED='maybe'", "true or false"]),
        ({"REDIS_PORT": "0"}, ["REDIS_PORT='0'", "1 to 65535"]),
        ({"REDIS_DB": "99999999999"}, ["REDIS_DB='99999999999'", "0 or more"]),
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, ["REDIS_PORT: ", "REDIS_URL", "enableServiceLi"]),
        ({"REDIS_URL": '"redis://h"'}, ["REDIS_URL", "quotes", "remove them"]),
        ({"REDIS_HOST": "redis://h:6379"}, ["REDIS_HOST", "REDIS_URL"]),
        ({"REDIS_HOST": "h:6379"}, ["REDIS_HOST: ", "a port goes into REDIS_PORT"]),
        ({"REDIS_TLS_CA": "/no.pem"}, ["REDIS_TLS_CA='/no.pem': there is no such file"]),
        ({"REDIS_PASSWORD": "p\n"}, ["REDIS_PASSWORD: there is a line end in it: remove it"]),
        ({"REDIS_PASSWORD_FILE": "/none"}, ["REDIS_PASSWORD_FILE: cannot be read (No such file"]),
        ({"REDIS_KEY_PREFIX": "my bot"}, ["REDIS_KEY_PREFIX='my bot'", "booking_bot:client1"]),
        ({"RATE_LIMIT": "1/s; fast"}, ["RATE_LIMIT='1/s; fast'", "'fast'"]),
        ({"RATE_LIMIT": "1/s; 2/s; 2/s"}, ["RATE_LIMIT=", "share a key"]),
        *(({"RATE_LIMIT": text}, [f"RATE_LIMIT={text!r}"]) for text in ["0", "-1", "nan", "1e400"]),
        ({"RATE_LIMIT_ON_ERROR": "open"}, ["RATE_LIMIT_ON_ERROR='open'", "allow, deny or memory"]),
        *(
            ({"RATE_LIMIT_TIMEOUT": text}, [f"RATE_LIMIT_TIMEOUT={text!r}", "seconds"])
            for text in ["0", "-1", "nan", "inf", "soon"]
        ),
        ({"RATE_LIMIT_CONNECT_TIMEOUT": "0"}, ["RATE_LIMIT_CONNECT_TIMEOUT='0'", "above 0"]),
        ({"RATE_LIMIT_MEMORY_SIZE": "0"}, ["RATE_LIMIT_MEMORY_SIZE=", "'0'", "1 or more"]),
        ({"RATE_LIMIT_EXEMPT": "42, @anna"}, ["RATE_LIMIT_EXEMPT='@anna'", "ids of users"]),
        ({"RATE_LIMIT_EXEMPT": "12345:AAHx"}, ["RATE_LIMIT_EXEMPT: ", "ids of users and chats"]),
        ({"REDIS_URL": "redis://h:6379/main"}, ["REDIS_URL: ", "number of a database"]),
        # Several are one error, so that one restart fixes them all; nothing stands there twice.
        (
            {"REDIS_DB": "x", "RATE_LIMIT": "5 minutes"},
            ["REDIS_DB='x'", "; RATE_LIMIT='5 minutes': e"],
        ),
    ],
)
def test_a_wrong_value_is_named_with_the_fix(variables: dict[str, str], parts: list[str]) -> None:
    """The error has the variable as it is written in the environment, the value, the fix."""
    with pytest.raises(ConfigError) as error:
        settings(**variables)
    message = str(error.value)
    assert message.startswith(parts[0])
    assert all(part in message for part in parts)
    assert "pydantic" not in message


@table(
    "variables",
    [
        *(
            {"REDIS_URL": url.format(SECRET)}
            for url in [
                *("http://:{}@h", ":{}@h:6379", "redis://:{}@h:port", "redis://:{}@[h"),
                *("redis://h?db={}", "redis://me:12/{}@h:6379/0", '"redis://:{}@h:6379/0"'),
            ]
        ),
        *(
            {name: f"redis://:{SECRET}@h:6379/1"}
            for name in [
                *("REDIS_PORT", "REDIS_DB", "RATE_LIMIT", "REDIS_KEY_PREFIX", "RATE_LIMIT_FILE"),
                "REDIS_HOST",
            ]
        ),
        {"REDIS_KEY_PREFIX": f"redis://:{SECRET} @h:6379/1"},
        {"REDIS_PASSWORD": f"'{SECRET}'"},
        {"REDIS_PASSWORD": f"{SECRET}\n"},
        {"REDIS_PASSWORD_FILE": f"{SECRET}"},
        {"REDIS_PASSWORD_FILE": "/etc/hostname", "REDIS_PASSWORD": SECRET},
        {"RATE_LIMIT_EXEMPT": f"42, 12345:{SECRET}"},
        {"RATE_LIMIT_EXEMPT": f"{SECRET}{SECRET}{SECRET}"},
        {"REDIS_HOST": f":{SECRET}@h"},
        {"REDIS_PASSWORD": SECRET, "REDIS_PORT": "x"},
        {"REDIS_URL": f"redis://:{SECRET}@h", "REDIS_PORT": "x"},
    ],
)
def test_no_error_shows_a_secret(variables: dict[str, str]) -> None:
    """Not even the traceback for an invalid URL shows the password in it."""
    with pytest.raises(ConfigError) as error:
        settings(**variables)
    assert SECRET not in "".join(traceback.format_exception(error.value))
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is error.value.__context__ is None


async def test_no_repr_or_log_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Neither settings, nor objects made of them, nor a failing decision show the password."""
    caplog.set_level(logging.DEBUG)
    for found in (
        settings(REDIS_HOST="::1", REDIS_PORT=str(free_port()), REDIS_PASSWORD=SECRET),
        settings(REDIS_URL=f"redis://:{SECRET}@127.0.0.1:{free_port()}"),
    ):
        caplog.clear()
        middleware = RateLimitMiddleware.from_settings(found)
        decision = await middleware.limiter.hit("1/m", Subject(user=42))
        await middleware.close()
        assert decision.source == "policy"
        assert "Redis rate limit check failed" in caplog.text
        for text in (repr(found), str(found), repr(found.storage()), repr(middleware)):
            assert SECRET not in text
        assert SECRET not in caplog.text + found.model_dump_json()


async def test_mistakes_that_only_a_server_tells(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says in one line that the number of the database is too high, or that a server does
    not answer within RATE_LIMIT_CONNECT_TIMEOUT."""
    async with black_hole() as port:
        for found in (
            Settings(redis_url=redis_server.url, redis_db=99),
            Settings(redis_url=f"redis://127.0.0.1:{port}", rate_limit_connect_timeout=0.1),
        ):
            limiter = Limiter(found.storage(), timeout=5)
            assert (await limiter.hit("1/m", Subject(user=42))).source == "policy"
            await limiter.close()
    assert "DB index is out of range - choose a lower REDIS_DB" in caplog.text
    assert f"no connection to 127.0.0.1:{port} within 0.1 s" in caplog.text


UNKNOWN = "there is no such setting; did you mean"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("RATE_LIMIT_ONERROR", "RATE_LIMIT_ONERROR is ignored: .* did you mean RATE_LIMIT_ON_ERRO"),
        ("RATELIMIT", r"did you mean RATE_LIMIT\?$"),
        ("RATE_LIMIT_REDIS", "RATE_LIMIT_REDIS is ignored"),
        ("RATE_LIMIT_PENALTY", r"is ignored: there is no such setting$"),
        ("rate_limit_exemptions", r"did you mean RATE_LIMIT_EXEMPT\?$"),
        ("REDIS_PASS", r"did you mean REDIS_PASSWORD\?$"),
        ("RАTE_LIMIT", r"^R\\u0410TE_LIMIT is ignored: .* did you mean RATE_LIMIT\?$"),
        ("\u200bREDIS_URL", r"^\\u200bREDIS_URL is ignored: .* did you mean REDIS_URL\?$"),
    ],
)
def test_a_name_that_looks_like_ours_is_told(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, told: str
) -> None:
    """A WARNING names the variable and a near one, if there is one, once, and never the value.

    What Docker, Kubernetes and the bot itself set is not warned of.
    """
    for other in ("REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP_ADDR", "REDIS_VERSION", "BOT_TOKEN"):
        environment.setenv(other, SECRET)
    environment.setenv(name, SECRET)
    Settings()
    Settings()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert caplog.text.count("ignored") == 1
    assert SECRET not in caplog.text
    assert re.search(told, record.message)


def test_a_name_in_an_env_file_is_told_with_its_place(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the file is read, with `${X}` for the variable X; no log line has a value."""
    environment.setenv("STAGE", "test")
    lines = f"# ours\nRATE_LIMIT_ONERROR={SECRET}\nREDIS_KEY_PREFIX=bot:${{STAGE}}\n"
    Path(".env").write_text(lines)
    assert Settings().redis_key_prefix == "bot:test"
    ours = [each.message for each in caplog.records if each.name == "bot_ratelimit"]
    assert ours == [f"RATE_LIMIT_ONERROR in .env is ignored: {UNKNOWN} RATE_LIMIT_ON_ERROR?"]
    assert SECRET not in caplog.text


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "name", ["redis_url", "redis_password", "redis_sentinel_password", "rate_limit_admin_token"]
)
def test_a_secret_can_stand_in_a_file(name: str) -> None:
    """NAME_FILE reads the secret from a file, without the line end that editors add.

    An empty file is not an empty password.
    """
    secret = "redis://h" if name == "redis_url" else SECRET
    Path("secret").write_text(f"{secret}\n")
    Path(".env").write_text(f"{name.upper()}_FILE=secret\n")
    found: Any = getattr(Settings(), name)
    assert found.get_secret_value() == secret
    with pytest.raises(ConfigError, match=f"{name.upper()} and {name.upper()}_FILE are both set"):
        Settings(**{name: secret})
    for content, told in ((b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "not UTF-8")):
        Path("secret").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^{name.upper()}_FILE: cannot be read \({told}\)"):
            Settings()


@pytest.mark.usefixtures("environment")
def test_variables_that_contradict_the_url() -> None:
    """The error names REDIS_URL and the contradiction; beside a host, certificates mean TLS."""
    Path("ca.pem").touch()
    with pytest.raises(ConfigError, match=r"^REDIS_URL: .*the URL is without TLS"):
        Settings(redis_url="redis://h", redis_tls_ca="ca.pem").storage()
    with pytest.raises(ConfigError, match=r"^REDIS_URL: .*only the database 0"):
        Settings(redis_url="redis+cluster://h", redis_db=3).storage()
    client: Any = Settings(redis_host="::1", redis_tls_ca="ca.pem").redis_client()
    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["ssl_ca_certs"]) == ("::1", "ca.pem")
