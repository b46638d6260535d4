"""A whole scan at once, for whoever needs no frame before the last readout is there."""

from collections.abc import Iterable

import ismrmrd

from inrecon.acquire.accumulate import Accumulator
from inrecon.acquire.header import parse_header
from inrecon.frame import RawFrame


def raw_frames(header: bytes, acquisitions: Iterable[ismrmrd.Acquisition]) -> list[RawFrame]:
    """All frames of a scan, in the order in which they end; `header` is ISMRMRD XML.

    Raises what `parse_header` and `Accumulator.add` do.
    """
    accumulator = Accumulator(parse_header(header))
    return [frame for acquisition in acquisitions for frame in accumulator.add(acquisition)] + accumulator.finish()
