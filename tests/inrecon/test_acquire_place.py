"""Where frames lie: what counts as the same place."""

from dataclasses import replace

import ismrmrd
import pytest

from inrecon.acquire import Place, raw_frames
from inrecon.frame import RawFrame
from inrecon.simulate import simulate_scan


@pytest.fixture(scope="module")
def raw() -> RawFrame:
    scan = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=4)
    return raw_frames(scan.header, scan.acquisitions)[0]


def moved(raw: RawFrame, **fields: tuple[float, float, float]) -> Place:
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw.reference)
    for name, values in fields.items():
        getattr(head, name)[:] = values
    return Place.of(replace(raw, reference=bytes(head)))


def test_a_place_is_the_same_but_for_what_headers_are_rounded_by(raw: RawFrame) -> None:
    here = moved(raw, position=(1, 2, 3), read_dir=(1, 0, 0))
    assert here.is_near(moved(raw, position=(1.3, 2, 3), read_dir=(1, 5e-4, 0)))
    assert not here.is_near(moved(raw, position=(1.7, 2, 3), read_dir=(1, 0, 0)))
    assert not here.is_near(moved(raw, position=(1, 2, 3), read_dir=(1, 5e-3, 0)))
    assert not here.is_near(replace(here, matrix=(16, 16, 2)))


def test_what_is_not_a_number_says_of_no_movement(raw: RawFrame) -> None:
    nan = float("nan")
    assert moved(raw, slice_dir=(nan, nan, nan)).is_near(moved(raw, slice_dir=(nan, nan, nan)))
    assert moved(raw, slice_dir=(nan, nan, nan)).is_near(moved(raw, slice_dir=(0, 0, 1)))
    assert not moved(raw, position=(nan, 0, 5)).is_near(moved(raw, position=(0, 0, 1)))
