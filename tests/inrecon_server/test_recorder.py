"""What a session sends becomes an ISMRMRD file, whatever comes and wherever it ends."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from inrecon_server.files import open_raw
from inrecon_server.protocol import (
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Message,
    Query,
    Text,
    serialise,
)
from inrecon_server.recorder import Recorded, record

XML = b'<?xml version="1.0"?>\n<ismrmrdHeader>\xe9 <protocolName>t1/ tse\xc2\xb2</protocolName></ismrmrdHeader>\n'


def readout(number: int, *, coils: int = 3, samples: int = 16, trajectory: int = 0) -> ismrmrd.Acquisition:
    rng = np.random.default_rng(number)
    data = rng.standard_normal((coils, 2 * samples)).astype(np.float32).view(np.complex64)
    place = rng.standard_normal((samples, trajectory)).astype(np.float32) if trajectory else None
    acquisition = ismrmrd.Acquisition.from_array(data, place, center_sample=samples // 2)
    acquisition.scan_counter = number
    acquisition.idx.kspace_encode_step_1 = number
    acquisition.user_float[2] = number / 3
    acquisition.channel_mask[15] = 1 << 63
    return acquisition


def waveform(number: int, channels: int = 2) -> ismrmrd.Waveform:
    samples = np.random.default_rng(number).integers(0, 2**32, (channels, 5), np.uint32)
    return ismrmrd.Waveform.from_array(samples, waveform_id=number, scan_counter=number)


def wire(*messages: Message) -> bytes:
    return b"".join(map(serialise, messages))


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def assert_same(found: Iterable[ismrmrd.Acquisition], sent: Iterable[ismrmrd.Acquisition]) -> None:
    for one, other in zip(found, sent, strict=True):
        assert bytes(one.getHead()) == bytes(other.getHead())
        assert np.array_equal(one.data, other.data)
        assert np.array_equal(one.traj, other.traj)


def test_everything_that_was_sent_is_in_the_file(tmp_path: Path) -> None:
    readouts = [readout(n, coils=1 + n % 3, samples=16 + n % 2, trajectory=n % 3) for n in range(600)]
    waveforms = [waveform(n, channels=1 + n % 2) for n in range(300)]
    mixed = [message for pair in zip(readouts, waveforms, strict=False) for message in pair] + readouts[300:]
    parameters = '{"parameters": {"preset": "fast"}}'
    sent = wire(ConfigFile("cg_sense"), Header(XML), Text(parameters), *mixed, Close())
    recorded = record(pieces(sent), tmp_path)
    assert (recorded.readouts, recorded.waveforms, recorded.problem) == (600, 300, None)
    assert recorded.name is not None
    assert recorded.name.startswith("t1_tse_")
    with open_raw(tmp_path / recorded.name) as raw:
        assert raw.header == XML
        assert raw.config == "cg_sense"
        assert raw.parameters == (parameters,)
        assert_same(raw.acquisitions(), readouts)
    with ismrmrd.Dataset(tmp_path / recorded.name, mode="r") as dataset:
        assert dataset.read_xml_header() == XML
        assert dataset.number_of_acquisitions() == 600
        assert_same(map(dataset.read_acquisition, range(10)), readouts[:10])
        found = [dataset.read_waveform(n) for n in range(dataset.number_of_waveforms())]
    for one, other in zip(found, waveforms, strict=True):
        assert bytes(one.getHead()) == bytes(other.getHead())
        assert np.array_equal(one.data, other.data)


def test_ismrmrd_reads_the_file_in_bulk_too(tmp_path: Path) -> None:
    sent = [readout(n, trajectory=2) for n in range(20)]
    recorded = record(pieces(wire(ConfigText("<configuration/>"), Header(XML), *sent, Close())), tmp_path)
    with ismrmrd.File(tmp_path / str(recorded.name), "r") as file:
        assert_same(file["dataset"].acquisitions, sent)
    with open_raw(tmp_path / str(recorded.name)) as raw:
        assert raw.config == "<configuration/>"


@pytest.mark.parametrize("ending", ["cut", "nonsense", "after CLOSE"])
def test_what_came_whole_before_the_end_is_kept(tmp_path: Path, ending: str) -> None:
    sent = [readout(n) for n in range(10)]
    data = wire(ConfigFile("null"), Header(XML), *sent)
    more = {"cut": wire(readout(10))[:-1], "nonsense": b"\xff" * 5000, "after CLOSE": wire(Close(), readout(11))}
    recorded = record(pieces(data + more[ending]), tmp_path)
    assert recorded.problem is None
    with open_raw(tmp_path / str(recorded.name)) as raw:
        assert_same(raw.acquisitions(), sent)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_header_alone_makes_a_file_without_readouts(tmp_path: Path) -> None:
    recorded = record(pieces(wire(ConfigFile("null"), Header(b"no \0 XML at all"), Close())), tmp_path)
    assert str(recorded.name).startswith("MRD_input_")
    with open_raw(tmp_path / str(recorded.name)) as raw:
        assert raw.readouts == 0
        assert raw.header == b"no   XML at all"


@pytest.mark.parametrize(
    "sent", [(), (Close(),), (ConfigFile("null"), Close()), (Query("gadgetron::version", 1), Close())]
)
def test_without_a_header_there_is_no_file(tmp_path: Path, sent: tuple[Message, ...]) -> None:
    assert record(pieces(wire(*sent)), tmp_path) == Recorded()
    assert list(tmp_path.iterdir()) == []


def test_texts_without_a_meaning_are_left_out(tmp_path: Path) -> None:
    late = Text('{"parameters": {"config": "null"}}')
    sent = wire(ConfigFile("inr"), Header(XML), Text("hello"), Text('{"a": 1}'), Text('{"b": 2}'), readout(1), late)
    recorded = record(pieces(sent), tmp_path)
    with open_raw(tmp_path / str(recorded.name)) as raw:
        assert raw.parameters == ('{"a": 1}', '{"b": 2}')


def test_a_folder_that_is_gone_is_a_problem_and_no_more(tmp_path: Path) -> None:
    recorded = record(pieces(wire(ConfigFile("null"), Header(XML), readout(1))), tmp_path / "gone")
    assert recorded == Recorded(problem="No such file or directory")


def test_a_disk_that_is_full_ends_a_file_that_can_be_read(tmp_path: Path) -> None:
    sent = [readout(n, coils=24, samples=4096) for n in range(80)]  # 60 MiB
    data = tmp_path / "sent"
    data.write_bytes(wire(ConfigFile("null"), Header(XML), *sent, Close()))
    limit = 48 << 20
    with data.open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "inrecon_server.recorder", json.dumps(options(tmp_path))],
            stdin=stdin,
            capture_output=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    recorded = Recorded.read(done.stdout)
    assert recorded.problem == "File too large"
    assert 10 < recorded.readouts < 80
    with open_raw(tmp_path / str(recorded.name)) as raw:
        assert_same(raw.acquisitions(), sent[: recorded.readouts])


def options(folder: Path) -> dict[str, object]:
    return {"folder": str(folder), "days": None, "gib": None, "log_level": 20, "log_format": "text"}
