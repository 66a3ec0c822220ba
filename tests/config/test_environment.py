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
        ("REDIS_URI", r"did you mean REDIS_URL\?$"),
        ("REDIS_PASWORD_FILE", r"did you mean REDIS_PASSWORD_FILE\?$"),
        ("RАTE_LIMIT", r"^R\\u0410TE_LIMIT is ignored: .* did you mean RATE_LIMIT\?$"),
        ("\u200bREDIS_URL", r"^\\u200bREDIS_URL is ignored: .* did you mean REDIS_URL\?$"),
    ],
)
def test_a_name_that_looks_like_ours_is_told(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, told: str
) -> None:
    """A WARNING names the variable and the nearest known one, once, and never the value."""
    environment.setenv(name, SECRET)
    Settings()
    Settings()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert caplog.text.count("ignored") == 1
    assert SECRET not in caplog.text
    assert re.search(told, record.message)


@pytest.mark.parametrize(
    "name", ["REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP_ADDR", "REDIS_VERSION", "BOT_TOKEN"]
)
def test_variables_of_others_are_their_own_affair(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """What Docker, Kubernetes and the bot itself set is not warned of."""
    environment.setenv(name, SECRET)
    Settings()
    assert not caplog.records


@pytest.mark.usefixtures("environment")
def test_a_name_in_an_env_file_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """The rest of the file is read; no line of the log has a value."""
    Path(".env").write_text(f"# ours\nRATE_LIMIT_ONERROR={SECRET}\nREDIS_DB=3\n")
    assert Settings().redis_db == 3
    ours = [each.message for each in caplog.records if each.name == "bot_ratelimit"]
    assert ours == [f"RATE_LIMIT_ONERROR in .env is ignored: {UNKNOWN} RATE_LIMIT_ON_ERROR?"]
    assert SECRET not in caplog.text


def test_variables_are_expanded_in_an_env_file(environment: pytest.MonkeyPatch) -> None:
    """`${X}` in `.env` stands for the variable X."""
    environment.setenv("STAGE", "test")
    Path(".env").write_text("REDIS_KEY_PREFIX=bot:${STAGE}\n")
    assert Settings().redis_key_prefix == "bot:test"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "name", ["redis_url", "redis_password", "redis_sentinel_password", "rate_limit_admin_token"]
)
def test_a_secret_can_stand_in_a_file(name: str) -> None:
    """NAME_FILE reads the secret from a file, without the line end that editors add."""
    secret = "redis://h" if name == "redis_url" else SECRET
    Path("secret").write_text(f"{secret}\n")
    Path(".env").write_text(f"{name.upper()}_FILE=secret\n")
    found: Any = getattr(Settings(), name)
    assert found.get_secret_value() == secret
    with pytest.raises(ConfigError, match=f"{name.upper()} and {name.upper()}_FILE are both set"):
        Settings(**{name: secret})


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("content", "told"), [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_file_without_a_secret_is_an_error(content: bytes, told: str) -> None:
    """An empty file is not an empty password."""
    Path("secret").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^REDIS_PASSWORD_FILE: cannot be read \({told}\)"):
        Settings(redis_password_file="secret")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"REDIS_URL": "redis://h", "REDIS_TLS_CA": "ca.pem"}, "the URL is without TLS"),
        ({"REDIS_URL": "redis+cluster://h", "REDIS_DB": "3"}, "only the database 0"),
    ],
    ids=str,
)
def test_variables_that_contradict_the_url(
    environment: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    """The error names REDIS_URL and the contradiction."""
    Path("ca.pem").touch()
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^REDIS_URL: .*{told}"):
        Settings().storage()


@pytest.mark.usefixtures("environment")
def test_certificates_beside_a_host_mean_tls() -> None:
    """REDIS_TLS_CA with REDIS_HOST connects with TLS."""
    Path("ca.pem").touch()
    client: Any = Settings(redis_host="::1", redis_tls_ca="ca.pem").redis_client()
    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["ssl_ca_certs"]) == ("::1", "ca.pem")
