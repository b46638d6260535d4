"""What Gadgetron has sorted into buckets and buffers -> readouts, in the order in which they were acquired.

Buckets and buffers are those of the package `gadgetron`, which is not imported here.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ismrmrd
import numpy as np

from inrecon.acquire.readout import CALIBRATION
from inrecon.acquire.scan import Encoding, Scan
from inrecon.errors import InvalidFrame
from inrecon.frame import Complex


def bucket_readouts(bucket: Any) -> list[ismrmrd.Acquisition]:
    """The readouts of an `AcquisitionBucket`."""
    return _in_order(_once(bucket.data, bucket.ref))


def buffer_readouts(buffers: Any) -> list[ismrmrd.Acquisition]:
    """The readouts of a `ReconData`, discarded samples as zeros; raises `InvalidFrame` if data and headers disagree."""
    return _in_order(
        readout
        for bit in buffers
        for readout in _once(_unsorted(bit.data), () if bit.ref is None else _unsorted(bit.ref))
    )


def as_delivered(scan: Scan, readouts: Sequence[ismrmrd.Acquisition]) -> Scan:
    """`scan`, without the oversampling of readouts if `readouts` of a bucket or buffer, one at least, have none.

    Gadgetron's chains remove it before they sort, and leave the header as it was.
    """
    first = next((readout for readout in readouts if not readout.flags & CALIBRATION), readouts[0])
    space = first.encoding_space_ref
    encoding = scan.encodings[space] if space < len(scan.encodings) else None
    if isinstance(encoding, Encoding) and first.number_of_samples <= encoding.geometry.readout_size:
        return scan.without_oversampling()
    return scan


def _in_order(readouts: Iterable[ismrmrd.Acquisition]) -> list[ismrmrd.Acquisition]:
    return sorted(readouts, key=lambda readout: int(readout.scan_counter))


def _once(
    data: Iterable[ismrmrd.Acquisition], reference: Iterable[ismrmrd.Acquisition]
) -> Iterator[ismrmrd.Acquisition]:
    """Each readout once: those that serve both calibration and imaging are in `data` and in `reference`."""
    yield from (readout for readout in reference if readout.flags & CALIBRATION)
    yield from data


def _unsorted(buffer: Any) -> Iterator[ismrmrd.Acquisition]:
    """The readouts of one buffer: data ``(samples, lines, partitions, coils, N, S, slices)``, and headers ``(lines,
    partitions, N, S, slices)`` that count no samples where nothing was acquired."""
    data, headers = buffer.data, buffer.headers
    if headers.shape != (*data.shape[1:3], *data.shape[4:]):
        raise InvalidFrame(f"a buffer of data {data.shape} has headers {headers.shape}")
    center = int(buffer.sampling.sampling_limits[0].center)
    for line, partition, *rest in np.ndindex(headers.shape):
        head = headers[line, partition, *rest]
        if head.number_of_samples:
            yield _unplaced(head, data[:, line, partition, :, *rest].T, center=center)


def _unplaced(head: ismrmrd.AcquisitionHeader, row: Complex, *, center: int) -> ismrmrd.Acquisition:
    """The readout of which `row` ``(coils, samples)`` of a buffer was made.

    BucketToBufferGadget leaves it where it was if its centre was in its middle; else its centre lies at `center`.
    """
    coils, width = row.shape
    count, first = head.number_of_samples, head.discard_pre
    kept = count - first - head.discard_post
    centred = count == width and head.center_sample == count // 2
    start = first if centred else center - head.center_sample
    if kept < 1 or not 0 <= start <= width - kept:
        raise InvalidFrame(f"a readout of {kept} samples does not lie inside a buffer of {width}")
    data = np.zeros((coils, count), np.complex64)
    data[:, first : first + kept] = row[:, start : start + kept]
    own = ismrmrd.AcquisitionHeader.from_buffer_copy(head)
    # Gadgets that combine the coils of a buffer leave its headers as they were.
    own.active_channels, own.trajectory_dimensions = coils, 0
    return ismrmrd.Acquisition(own, data)
