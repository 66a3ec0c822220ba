"""`python -m example_bot.health`: whether the instance on this machine answers; status 0 or 1.

It imports nothing but the standard library, because it runs every few seconds.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

PATH = "/health"
"""The path at which the webhook server of an instance reports that it is alive."""


def main() -> int:
    """Ask the instance at WEB_SERVER_PORT, with a timeout of two seconds."""
    port = int(os.environ.get("WEB_SERVER_PORT") or 8080)
    connection = HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", PATH)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        print(f"No answer from the bot on port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if status != 200:
        print(f"The bot on port {port} answered {status}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
