"""Settings: reads the environment and `.env`, and makes objects of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bot_ratelimit.config.environment import check_secret, read_secret, warn_of_strange_names
from bot_ratelimit.config.ids import check_id, hidden
from bot_ratelimit.config.limits_file import LimitsFile, read_limits_file
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import check_prefix, check_timeout
from bot_ratelimit.rules.rule import OnError, Rules, rules_of
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage
from bot_ratelimit.storage.redis.urls import EXPECTED, MAX_DB, client_from_url, is_host, uses_tls

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

Origin: TypeAlias = Literal["code", "file", "environment", "live"]
"""Where a value comes from; later ones in this list win."""

_SECRETS: Final = (
    *("redis_url", "redis_password", "redis_sentinel_password", "rate_limit_admin_token"),
)
_NUMBER: Final = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")
_BRACKETS: Final = re.compile(r"\[.*\]")
_QUOTES: Final = ("'", '"')
_MAYBE_URL: Final = re.compile("@|://")
_SERVICE_LINKS: Final = (
    " (Kubernetes sets REDIS_PORT for a service named redis: set enableServiceLinks to false)"
)


def _checked(check: Callable[[str], object]) -> AfterValidator:
    """Calls `check`, which raises for a wrong value, and keeps the value."""

    def run(value: Any) -> Any:
        check(value.get_secret_value() if isinstance(value, SecretStr) else value)
        return value

    return AfterValidator(run)


def _check_host(value: str) -> str:
    address = value[1:-1] if _BRACKETS.fullmatch(value) else value
    if not is_host(address):
        raise ValueError("neither a host name nor an address; a port goes into REDIS_PORT")
    return str(ip_address(address)) if ":" in address and "%" not in address else address


def _check_path(value: str) -> None:
    if not Path(value).is_file():
        raise ValueError("there is no such file")


def _no_url(what: str) -> AfterValidator:
    """For what logs and errors show."""

    def check(value: str) -> None:
        if "://" in value:
            raise ValueError(f"a URL is not a {what}")

    return _checked(check)


def _split(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _check_ids(ids: frozenset[int]) -> frozenset[int]:
    return frozenset(map(check_id, ids))


_Secret = Annotated[SecretStr, _checked(check_secret)]
_Path = Annotated[str, _checked(_check_path)]


class Settings(BaseSettings):
    """What the environment says; an empty variable counts as unset.

    ::

        RateLimitMiddleware.from_settings(Settings(redis_url="redis://10.0.0.5/0"))

    RATE_LIMIT_FILE names a file with limits; what a variable says wins over the file.
    Redis is used when REDIS_ENABLED is true, or when it is unset and REDIS_URL or REDIS_HOST is
    set. Secrets appear in no repr, log or error, nor in an error's cause.

    Raises:
        ConfigError: A value is wrong, or `.env` cannot be read; the message names each such
            variable and the fix.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",  # UTF-8, also with the byte order mark that Notepad writes
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    redis_enabled: bool | None = Field(
        None, description="true or false; if unset, Redis is used if REDIS_URL or REDIS_HOST is set"
    )
    redis_url: Annotated[_Secret, _checked(client_from_url)] | None = Field(
        None, description=EXPECTED
    )
    redis_host: Annotated[str, AfterValidator(_check_host)] | None = Field(
        None, description="a host name or an address; a URL goes into REDIS_URL"
    )
    redis_port: int = Field(6379, ge=1, le=65535, description="a port, 1 to 65535")
    redis_db: int = Field(0, ge=0, le=MAX_DB, description="the number of a database, 0 or more")
    redis_username: str | None = Field(None, description="the name of an ACL user")
    redis_password: _Secret | None = Field(None, description="a password")
    redis_sentinel_username: str | None = Field(
        None, description="the name of an ACL user of the sentinels"
    )
    redis_sentinel_password: _Secret | None = Field(
        None, description="the password of the sentinels"
    )
    redis_tls_ca: _Path | None = Field(
        None, description="the path of the certificates that are trusted"
    )
    redis_tls_cert: _Path | None = Field(
        None, description="the path of the certificate that the bot shows"
    )
    redis_tls_key: _Path | None = Field(None, description="the path of the key of that certificate")
    redis_key_prefix: Annotated[str, _no_url("prefix"), AfterValidator(check_prefix)] = Field(
        "bot", description="the beginning of every key, for example booking_bot:client1"
    )
    rate_limit: Annotated[str, _checked(lambda value: _read_rules(value))] = Field(
        "1/s", description="limits such as 5/10s or 1/s; 20/minute, or seconds for one event"
    )
    rate_limit_on_error: OnError = Field(
        "allow", description="allow, deny or memory: what happens when Redis fails"
    )
    rate_limit_timeout: Annotated[float, AfterValidator(check_timeout)] = Field(
        0.25, description="seconds that Redis gets for a decision, above 0"
    )

    rate_limit_connect_timeout: float = Field(
        5.0, gt=0, le=3600, description="seconds to open a connection to Redis, above 0"
    )
    rate_limit_memory_size: int = Field(
        10_000, ge=1, description="the maximum number of counts in this process, 1 or more"
    )

    rate_limit_exempt: Annotated[
        frozenset[int], NoDecode, BeforeValidator(_split), AfterValidator(_check_ids)
    ] = Field(
        frozenset(), description="ids of users and chats without a limit, such as 42, -100123"
    )
    rate_limit_file: Annotated[str, _no_url("path")] | None = Field(
        None, description="the path of a TOML file with limits, such as limits.toml"
    )
    rate_limit_admin_token: _Secret | None = Field(
        None, description="what operators log in with, 16 characters or more; see `admin_app`"
    )
    # The same secrets in files, as Docker and Kubernetes have them.
    redis_url_file: str | None = Field(None, description="the path of a file with REDIS_URL")
    redis_password_file: str | None = Field(
        None, description="the path of a file with REDIS_PASSWORD"
    )
    redis_sentinel_password_file: str | None = Field(
        None, description="the path of a file with REDIS_SENTINEL_PASSWORD"
    )
    rate_limit_admin_token_file: str | None = Field(
        None, description="the path of a file with RATE_LIMIT_ADMIN_TOKEN"
    )
    _file: LimitsFile = PrivateAttr(default_factory=LimitsFile)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = "; ".join(map(_explain, error.errors()))
        except UnicodeDecodeError as error:
            wrong = f".env is not UTF-8 (at byte {error.start}): save it as UTF-8"
        except OSError as error:
            wrong = f".env cannot be read: {error.strerror}; check its permissions"
        else:
            if self.rate_limit_file is not None:
                try:
                    self._file = read_limits_file(self.rate_limit_file)
                except ConfigError as error:
                    raise ConfigError(f"RATE_LIMIT_FILE={error}") from None
            file = values.get("_env_file", self.model_config.get("env_file"))
            known = {name.upper() for name in type(self).model_fields}
            warn_of_strange_names(known, Path(file) if isinstance(file, (str, Path)) else None)
            return
        # Raised here, so that no error that contains a secret becomes its context.
        raise ConfigError(wrong)

    # The last of several such validators runs first; this one needs the unchanged text.
    @field_validator("*", mode="before")
    @classmethod
    def _check_quotes(cls, value: object) -> object:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
            raise ValueError(
                "the quotes are part of the value (docker's --env-file, for one, keeps them): "
                "remove them"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in _SECRETS:
            if not (path := values.get(f"{name}_file")):
                continue
            if values.get(name):
                raise ConfigError(f"{name.upper()} and {name.upper()}_FILE are both set: unset one")
            try:
                values = {**values, name: read_secret(path)}
            except ConfigError as error:
                raise ConfigError(f"{name.upper()}_FILE: {error}") from None
        return values

    @property
    def uses_redis(self) -> bool:
        """Whether counts are kept in Redis."""
        if self.redis_enabled is None:
            return self.redis_url is not None or self.redis_host is not None
        return self.redis_enabled

    @property
    def file(self) -> LimitsFile:
        """The content of the limits file; empty without RATE_LIMIT_FILE."""
        return self._file

    def rules(self) -> Rules:
        """Return the rules of RATE_LIMIT; if it is unset, those of the limits file."""
        if self.origin("rate_limit") == "file" and self._file.rules is not None:
            return self._file.rules
        return _read_rules(self.rate_limit)

    def exempt(self) -> frozenset[int]:
        """Return the ids of RATE_LIMIT_EXEMPT; if it is unset, those of the limits file."""
        if self.origin("rate_limit_exempt") == "file":
            return self._file.exempt or frozenset()
        return self.rate_limit_exempt

    def origin(self, name: str) -> Origin:
        """Return where the value of a setting comes from."""
        in_file = {"rate_limit": self._file.rules, "rate_limit_exempt": self._file.exempt}
        if name in self.model_fields_set:
            return "environment"
        return "code" if in_file.get(name) is None else "file"

    def storage(self) -> Storage:
        """Make a storage for these settings; closing it closes its client."""
        client = self.redis_client()
        if client is None:
            return MemoryStorage(self.rate_limit_memory_size)
        return RedisStorage(
            client, close_client=True, connect_timeout=self.rate_limit_connect_timeout
        )

    def redis_client(self) -> Client | None:
        """Make a client, which connects when it is first used; None if Redis is not used.

        Raises:
            ConfigError: REDIS_URL and another variable contradict each other.
        """
        if not self.uses_redis:
            return None
        given = {
            "db": self.redis_db,
            "username": self.redis_username,
            "password": _text(self.redis_password),
            "sentinel_username": self.redis_sentinel_username,
            "sentinel_password": _text(self.redis_sentinel_password),
            "ssl_ca_certs": self.redis_tls_ca,
            "ssl_certfile": self.redis_tls_cert,
            "ssl_keyfile": self.redis_tls_key,
        }
        defaults = {name: value for name, value in given.items() if value not in (None, "")}
        url = _text(self.redis_url)
        if url is None:
            host = self.redis_host or "localhost"
            host = f"[{host}]" if ":" in host else host
            url = f"{'rediss' if uses_tls(defaults) else 'redis'}://{host}:{self.redis_port}"
        try:
            return client_from_url(url, defaults)
        except ConfigError as error:
            raise ConfigError(f"REDIS_URL: {error}") from None


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _read_rules(text: str) -> Rules:
    return rules_of(float(text) if _NUMBER.fullmatch(text) else text)


def _explain(error: Any) -> str:
    """Explain an invalid variable in one line: its name, its value if not secret, and the fix."""
    reason = error.get("ctx", {}).get("error", error["msg"])
    if not error["loc"]:
        return str(reason)  # of several variables, which it names
    name, value = str(error["loc"][0]), error["input"]
    field = Settings.model_fields.get(name)
    expected = field.description if field else "a known setting"
    is_secret = name in _SECRETS or name == "redis_host"  # which may hold a URL
    if field is None or is_secret or (name == "rate_limit_exempt" and hidden(value) != repr(value)):
        shown = ""
    elif isinstance(value, str) and _MAYBE_URL.search(value) and name != "rate_limit_exempt":
        # A URL may contain a password, and the reason repeats it.
        hint = _SERVICE_LINKS if name == "redis_port" else ""
        shown, reason = "", f"looks like a URL, which goes into REDIS_URL{hint}"
    else:
        shown = f"={value!r}"
    if (
        isinstance(reason, ConfigError) and not is_secret
    ):  # it says what is expected, and may begin with the value
        return f"{name.upper()}{shown}: {str(reason).removeprefix(f'{value!r}: ')}"
    return f"{name.upper()}{shown}: {reason}; expected {expected}"
