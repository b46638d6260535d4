"""Who may come in: by address, and by certificate."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from inrecon.errors import InreconError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether `address` lies in one of `networks`; everybody may come in where there is none."""
    if not networks:
        return True
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found.version == network.version and found in network for network in networks)


def server_tls(certificate: Path | None, key: Path | None, clients: Path | None) -> ssl.SSLContext | None:
    """TLS with the server's `certificate` (a chain, as PEM) and `key`; clients need a certificate of the authority in
    the file `clients` if that is given. None where there is no `certificate`. Raises `InreconError`."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, certificate, key)
    if clients is not None:
        _trust(context, clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_tls(authority: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS for a client that trusts the certificates of `authority` alone, and shows its own if the server wants one.

    Raises `InreconError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which trusts nobody yet
    _trust(context, authority)
    if certificate is not None:
        _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InreconError(f"the certificate {certificate} and its key cannot be used: {error}") from error


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise InreconError(f"the authority's certificate {authority} cannot be used: {error}") from error
