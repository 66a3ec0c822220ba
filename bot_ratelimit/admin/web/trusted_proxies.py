"""Trusted proxies: the address of a client, and how the browser addresses this server."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from bot_ratelimit.errors import ConfigError

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""

LOCAL: Final = "unix"
"""The name for clients on a Unix socket, which have no address."""
_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]+|\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?")


class TrustedProxies:
    """Finds the client's address behind trusted proxies.

    Any client can send `X-Forwarded-For`, so it is read only if a trusted proxy sends it, and only
    the part that trusted proxies added. `unix` stands for proxies on a Unix socket.
    """

    def __init__(self, proxies: Iterable[str] = ()) -> None:
        if isinstance(proxies, str):
            proxies = [proxies]
        if not isinstance(proxies, Iterable):
            raise ConfigError(f"trusted_proxies={proxies!r}: expected a list of addresses")
        names = [str(name) for name in proxies]  # the number 1 would be the address 0.0.0.1
        self._trusts_local = LOCAL in names
        try:
            self._networks = [ip_network(name) for name in names if name != LOCAL]
        except ValueError as error:
            raise ConfigError(
                f"trusted_proxies: {error}; expected addresses or networks of proxies, "
                "for example '127.0.0.1' or '10.0.0.0/8', or 'unix'"
            ) from None

    def client_address(self, request: web.Request) -> str:
        """The address for which failed logins are counted; for IPv6, its /64 network.

        A client with one address of such a network can usually use all of them.
        """
        address = _parsed(request.remote or "")
        hops = [
            hop for line in request.headers.getall("X-Forwarded-For", ()) for hop in line.split(",")
        ]
        for hop in reversed(hops):  # the nearest proxy's first
            earlier = _parsed(hop.strip())
            if earlier is None or not self._is_trusted(address):  # no proxy wrote what is before
                break
            address = earlier
        if isinstance(address, IPv6Address):
            return str(IPv6Network((address, 64), strict=False))
        return LOCAL if address is None else str(address)

    def is_https(self, request: web.Request) -> bool:
        """Whether the browser uses HTTPS, as far as this server can know."""
        if request.secure or request.headers.get("Origin", "").startswith("https://"):
            return True
        return self._forwarded(request, "X-Forwarded-Proto").lower() == "https"

    def is_same_origin(self, request: web.Request) -> bool:
        """Whether a page of this server sent the request, according to the browser.

        Browsers say so in `Sec-Fetch-Site`; older ones name the page's origin in `Origin`. A client
        that sends neither is not a browser, so another site cannot misuse it.
        """
        site = request.headers.getall("Sec-Fetch-Site", [])
        if site:
            return site == ["same-origin"]
        origins = request.headers.getall("Origin", [])
        if not origins:
            return True
        try:
            origin = urlsplit(origins[0]).netloc.lower()
        except ValueError:
            return False
        # Without this header, aiohttp before 3.14 asks the system for a name, and blocks the loop.
        host = request.host if "Host" in request.headers else ""
        names = {host.lower(), self._forwarded(request, "X-Forwarded-Host").lower()}
        return len(origins) == 1 and origin in names - {""}

    def _forwarded(self, request: web.Request, name: str) -> str:
        """A header of the nearest proxy, if that is trusted."""
        if not self._is_trusted(_parsed(request.remote or "")):
            return ""
        return request.headers.get(name, "").rpartition(",")[2].strip()

    def _is_trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        if address is None:
            return self._trusts_local
        return any(address in network for network in self._networks)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    if found_port := _WITH_PORT.fullmatch(text):  # some proxies add it
        text = found_port[1] or found_port[2]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
