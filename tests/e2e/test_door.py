"""Who may come in: TLS with certificates of both sides, and addresses."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from inrecon.simulate import SimulatedScan, write_ismrmrd
from inrecon_server.cli import main
from inrecon_server.client import ConnectionFailedError, send
from inrecon_server.door import client_tls
from inrecon_server.protocol import Close, serialise

if TYPE_CHECKING:
    from conftest import RunningServer, RunServer


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of an authority, of a server at 127.0.0.1 and of a client, and of a stranger whom nobody knows."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    for name, issuer in {"server": authority, "client": authority, "stranger": other}.items():
        issued = issuer.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def secured(certificates: Path, run_server: RunServer) -> Iterator[RunningServer]:
    """A server that wants a certificate of its clients."""
    settings = {"tls_certificate": f"{certificates}/server.pem", "tls_clients": f"{certificates}/authority.pem"}
    with run_server(**settings) as running:
        yield running


def test_a_scan_comes_back_by_tls(
    secured: RunningServer, certificates: Path, scan: SimulatedScan, tmp_path: Path
) -> None:
    write_ismrmrd(tmp_path / "raw.h5", scan)
    command = [
        "send",
        str(tmp_path / "raw.h5"),
        "-p",
        str(secured.port),
        "-c",
        "cg_sense",
        "-o",
        str(tmp_path / "o.h5"),
    ]
    tls = ["--tls-ca", str(certificates / "authority.pem"), "--tls-certificate"]
    assert main([*command, *tls, str(certificates / "client.pem")]) == 0
    assert (tmp_path / "o.h5").exists()


@pytest.mark.parametrize("certificate", [None, "stranger.pem"])
def test_a_client_without_a_certificate_of_the_authority_stays_outside(
    secured: RunningServer, certificates: Path, certificate: str | None
) -> None:
    context = ssl.create_default_context(cafile=certificates / "authority.pem")
    if certificate is not None:
        context.load_cert_chain(certificates / certificate)
    assert _answer_to_close(secured, context) == b""


def test_a_client_without_tls_gets_no_answer(secured: RunningServer) -> None:
    assert _answer_to_close(secured, None) != serialise(Close())


def _answer_to_close(server: RunningServer, tls: ssl.SSLContext | None) -> bytes:
    """What the server says to CLOSE; nothing if it hangs up, now or earlier."""
    with server.connect() as plain, ExitStack() as encrypted:
        connection: socket.socket = plain
        try:
            if tls is not None:
                connection = encrypted.enter_context(tls.wrap_socket(plain, server_hostname="127.0.0.1"))
            connection.sendall(10 * serialise(Close()))
            return connection.recv(10)
        except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
            return b""


def test_a_server_with_a_certificate_of_strangers_is_not_sent_anything(
    certificates: Path, run_server: RunServer, scan: SimulatedScan
) -> None:
    tls = client_tls(certificates / "authority.pem", None, None)
    assert len(tls.get_ca_certs()) == 1
    with run_server(tls_certificate=f"{certificates}/stranger.pem") as running:
        with pytest.raises(ConnectionFailedError, match="do not trust each other"):
            send(scan.header, scan.acquisitions, port=running.port, tls=tls)
        assert running.figure("inrecon_readouts_received_total") == 0


@pytest.mark.parametrize(("network", "welcome"), [("127.0.0.0/8", True), ("192.0.2.0/24", False)])
def test_only_allowed_addresses_are_served(run_server: RunServer, network: str, *, welcome: bool) -> None:
    with run_server(allow=[network]) as running:
        assert _answer_to_close(running, None) == (serialise(Close()) if welcome else b"")
        assert ("is not allowed" in running.log()) != welcome


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("serve --settings tls.yaml", "tls_key and tls_clients need a tls_certificate"),
        ("serve --settings broken.yaml", "broken.pem and its key cannot be used"),
        ("send raw.h5 -o out.h5 --tls-key broken.pem", "need --tls-ca"),
        ("send raw.h5 -o out.h5 --tls-ca broken.pem", "broken.pem cannot be used"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    options: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pem").write_text("nothing")
    (tmp_path / "tls.yaml").write_text("tls_key: broken.pem\n")
    (tmp_path / "broken.yaml").write_text("tls_certificate: broken.pem\n")
    (tmp_path / "raw.h5").write_text("")
    assert main(options.split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
