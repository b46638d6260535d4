"""The listening front: accepts at once, serves connections side by side, keeps the worker process. No torch here."""

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import count
from typing import TYPE_CHECKING

from inrecon.acquire import Memory
from inrecon.errors import InreconError
from inrecon_server.capture import Captures
from inrecon_server.config import configure
from inrecon_server.connection import Connection
from inrecon_server.door import is_allowed, server_tls
from inrecon_server.job import InlineTuning
from inrecon_server.keeping import Keeping
from inrecon_server.kept_priors import KeptPriors
from inrecon_server.lanes import Lanes
from inrecon_server.metrics import Metrics
from inrecon_server.patience import Patience
from inrecon_server.process import WorkerLost
from inrecon_server.scan_state import ScanState
from inrecon_server.session import Session, Terms, machine_memory
from inrecon_server.settings import ServerSettings
from inrecon_server.sfndam import MOST_BYTES
from inrecon_server.storage_server import StorageServer
from inrecon_server.watch import watched

if TYPE_CHECKING:
    from inrecon_server.igtl import Viewers

log = logging.getLogger(__name__)

_STREAM_LIMIT = 1 << 18
_HANDSHAKE_S = 10.0


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
    if patience is None:
        scan_bytes = round(settings.scan_gib * 2**30)
        patience = Patience(idle_s=settings.idle_s, scan_s=settings.scan_s, scan_bytes=scan_bytes)
    asyncio.run(_Server(settings, patience).run(on_listening))


class _Server:
    def __init__(self, settings: ServerSettings, patience: Patience) -> None:
        self._settings = settings
        self._patience = patience
        self._tls = server_tls(settings.tls_certificate, settings.tls_key, settings.tls_clients)
        self._metrics = Metrics()
        self._workers = Lanes(
            device=settings.device,
            scans=settings.workers,
            realtime=settings.realtime_workers,
            hang_s=settings.hang_s,
            hyperparameters=settings.hyperparameters,
            log_format=settings.log_format,
            on_lost=self._metrics.workers_lost.inc,
        )
        self._metrics.queued.set_function(lambda: self._workers.queued)
        self._metrics.at_work.set_function(lambda: self._workers.at_work)
        self._captures = _captures(settings)
        self._viewers = _viewers(settings, self._metrics)
        self._terms = Terms(
            hyperparameters=settings.hyperparameters,
            device=settings.device,
            default_config=settings.default_config,
            inline_tuning=_inline_tuning(settings),
            deadline_s=settings.deadline_s,
            memory=Memory(machine_memory() // 2 if settings.memory_gib is None else round(settings.memory_gib * 2**30)),
            state=_scan_state(settings),
            priors=KeptPriors(hours=settings.state_hours),
            can_save=self._captures is not None,
        )
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        self._stopped = asyncio.Event()
        self._impatient = asyncio.Event()

    async def run(self, on_listening: Callable[[str, int], None] | None) -> None:
        told = self._settings
        loop = asyncio.get_running_loop()
        # Threads that wait for a disk or for another machine must leave some for others.
        loop.set_default_executor(ThreadPoolExecutor(max_workers=8 + 2 * told.max_connections))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        server = await asyncio.start_server(
            self._accept,
            told.host,
            told.port,
            limit=_STREAM_LIMIT,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S,
        )
        async with server:
            with (
                watched(self._metrics, ready=self._is_ready, host=told.http_host, port=told.http_port) as http_port,
                self._viewers or nullcontext(),
            ):
                host, port = server.sockets[0].getsockname()[:2]
                log.info(
                    "listening on %s:%d; metrics and health at http://%s:%d", host, port, told.http_host, http_port
                )
                if on_listening is not None:
                    on_listening(host, port)
                await self._until_stopped(server)

    async def _until_stopped(self, server: asyncio.Server) -> None:
        self._workers.start()
        if self._captures is not None:
            self._captures.start()
        warming = asyncio.create_task(self._warm_up())
        try:
            await self._stopped.wait()
        finally:
            server.close()
            await self._end_connections()
            warming.cancel()
            self._workers.stop()
            if self._captures is not None:
                self._captures.stop()
        with suppress(asyncio.CancelledError):
            await warming

    def _stop(self) -> None:
        """Let scans at work end; told twice, end them."""
        if self._stopped.is_set():
            self._impatient.set()
        self._stopped.set()

    def _is_ready(self) -> bool:
        return self._workers.usable and not self._stopped.is_set()

    async def _warm_up(self) -> None:
        """Start-up that fails for good (no such device) ends the server; a worker that died is replaced when needed."""
        try:
            log.info("ready: reconstructing on %s", await self._workers.warmed_up())
            if self._workers.remark:
                log.error("%s; no scan can be reconstructed before that is put right", self._workers.remark)
        except WorkerLost as error:
            log.error("a worker process was lost while it started: %s", error)
        except InreconError:
            self._stopped.set()
            raise

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        settings = self._settings
        peer = writer.get_extra_info("peername")
        if peer is None or not is_allowed(peer[0], settings.allow):  # None: gone before it was there
            log.warning("a client from %s is not allowed to connect", "nowhere" if peer is None else peer[0])
            writer.transport.abort()
            return
        # Those that are refused only wait for the client to hang up: counted in, they would keep the server full.
        full = len(self._served) >= settings.max_connections
        name = f"connection {next(self._numbers)}"
        connection = Connection(
            reader,
            writer,
            session=Session(self._terms),
            workers=self._workers,
            metrics=self._metrics,
            patience=self._patience.cut_short() if full else self._patience,
            name=name,
            refusal=f"the server has {settings.max_connections} connections already; try again later" if full else None,
            capture=None if full or self._captures is None else self._captures.new(name),
            viewers=self._viewers,
        )
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection outside of a task")
        self._connections[task] = connection
        if not full:
            self._served.add(task)
        try:
            await connection.run()
        finally:
            del self._connections[task]
            self._served.discard(task)

    async def _end_connections(self) -> None:
        """Let scans that are nearly done finish, then end the rest."""
        for task, connection in self._connections.items():
            if connection.has_nothing:
                task.cancel()
        if self._served:
            log.info("stopping: %d connections have %g s to end", len(self._served), self._settings.shutdown_grace_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_grace_s):
                    hurried = asyncio.create_task(self._impatient.wait())
                    while self._served and not hurried.done():
                        await asyncio.wait({hurried, *self._served}, return_when=asyncio.FIRST_COMPLETED)
        self._workers.retire()
        while self._connections:
            # More than once: one may have been accepted while the others were waited for.
            for task in self._connections:
                task.cancel()
            await asyncio.wait(set(self._connections))


def _inline_tuning(settings: ServerSettings) -> InlineTuning | None:
    if settings.tune_seconds is None or settings.candidates is None:
        return None
    return InlineTuning(seconds=settings.tune_seconds, folder=settings.candidates.resolve())


def _scan_state(settings: ServerSettings) -> ScanState:
    address = settings.storage_address
    storage = None if address is None else StorageServer(str(address), limit_bytes=MOST_BYTES)
    return ScanState(folder=settings.state_folder, hours=settings.state_hours, storage=storage)


def _viewers(settings: ServerSettings, metrics: Metrics) -> "Viewers | None":
    if settings.igtl_port is None:
        return None
    try:
        from inrecon_server.igtl import Viewers
    except ModuleNotFoundError as error:
        raise InreconError(f"igtl_port needs the package {error.name}: pip install 'inrecon[igtl]'") from error
    return Viewers(host=settings.igtl_host, port=settings.igtl_port, allow=settings.allow, metrics=metrics)


def _captures(settings: ServerSettings) -> Captures | None:
    if settings.savedata_folder is None:
        return None
    keeping = Keeping(folder=settings.savedata_folder.resolve(), days=settings.savedata_days, gib=settings.savedata_gib)
    return Captures(keeping, always=settings.savedata, log_format=settings.log_format)
