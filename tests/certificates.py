"""Certificates for TLS, made for one run of the tests."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Certificates:
    """A certificate authority, one of its certificates for a server and one for a client."""

    def __init__(self, directory: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.authority = str(directory / "ca.pem")
        self.client = str(directory / "client.pem")
        self.client_key = str(directory / "client.key")
        authority.cert_pem.write_to_path(self.authority)
        client = authority.issue_cert("bot@example.org")
        client.cert_chain_pems[0].write_to_path(self.client)
        client.private_key_pem.write_to_path(self.client_key)
        self._server = authority.issue_cert("127.0.0.1", "localhost")
        self._foreign = stranger.issue_cert("127.0.0.1")

    def context(self, *, foreign: bool = False, wants_client: bool = False) -> ssl.SSLContext:
        """A server's side: with a certificate that clients do not trust, or asking for theirs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.use(context, foreign=foreign)
        if wants_client:
            context.load_verify_locations(self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def use(self, context: ssl.SSLContext, *, foreign: bool = False) -> None:
        """Let a server show this certificate from now on."""
        (self._foreign if foreign else self._server).configure_cert(context)
