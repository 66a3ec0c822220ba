"""key_space_of: which keys a client reaches, to find out whether two storages share them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


def key_space_of(client: Any) -> Hashable:
    """Return an equal value for clients that reach the same keys.

    Two clients with the same address and database use one server. The contents of redis-py's
    `connection_kwargs` are not documented: if they say too little, the pool itself is returned, so
    that only storages of one pool count as sharing.
    """
    pool: Any = getattr(client, "connection_pool", None)
    if pool is None:  # a cluster
        nodes = getattr(getattr(client, "nodes_manager", None), "startup_nodes", None)
        return ("cluster", *sorted(nodes)) if nodes else id(client)
    options: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    place = options.get("path") or options.get("host") or getattr(pool, "service_name", None)
    if "server" in options:  # fakeredis
        place = id(options["server"])
    if place is None:
        return id(pool)
    return place, int(options.get("port") or 6379), int(options.get("db") or 0)
