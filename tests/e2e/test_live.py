"""Interventional streams: readouts go in while a needle advances, and images come out in which it is where it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ismrmrd
import numpy as np
import pytest
from hearing import owed
from numpy.typing import NDArray

from inrecon.frame import Live, Request
from inrecon.simulate import Intervention, simulate_intervention
from inrecon_server.files import open_raw
from inrecon_server.protocol import Close, ConfigText, Header, Image, Message, Text, serialise
from inrecon_server.replay import replay

if TYPE_CHECKING:
    from conftest import RunningServer

FRAMES = 6
FIRST = "the fully sampled frame of repetition 0"
USUAL = {"frame_policy": "all", "dtype": "float"}

pytestmark = pytest.mark.usefixtures("next_scan_is_served", "one_thread")


def asked(**parameters: str) -> ConfigText:
    told = ", ".join(f'"{name}": "{value}"' for name, value in {"config": "inr_imri", **USUAL, **parameters}.items())
    return ConfigText(f'{{"parameters": {{{told}}}}}')


def simulated(**changes: Any) -> Intervention:
    usual: dict[str, Any] = {
        "shape": (48, 48),
        "coils": 6,
        "frames": FRAMES,
        "acceleration": 4,
        "acs": 8,
        "motion": 0.5,
    }
    return simulate_intervention(**{**usual, **changes})


@pytest.fixture(scope="module")
def needle() -> Intervention:
    return simulated()


def images_of(answers: list[Message]) -> list[Image]:
    return [answer for answer in owed(answers) if isinstance(answer, Image)]


def told(answers: list[Message], level: str) -> list[str]:
    return [answer.text for answer in answers if isinstance(answer, Text) and answer.text.startswith(level)]


def answers(
    server: RunningServer, made: Intervention, config: ConfigText, readouts: list[ismrmrd.Acquisition] | None = None
) -> list[Message]:
    return server.answers(config, Header(made.header), *(readouts or made.all_acquisitions()), Close())


def error(image: Image, made: Intervention) -> float:
    """In what has changed since the first frame; 1 is a copy of that."""
    frame = image.repetition
    where, truth = made.changed(frame), np.abs(made.truth(frame))
    pixels: NDArray[np.float64] = image.data[0, 0].astype(np.float64)
    pixels *= (pixels * truth)[made.support()].sum() / np.square(pixels)[made.support()].sum()
    first = np.abs(made.truth(0))
    return float(np.linalg.norm((pixels - truth)[where]) / np.linalg.norm((first - truth)[where]))


def test_the_needle_is_where_it_is(server: RunningServer, needle: Intervention) -> None:
    of_stream = answers(server, needle, asked())
    images = images_of(of_stream)
    alone = images_of(answers(server, needle, asked(method="cg_sense")))
    assert [image.repetition for image in images] == list(range(FRAMES))
    assert not told(of_stream, "WARNING")
    last = FRAMES - 1
    assert error(images[last], needle) < 0.5
    assert error(images[last], needle) < 0.7 * error(alone[last], needle)
    assert {image.image_series_index for image in images} == {1}
    facts = images[last].meta
    assert facts["inrecon_method"] == "residual_inr"
    assert facts["inrecon_prior"] == FIRST
    assert "inrecon_fallback" not in facts


def test_a_file_gives_the_images_of_the_stream(server: RunningServer, needle: Intervention, tmp_path: Path) -> None:
    path = tmp_path / "stream.h5"
    with ismrmrd.Dataset(path, "dataset", create_if_needed=True) as dataset:
        dataset.write_xml_header(needle.header)
        for acquisition in needle.all_acquisitions():
            dataset.append_acquisition(acquisition)
    images = images_of(answers(server, needle, asked()))
    with open_raw(path) as raw:
        request = Request(dtype="float", live=Live(policy="all"))
        replayed = replay(raw, request=request, hyperparameters=None, device="cpu", quiet=True)
    assert len(replayed.images) == len(images) == FRAMES
    for image, other in zip(images, replayed.images, strict=True):
        np.testing.assert_array_equal(image.data, other.data)


def test_slices_that_take_turns_have_a_prior_each(server: RunningServer) -> None:
    made = simulated(slices=2, frames=3)
    images = images_of(answers(server, made, asked()))
    assert [(image.repetition, image.slice) for image in images] == [(n, s) for n in range(3) for s in range(2)]
    for image in images[2:]:
        assert image.meta["inrecon_prior"] == FIRST


def test_a_new_prior_is_made_on_command(server: RunningServer, needle: Intervention) -> None:
    command = Text('{"parameters": {"new_prior": "true"}}')
    # At once: frames that still wait when the command comes are told by the prior from before.
    frames = [needle.acquisitions(frame) for frame in range(4)]
    heard = server.answers(
        asked(), Header(needle.header), *frames[0], *frames[1], command, *frames[2], *frames[3], Close()
    )
    images = [answer for answer in heard if isinstance(answer, Image)]
    assert any("new prior" in text for text in told(heard, "INFO"))
    sources = [image.meta["inrecon_prior"] for image in images]
    assert sources[:2] == [FIRST] * 2
    assert sources[2:] == ["the mean of 1 frames from repetition 2 on", "the mean of 2 frames from repetition 2 on"]


def read_images(connection: Any, *, count: int) -> list[Message]:
    """What comes on `connection` up to image number `count`."""
    from inrecon_server.protocol import Parser

    parser = Parser(role="client")
    found: list[Message] = []
    while sum(isinstance(one, Image) for one in found) < count:
        found.extend(parser.feed(connection.recv(1 << 16)))
    return found


def test_frames_are_compared_with_an_earlier_scan_that_is_named(server: RunningServer, needle: Intervention) -> None:
    first = needle.acquisitions(0)
    answers(server, needle, asked(), first)
    later = [one for frame in range(1, 3) for one in needle.acquisitions(frame)]
    named = answers(server, needle, asked(prior="simulated"), later)
    assert [image.meta["inrecon_prior"] for image in images_of(named)] == [f"of an earlier scan: {FIRST}"] * 2
    unknown = answers(server, needle, asked(prior="nobody"), later)
    assert any("not known here" in text for text in told(unknown, "WARNING"))
    assert len(images_of(unknown)) == 2


@pytest.fixture
def killed_between(own_server: RunningServer, needle: Intervention) -> Iterator[list[Message]]:
    """What is heard of a stream between two frames of which all worker processes are lost."""
    with own_server.connect() as connection:
        parts: list[Message] = [asked(), Header(needle.header), *needle.acquisitions(0), *needle.acquisitions(1)]
        connection.sendall(b"".join(map(serialise, parts)))
        heard = read_images(connection, count=2)
        for pid in own_server.children(b"spawn_main"):
            os.kill(pid, signal.SIGKILL)
        rest: list[Message] = [*needle.acquisitions(2), *needle.acquisitions(3), Close()]
        connection.sendall(b"".join(map(serialise, rest)))
        yield heard + own_server.hear(connection)


def test_the_prior_outlives_the_process(killed_between: list[Message]) -> None:
    images = [answer for answer in killed_between if isinstance(answer, Image)]
    assert [image.repetition for image in images] == [0, 1, 2, 3]
    assert images[-1].meta["inrecon_prior"] == FIRST
    assert images[-1].meta["inrecon_method"] == "residual_inr"
