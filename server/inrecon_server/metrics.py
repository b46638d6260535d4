"""What is counted and timed, as Prometheus reads it; no label holds anything of a patient or a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from itertools import islice
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app
from prometheus_client.process_collector import ProcessCollector

from inrecon import __version__


class Outcome(Enum):
    """What became of a connection; NO_IMAGE: there was nothing to reconstruct, as in a health check."""

    DONE = "done"
    NO_IMAGE = "no image"
    PARTLY_FAILED = "partly failed"
    FAILED = "failed"
    VANISHED = "vanished"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"


_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100, 300)
_ITERATIONS = (10, 30, 100, 300, 1000, 3000)


class Metrics:
    """The server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made: dict[str, Any] = {"registry": self.registry, "namespace": "inrecon"}
        Info("build", "Version of inrecon.", **made).info({"version": __version__})
        self.started = Counter("sessions_started", "Connections that were accepted.", **made)
        self.ended = Counter(
            "sessions_ended", "Connections by configuration and what became of them.", ["config", "outcome"], **made
        )
        self.active = Gauge("sessions_active", "Connections that are open.", **made)
        self.received_bytes = Counter("received_bytes", "Bytes from clients.", **made)
        self.readouts = Counter("readouts_received", "Readouts from clients.", **made)
        self.images = Counter("images_sent", "Images handed to clients' connections.", **made)
        self.viewers = Gauge("viewers", "Viewers that are connected by OpenIGTLink.", **made)
        self.live_sent = Counter("live_images_sent", "Images sent to viewers.", **made)
        self.live_skipped = Counter("live_images_skipped", "Images left out as a viewer had not taken others.", **made)
        self.live_failed = Counter("live_images_failed", "Images of which no message to viewers could be made.", **made)
        self.frames_failed = Counter("frames_failed", "Frames of which no image could be made.", **made)
        self.frames_skipped = Counter("frames_skipped", "Frames of streams that a newer one took the place of.", **made)
        self.latency = Histogram(
            "frame_latency_seconds", "From a frame's last readout to its image sent.", buckets=_LATENCY_S, **made
        )
        self.missed = Counter("deadlines_missed", "Frames whose image was sent after its deadline.", **made)
        self.stages = Histogram("stage_seconds", "Time of one frame in a stage.", ["stage"], buckets=_LATENCY_S, **made)
        self.fallbacks = Counter("fallbacks", "Frames made in another way than asked for, by room.", ["room"], **made)
        self.iterations = Histogram("fit_iterations", "Iterations of a fit.", ["method"], buckets=_ITERATIONS, **made)
        self.loss = Histogram(
            "fit_validation_loss",
            "Loss on held-out samples, 1 for no image.",
            ["method"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
            **made,
        )
        self.look_ups = Counter("look_ups", "Frames by the hyperparameter file that they got.", ["entry"], **made)
        self.queued = Gauge("frames_queued", "Frames that wait for a worker process.", **made)
        self.at_work = Gauge("frames_at_work", "Frames that a worker process is at.", **made)
        self.workers_lost = Counter("workers_lost", "Worker processes that died or hung.", **made)

    def page(self) -> Callable[..., Iterable[bytes]]:
        """All figures in Prometheus' form, as a WSGI application."""
        told: Callable[..., Iterable[bytes]] = make_wsgi_app(self.registry)
        return told

    def frame(self, reports: Iterable[Mapping[str, Any]], *, fallbacks: Iterable[str]) -> None:
        """What the first of the reports of one frame's images tells, that of the fit, and the rooms that took another
        way."""
        for report in islice(reports, 1):
            for stage, seconds in report["seconds"].items():
                self.stages.labels(stage).observe(seconds)
            self.iterations.labels(report["method"]).observe(report["iterations"])
            if report["validation_loss"] is not None:
                self.loss.labels(report["method"]).observe(report["validation_loss"])
            self.look_ups.labels(report["entry"]).inc()
        for room in fallbacks:
            self.fallbacks.labels(room).inc()
