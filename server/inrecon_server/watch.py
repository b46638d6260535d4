"""HTTP for those who watch: ``/metrics`` (Prometheus), ``/healthz`` (it is up), ``/readyz`` (it takes scans)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from inrecon.errors import InreconError
from inrecon_server.metrics import Metrics

_SILENCE_S = 10.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing for those who hang up or say nothing, either."""

    def server_bind(self) -> None:
        """As a plain TCP server does: HTTP's would ask the name servers who it is."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE_S

    def log_message(self, *_: object) -> None:
        """Nothing: those who watch ask every few seconds."""


@contextmanager
def watched(metrics: Metrics, *, ready: Callable[[], bool], host: str, port: int) -> Iterator[int]:
    """Answer in a thread while the ``with`` block runs; gives the port. `ready` is called from other threads.

    Raises `InreconError` if the port is taken.
    """
    figures = metrics.page()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                told: Iterable[bytes] = figures(environ, start_response)
                return told
            case "/healthz":
                status, text = "200 OK", "ok\n"
            case "/readyz" if ready():
                status, text = "200 OK", "ready\n"
            case "/readyz":
                status, text = "503 Service Unavailable", "not ready\n"
            case _:
                status, text = "404 Not Found", "there are /metrics, /healthz and /readyz\n"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]

    try:
        server = make_server(host, port, answer, server_class=_Server, handler_class=_Handler)
    except OSError as error:
        raise InreconError(
            f"metrics and health cannot be told at {host}:{port} (http_port): {error.strerror}"
        ) from error
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
