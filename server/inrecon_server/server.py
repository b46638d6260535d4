"""The listening front: accepts at once, serves connections side by side, keeps the worker process. No torch here."""

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import count

from inrecon.errors import InreconError
from inrecon_server.capture import Captures
from inrecon_server.config import configure
from inrecon_server.connection import Connection, Patience
from inrecon_server.keeping import Keeping
from inrecon_server.session import Session
from inrecon_server.settings import ServerSettings
from inrecon_server.worker import InlineTuning, Worker

log = logging.getLogger(__name__)

_STREAM_LIMIT = 1 << 18


def serve(
    settings: ServerSettings,
    *,
    patience: Patience | None = None,
    on_listening: Callable[[str, int], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; `on_listening` is called with the address once clients can connect.

    Raises `InreconError` if the settings name what does not exist, and OSError if the port is taken.
    """
    if settings.default_config is not None:
        configure(settings.default_config)
    asyncio.run(_Server(settings, patience or Patience(idle_s=settings.idle_s)).run(on_listening))


class _Server:
    def __init__(self, settings: ServerSettings, patience: Patience) -> None:
        self._settings = settings
        self._patience = patience
        self._worker = Worker(device=settings.device)
        self._captures = _captures(settings)
        self._connections: set[asyncio.Task[None]] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        self._stopped = asyncio.Event()

    async def run(self, on_listening: Callable[[str, int], None] | None) -> None:
        settings = self._settings
        server = await asyncio.start_server(self._accept, settings.host, settings.port, limit=_STREAM_LIMIT)
        host, port = server.sockets[0].getsockname()[:2]
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stopped.set)
        log.info("listening on %s:%d", host, port)
        if on_listening is not None:
            on_listening(host, port)
        self._worker.start()
        if self._captures is not None:
            self._captures.start()
        warming = asyncio.create_task(self._warm_up())
        try:
            await self._stopped.wait()
        finally:
            server.close()
            await self._end_connections()
            warming.cancel()
            self._worker.stop()
            if self._captures is not None:
                self._captures.stop()
        with suppress(asyncio.CancelledError):
            await warming

    async def _warm_up(self) -> None:
        """Start-up that fails for good (no such device) ends the server; a worker that died is replaced when needed."""
        try:
            log.info("ready: reconstructing on %s", await self._worker.warmed_up())
        except BrokenProcessPool:
            log.error("the worker process died while it started")
        except InreconError:
            self._stopped.set()
            raise

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        settings = self._settings
        # Those that are refused only wait for the client to hang up: counted in, they would keep the server full.
        full = len(self._served) >= settings.max_connections
        name = f"connection {next(self._numbers)}"
        connection = Connection(
            reader,
            writer,
            session=Session(
                hyperparameters=settings.hyperparameters,
                device=settings.device,
                default_config=settings.default_config,
                inline_tuning=_inline_tuning(settings),
                can_save=self._captures is not None,
            ),
            worker=self._worker,
            patience=self._patience.cut_short() if full else self._patience,
            name=name,
            refusal=f"the server has {settings.max_connections} connections already; try again later" if full else None,
            capture=None if full or self._captures is None else self._captures.new(name),
        )
        task = asyncio.current_task()
        if task is not None:
            for tasks in (self._connections,) if full else (self._connections, self._served):
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await connection.run()

    async def _end_connections(self) -> None:
        """Let scans that are nearly done finish, then end the rest."""
        if self._connections:
            await asyncio.wait(self._connections, timeout=self._settings.shutdown_grace_s)
        self._worker.retire()
        while self._connections:
            # More than once: one may have been accepted while the others were waited for.
            for connection in self._connections:
                connection.cancel()
            await asyncio.wait(self._connections)


def _inline_tuning(settings: ServerSettings) -> InlineTuning | None:
    if settings.tune_seconds is None or settings.candidates is None:
        return None
    return InlineTuning(seconds=settings.tune_seconds, folder=settings.candidates.resolve())


def _captures(settings: ServerSettings) -> Captures | None:
    if settings.savedata_folder is None:
        return None
    keeping = Keeping(folder=settings.savedata_folder.resolve(), days=settings.savedata_days, gib=settings.savedata_gib)
    return Captures(keeping, always=settings.savedata)
