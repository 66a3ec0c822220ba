"""Mistakes in the environment and `.env` are told when the settings are read, without values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bot_ratelimit import ConfigError, Settings

SECRET = "hunter2"
UNKNOWN = "there is no such setting; did you mean"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("RATE_LIMIT_ONERROR", "RATE_LIMIT_ONERROR is ignored: .* did you mean RATE_LIMIT_ON_ERRO"),
        ("RATELIMIT", r"did you mean RATE_LIMIT\?$"),
        ("RATE_LIMIT_REDIS", "RATE_LIMIT_REDIS is ignored"),
        ("rate_limit_exemptions", r"did you mean RATE_LIMIT_EXEMPT\?$"),
        ("REDIS_PASS", r"did you mean REDIS_PASSWORD\?$"),
        ("RАTE_LIMIT", r"^R\\u0410TE_LIMIT is ignored: .* did you mean RATE_LIMIT\?$"),
        ("\u200bREDIS_URL", r"^\\u200bREDIS_URL is ignored: .* did you mean REDIS_URL\?$"),
    ],
)
def test_a_name_that_looks_like_ours_is_told(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, told: str
) -> None:
    """A WARNING names the variable and the nearest known one, once, and never the value.

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
