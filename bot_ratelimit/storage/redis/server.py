"""server_of: which server a storage uses, to find out whether two storages share their keys."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from bot_ratelimit.storage.base import Storage


def server_of(storage: Storage) -> Hashable:
    """Return an equal value for storages that share their keys.

    Two clients with the same address and database use one server. A storage without a client shares
    with no other. The contents of redis-py's `connection_kwargs` are not documented: if they say
    too little, the pool itself is returned, so that only storages of one pool count as sharing.
    """
    client: Any = getattr(storage, "_client", None)
    if client is None:
        return id(storage)
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
