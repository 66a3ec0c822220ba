"""The Redis of the demo: inside this process, shared by all instances, and cut off at will."""

from redis.asyncio import Redis

from bot_ratelimit import ConfigError


class Embedded:
    """A server inside this process, if fakeredis is installed."""

    def __init__(self) -> None:
        try:
            from fakeredis import FakeAsyncRedis, FakeServer
        except ImportError:
            raise ConfigError("the demo needs: pip install 'fakeredis[lua]'") from None
        self._server = FakeServer()
        self._client_class = FakeAsyncRedis

    def client(self) -> Redis:
        """A client for one instance of the bot; the caller closes it."""
        return self._client_class(server=self._server, host="embedded-redis")

    def cut(self) -> None:
        """Fail every command from now on."""
        self._server.connected = False

    def repair(self) -> None:
        """Serve again, with all data from before."""
        self._server.connected = True
