"""Readouts at the pace of an acquisition, and how long their images take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import ismrmrd

from inrecon_server.client import ClientResult, send
from inrecon_server.protocol import Message


@dataclass
class Pace:
    """Readouts of `frames`, those of a frame spread evenly over `period_s` seconds; what `client.send` takes as data.

    `sent` is when the last readout of a frame had been handed to the socket, by the frame's number, `late_s` by how
    much a readout was behind its time at most: a socket that is not read holds the sender up.
    """

    frames: Iterable[Sequence[ismrmrd.Acquisition]]
    period_s: float
    sent: dict[int, float] = field(default_factory=dict)
    late_s: float = 0.0

    def __iter__(self) -> Iterator[ismrmrd.Acquisition]:
        started = time.perf_counter()
        for number, readouts in enumerate(self.frames):
            for place, readout in enumerate(readouts, 1):
                ahead = started + (number + place / len(readouts)) * self.period_s - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
                self.late_s = max(self.late_s, -ahead)
                yield readout
            # Whoever asks for more has sent what it was given.
            self.sent[number] = time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What came back of a stream, and when: images and seconds from the last readout to the image, by repetition."""

    result: ClientResult
    images: dict[int, ismrmrd.Image]
    latency_s: dict[int, float]
    late_s: float


def watch(
    header: bytes,
    frames: Iterable[Sequence[ismrmrd.Acquisition]],
    *,
    period_s: float,
    config: str,
    host: str = "127.0.0.1",
    port: int = 9002,
) -> Watched:
    """Send a stream of which frame n is repetition n, or is made so when asked for; raises `ConnectionFailedError`."""
    pace, arrived, images = Pace(frames, period_s), dict[int, float](), dict[int, ismrmrd.Image]()

    def hear(message: Message) -> None:
        if isinstance(message, ismrmrd.Image):
            arrived[message.repetition] = time.perf_counter()
            images[message.repetition] = message

    result = send(header, pace, host=host, port=port, config=config, on_answer=hear)
    latency = {frame: at - pace.sent[frame] for frame, at in arrived.items() if frame in pace.sent}
    return Watched(result=result, images=images, latency_s=latency, late_s=pace.late_s)


def live_configuration(**properties: str | float) -> str:
    """The text of a configuration for an interventional stream: that of ``inr_imri``, and these properties."""
    told = {"live": "true", "priority": "realtime", "dtype": "float", **properties}
    lines = "".join(f'<property name="{name}" value="{value}"/>' for name, value in told.items())
    return f"<configuration>{lines}</configuration>"
