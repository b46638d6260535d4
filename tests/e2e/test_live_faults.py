"""Interventional streams in which something is wrong in the middle: the images go on, and what is wrong is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np
import pytest
from hearing import owed
from ismrmrd import Acquisition

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.protocol import Close, ConfigText, Header, Image, Text

if TYPE_CHECKING:
    from conftest import RunningServer

CONFIG = ConfigText(
    '{"parameters": {"config": "inr_imri", "method": "zero_filled", "frame_policy": "all", "dtype": "float"}}'
)
FRAMES = 6

pytestmark = pytest.mark.usefixtures("next_scan_is_served")


@pytest.fixture(scope="module")
def movie() -> SimulatedScan:
    return simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12, repetitions=FRAMES)


@pytest.fixture(scope="module")
def intact(server: RunningServer, movie: SimulatedScan) -> dict[int, np.ndarray]:
    """The images of the stream as it should be, by repetition."""
    images, texts = heard(server, movie, list(movie.acquisitions))
    assert not [text for text in texts if text.startswith("WARNING")]
    assert [image.repetition for image in images] == list(range(FRAMES))
    return {image.repetition: image.data for image in images}


def heard(server: RunningServer, scan: SimulatedScan, acquisitions: list[Acquisition]) -> tuple[list[Image], list[str]]:
    """Images and texts."""
    answers = owed(server.answers(CONFIG, Header(scan.header), *acquisitions, Close()))
    texts = [answer.text for answer in answers if isinstance(answer, Text)]
    return [answer for answer in answers if isinstance(answer, Image)], texts


def of(acquisitions: list[Acquisition], repetition: int) -> list[int]:
    """Where the imaging readouts of a repetition are."""
    return [
        at
        for at, one in enumerate(acquisitions)
        if one.idx.repetition == repetition and not one.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    ]


def shaped(*shape: int) -> Callable[[Acquisition], Acquisition]:
    def change(one: Acquisition) -> Acquisition:
        other = Acquisition.from_array(np.ones(shape, np.complex64))
        other.idx, other.flags, other.center_sample = one.idx, one.flags, one.center_sample
        return other

    return change


def counted(name: str, value: int) -> Callable[[Acquisition], Acquisition]:
    def change(one: Acquisition) -> Acquisition:
        setattr(one.idx if hasattr(one.idx, name) else one, name, value)
        return one

    return change


def not_a_number(one: Acquisition) -> Acquisition:
    one.data[:] = np.nan
    return one


SPOILT = {
    "not a number": (not_a_number, "are not finite"),
    "too many samples": (shaped(4, 100), "100 samples does not fit"),
    "another number of channels": (shaped(3, 64), "3 channels in a scan of 4"),
    "no samples": (shaped(4, 0), "holds no data"),
    "a space that is not there": (counted("encoding_space_ref", 5), "encoding space 5"),
    "a repetition far on": (counted("repetition", 900), "alone in its repetition"),
    "a repetition far back": (counted("repetition", 60_000), "alone in its repetition"),
    "a slice that is not there": (counted("slice", 77), "alone in its repetition"),
    "zeros": (lambda one: shaped(4, 64)(one) if one.data.fill(0) else one, "count as not acquired"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_readout_that_makes_no_sense_costs_one_line_of_one_image(
    server: RunningServer, movie: SimulatedScan, intact: dict[int, np.ndarray], case: str, place: int
) -> None:
    acquisitions = [copy.deepcopy(one) for one in movie.acquisitions]
    change, told = SPOILT[case]
    at = of(acquisitions, 3)[place]
    acquisitions[at] = change(acquisitions[at])
    images, texts = heard(server, movie, acquisitions)
    assert [image.repetition for image in images] == list(range(FRAMES))
    for image in images:
        assert np.array_equal(image.data, intact[image.repetition]) == (image.repetition != 3)
    assert [text for text in texts if text.startswith("WARNING") and told in text]
    assert not [text for text in texts if text.startswith("ERROR")]


def test_frames_that_are_lost_double_late_or_cut_short_are_told_with_where_they_were(
    server: RunningServer, movie: SimulatedScan, intact: dict[int, np.ndarray]
) -> None:
    parts = [[movie.acquisitions[at] for at in of(list(movie.acquisitions), n)] for n in range(FRAMES)]
    noise = [one for one in movie.acquisitions if one.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    order = [*parts[0], *parts[1], *parts[1], *parts[3], *parts[2], *parts[4][:-3], *parts[5]]
    images, texts = heard(server, movie, [*noise, *order])
    assert [image.repetition for image in images] == [0, 1, 3, 4, 5]
    for image in images:
        assert np.array_equal(image.data, intact[image.repetition]) == (image.repetition != 4)
    lines = len(parts[0])
    assert [text.removeprefix("WARNING ") for text in texts if text.startswith("WARNING")] == [
        "repetition 1, slice 0: what comes again, or after its end, is left out",
        "repetition 2 of slice 0 did not come",
        "repetition 2, slice 0: came again, or late, after repetition 3, and is left out",
        f"repetition 4, slice 0: {lines - 3} of {lines} lines came",
    ]


def test_a_stream_that_makes_no_sense_from_the_start_is_refused_in_words(
    server: RunningServer, movie: SimulatedScan
) -> None:
    acquisitions = [counted("encoding_space_ref", 5)(copy.deepcopy(one)) for one in movie.acquisitions]
    images, texts = heard(server, movie, acquisitions)
    assert images == []
    (error,) = [text for text in texts if text.startswith("ERROR")]
    assert "encoding space 5" in error


def test_a_sliding_window_gives_an_image_after_every_step(server: RunningServer, movie: SimulatedScan) -> None:
    config = CONFIG.text.replace('"dtype"', '"window": 22, "step": 11, "dtype"')
    answers = owed(server.answers(ConfigText(config), Header(movie.header), *movie.acquisitions, Close()))
    images = [answer for answer in answers if isinstance(answer, Image)]
    lines = len(of(list(movie.acquisitions), 0))
    assert abs(len(images) - (lines * FRAMES - 22) // 11) <= 1
    assert [image.repetition for image in images] == sorted(image.repetition for image in images)
    assert [image.image_index for image in images] == list(range(1, len(images) + 1))
