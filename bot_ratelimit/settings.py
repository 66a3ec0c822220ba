"""Settings: the environment and `.env`, turned into objects."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter import OnError, check_timeout
from bot_ratelimit.rule import Rules, check_prefix, rules_of
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis import RedisStorage

_NUMBER: Final = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_URL_SCHEMES: Final = ("redis://", "rediss://", "unix://")


class Settings(BaseSettings):
    """What the environment says; an empty variable counts as unset.

    Redis is used when REDIS_ENABLED is true, or when it is unset and REDIS_URL or REDIS_HOST is
    set. Secrets appear in no repr, log or error.

    Raises:
        ConfigError: A value is wrong; the message names each such variable and the fix.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    redis_enabled: bool | None = Field(
        None, description="true or false; unset, Redis is used if a URL or a host is set"
    )
    redis_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix:// URL; wins over host and port"
    )
    redis_host: str | None = Field(
        None, description="host name or address; a URL goes into REDIS_URL"
    )
    redis_port: int = Field(6379, ge=1, le=65535, description="port, 1 to 65535")
    redis_db: int = Field(0, ge=0, description="number of the database, 0 or more")
    redis_password: SecretStr | None = Field(None, description="password")
    redis_key_prefix: str = Field(
        "bot", description="what every key begins with, for example booking_bot:client1"
    )
    rate_limit: str = Field(
        "1/s", description="limits such as 5/10s or 1/s; 20/minute, or seconds for one event"
    )
    rate_limit_on_error: OnError = Field(
        "allow", description="allow, deny or memory: what happens when Redis fails"
    )
    rate_limit_timeout: float = Field(
        0.25, description="seconds that Redis gets for a decision, above 0"
    )

    rate_limit_memory_size: int = Field(
        10_000, ge=1, description="the most counts kept in this process, 1 or more"
    )

    rate_limit_exempt: Annotated[frozenset[int], NoDecode] = Field(
        frozenset(), description="ids of users and chats without a limit, such as 42, -100123"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(map(_explain, error.errors()))) from None

    @field_validator("rate_limit_exempt", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url = value.get_secret_value()
            if not url.startswith(_URL_SCHEMES):
                raise ValueError("unknown scheme")
            try:
                _connection_of(url)
            except (ValueError, TypeError):
                # The cause is left out: it may repeat the URL, and with it the password.
                raise ValueError("not a URL, or one with options that redis-py lacks") from None
        return value

    @field_validator("redis_host")
    @classmethod
    def _check_host(cls, value: str | None) -> str | None:
        if value is None or _HOST.fullmatch(value):
            return value
        try:
            return str(ip_address(value.removeprefix("[").removesuffix("]")))
        except ValueError:
            raise ValueError("neither a host name nor an address") from None

    @field_validator("redis_key_prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        return check_prefix(value)

    @field_validator("rate_limit")
    @classmethod
    def _check_limit(cls, value: str) -> str:
        _read_rules(value)
        return value

    @field_validator("rate_limit_timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        return check_timeout(value)

    @property
    def uses_redis(self) -> bool:
        """Whether counts are kept in Redis."""
        if self.redis_enabled is None:
            return self.redis_url is not None or self.redis_host is not None
        return self.redis_enabled

    def rules(self) -> Rules:
        """The rules that RATE_LIMIT stands for."""
        return _read_rules(self.rate_limit)

    def storage(self) -> Storage:
        """A storage for these settings; closing it closes its client."""
        client = self.redis_client()
        if client is None:
            return MemoryStorage(self.rate_limit_memory_size)
        return RedisStorage(client, close_client=True)

    def redis_client(self) -> Redis | None:
        """A new client, which connects when it is first used; None if Redis is not used."""
        if not self.uses_redis:
            return None
        options: dict[str, Any] = {
            "db": self.redis_db,
            "password": self.redis_password and self.redis_password.get_secret_value(),
            # The limiter has a deadline of its own for every decision, which covers connecting too.
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }
        if self.redis_url is not None:
            # What the URL itself says wins over the options.
            url = self.redis_url.get_secret_value()
            return Redis.from_pool(ConnectionPool.from_url(url, **options))
        host = self.redis_host or "localhost"
        return Redis.from_pool(ConnectionPool(host=host, port=self.redis_port, **options))


def _connection_of(url: str) -> object:
    """A connection that connects to nothing yet, but checks every option of the URL."""
    pool: Any = ConnectionPool.from_url(url)
    return pool.make_connection()


def _read_rules(text: str) -> Rules:
    return rules_of(float(text) if _NUMBER.fullmatch(text) else text)


def _explain(error: Any) -> str:
    """One line for one wrong variable: its name, its value unless it is secret, and the fix."""
    name = str(error["loc"][0]) if error["loc"] else "settings"
    field = Settings.model_fields.get(name)
    # Who takes REDIS_HOST for a URL may have put a password there.
    secret = field is None or name == "redis_host" or "SecretStr" in str(field.annotation)
    value = "" if secret else f"={error['input']!r}"
    reason = error.get("ctx", {}).get("error", error["msg"])
    expected = field.description if field else "a known setting"
    return f"{name.upper()}{value}: {reason}; expected {expected}"
