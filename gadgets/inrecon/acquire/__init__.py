"""XML header to `Scan`; acquisitions to `RawFrame`. No torch: this runs where readouts are collected."""

from inrecon.acquire.accumulate import Accumulator, Summary
from inrecon.acquire.header import parse_header
from inrecon.acquire.scan import Encoding, Limits, Scan

__all__ = ["Accumulator", "Encoding", "Limits", "Scan", "Summary", "parse_header"]
