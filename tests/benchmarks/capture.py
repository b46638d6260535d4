"""What keeping sessions costs: readouts per second into a file, and through the server's front with and without it.

python tests/benchmarks/capture.py [readouts]

Sessions of 24 coils x 256 samples. "front" is a server of its own over TCP on this machine, with the configuration
`null`, which reads everything and does nothing else. Client, front and the process that writes share its cores, and
with capture CLOSE waits up to a second for the end of the file: hence also the processor time of the front (Linux).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ismrmrd
import numpy as np

from inrecon.simulate import simulate_scan
from inrecon_server.capture import Capture
from inrecon_server.client import send
from inrecon_server.files import open_raw
from inrecon_server.keeping import Keeping
from inrecon_server.protocol import Close, ConfigFile, Header, serialise

COILS, SAMPLES = 24, 256
PIECE = 1 << 18
ROUNDS = 3
ENTRY = """
import json, sys
from inrecon_server.server import serve
from inrecon_server.settings import ServerSettings
settings = ServerSettings(port=0, http_port=0, **json.loads(sys.argv[1]))
serve(settings, on_listening=lambda host, port: print(port, flush=True))
"""


def through_capture(header: bytes, acquisitions: list[ismrmrd.Acquisition], folder: Path) -> tuple[float, Path]:
    """Seconds from the first byte until the file is whole, start of the process that writes it included."""
    wire = b"".join(map(serialise, (ConfigFile("null"), Header(header), *acquisitions, Close())))
    capture = Capture(Keeping(folder=folder), name="benchmark", always=True, queue_bytes=len(wire))
    began = time.perf_counter()
    capture.begin()
    for start in range(0, len(wire), PIECE):
        capture.feed(wire[start : start + PIECE])
    capture.end()
    capture.wait(600)
    assert capture.recorded is not None
    assert capture.recorded.name is not None
    return time.perf_counter() - began, folder / capture.recorded.name


def one_by_one(header: bytes, acquisitions: list[ismrmrd.Acquisition], path: Path) -> float:
    """Seconds that ismrmrd takes."""
    began = time.perf_counter()
    with ismrmrd.Dataset(path) as dataset:
        dataset.write_xml_header(header)
        for acquisition in acquisitions:
            dataset.append_acquisition(acquisition)
    return time.perf_counter() - began


def through_front(
    header: bytes, acquisitions: list[ismrmrd.Acquisition], settings: dict[str, object]
) -> tuple[float, float]:
    """Seconds from the first byte to CLOSE, and processor seconds of the server's front process."""
    command = [sys.executable, "-c", ENTRY, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        scan = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8)
        send(scan.header, scan.acquisitions, port=port, config="zero_filled")  # answered once the worker is warm
        used, began = processor_seconds(process.pid), time.perf_counter()
        answer = send(header, acquisitions, port=port, config="null")
        seconds, used = time.perf_counter() - began, processor_seconds(process.pid) - used
        process.terminate()
    assert answer.closed
    assert not answer.texts, answer.texts
    return seconds, used


def processor_seconds(pid: int) -> float:
    """What a process has used, its children not included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    readouts = int(sys.argv[1]) if sys.argv[1:] else 4000
    header = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8).header
    noise = np.random.default_rng(0).standard_normal((COILS, 2 * SAMPLES), np.float32).view(np.complex64)
    acquisitions = [ismrmrd.Acquisition.from_array(noise.copy()) for _ in range(readouts)]
    times: dict[str, list[float]] = {}
    front: dict[str, list[float]] = {"front: no capture": [], "front: capture": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(ROUNDS):
            captured, path = through_capture(header, acquisitions, folder)
            with open_raw(path) as raw:
                assert raw.readouts == readouts
            times.setdefault("file: capture, process start included", []).append(captured)
            appended = one_by_one(header, acquisitions, folder / f"{number}.h5")
            times.setdefault("file: ismrmrd's append_acquisition", []).append(appended)
            for what, keeps in (("front: no capture", False), ("front: capture", True)):
                seconds, used = through_front(header, acquisitions, {"savedata": keeps, "savedata_folder": name})
                times.setdefault(what, []).append(seconds)
                front[what].append(used)
            for file in folder.iterdir():
                file.unlink()
    megabytes = readouts * noise.nbytes / 1e6
    print(f"{readouts} readouts of {COILS} coils x {SAMPLES} samples, worst and best of {ROUNDS}")
    print(f"{'':<40}{'readouts/s':>16}{'MB/s':>12}{'front: us/readout':>20}")
    for what, all_seconds in times.items():
        worst, best = max(all_seconds), min(all_seconds)
        speeds = f"{readouts / worst:.0f} .. {readouts / best:.0f}"
        bytes_ = f"{megabytes / worst:.0f} .. {megabytes / best:.0f}"
        used = [1e6 * one / readouts for one in front.get(what, ())]
        cost = f"{max(used):.0f} .. {min(used):.0f}" if used else ""
        print(f"{what:<40}{speeds:>16}{bytes_:>12}{cost:>20}")


if __name__ == "__main__":
    main()
