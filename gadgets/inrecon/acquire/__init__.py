"""XML header to `Scan`; acquisitions to `RawFrame`. No torch: this runs where readouts are collected."""

from inrecon.acquire.accumulate import Accumulator
from inrecon.acquire.buffers import Memory
from inrecon.acquire.frames import raw_frames
from inrecon.acquire.header import parse_header
from inrecon.acquire.kept_noise import LEFT_TO_GADGETRON
from inrecon.acquire.live import LiveAccumulator, collector
from inrecon.acquire.place import Place
from inrecon.acquire.readout import ENDS
from inrecon.acquire.scan import Encoding, Limits, NotCartesian, Scan
from inrecon.acquire.summary import Summary
from inrecon.acquire.unsorted import as_delivered, bucket_readouts, buffer_readouts

__all__ = [
    "ENDS",
    "LEFT_TO_GADGETRON",
    "Accumulator",
    "Encoding",
    "Limits",
    "LiveAccumulator",
    "Memory",
    "NotCartesian",
    "Place",
    "Scan",
    "Summary",
    "as_delivered",
    "bucket_readouts",
    "buffer_readouts",
    "collector",
    "parse_header",
    "raw_frames",
]
