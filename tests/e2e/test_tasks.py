"""Calls beside the process: the same laws in processes of this machine and on a Ray cluster; many files at a time."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from inrecon.simulate import simulate_scan, write_ismrmrd
from inrecon.stream import choose_device
from inrecon_server.cli import main
from inrecon_server.tasks import ClusterUnavailable, Ended, Processes, RayTasks, Tasks, tasks_on


@pytest.fixture(params=["processes", "ray"])
def tasks(request: pytest.FixtureRequest) -> Iterator[Tasks]:
    if request.param == "processes":
        made: Tasks = Processes(2)
    else:
        made = RayTasks(request.getfixturevalue("ray_cluster"), size=None, gpu=False)
    with made:
        yield made


def all_ended(tasks: Tasks) -> dict[int, Ended]:
    found: dict[int, Ended] = {}
    while tasks.running:
        found |= {ended.number: ended for ended in tasks.ended(timeout_s=60)}
    return found


def test_every_call_is_told_once_with_its_answer_or_its_problem(tasks: Tasks) -> None:
    assert tasks.size == 2
    numbers = [tasks.start(math.factorial, 5), tasks.start(choose_device, "tpu"), tasks.start(os._exit, 3)]
    answered, refused, died = map(all_ended(tasks).__getitem__, numbers)
    assert answered == Ended(number=numbers[0], answer=120)
    assert refused.problem == "unknown device 'tpu': known are auto, cpu, cuda"
    assert died.problem
    assert died.answer is None
    assert tasks.ended(timeout_s=0) == []


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_end_of_the_context_ends_what_runs(tasks: Tasks, tmp_path: Path) -> None:
    (mark := tmp_path / "begun").touch()
    tasks.start(subprocess.call, ["sh", "-c", f"echo $PPID > {mark}; exec sleep 3600"])
    while not (text := mark.read_text()).endswith("\n"):
        pass
    assert alive(int(text))
    tasks.close()
    while alive(int(text)):
        pass


def test_what_the_disk_refuses_is_told(tasks: Tasks, tmp_path: Path) -> None:
    tasks.start(os.listdir, str(tmp_path / "nowhere"))
    (ended,) = all_ended(tasks).values()
    assert ended.problem == f"No such file or directory: {tmp_path / 'nowhere'}"


def test_a_cluster_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterUnavailable, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):
        tasks_on("127.0.0.1:1", size=None, device="cpu")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ClusterUnavailable, match=r"pip install 'inrecon\[ray\]'"):
        tasks_on("auto", size=None, device="cpu")


@pytest.fixture
def raws(tmp_path: Path) -> list[str]:
    """Three raw files."""
    paths = [tmp_path / f"raw{seed}.h5" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_ismrmrd(path, simulate_scan(shape=(32, 28), coils=3, acceleration=2, acs=10, seed=seed))
    return list(map(str, paths))


def replay(*arguments: object) -> int:
    return main(["replay", *map(str, arguments), "--method", "cg_sense", "--device", "cpu"])


def pixels(path: Path) -> np.ndarray:
    with ismrmrd.File(path, "r") as file:
        return file["images"]["image_1"].images[0].data


@pytest.mark.parametrize("where", ["processes", "ray"])
def test_many_files_at_a_time_are_what_each_is_alone(
    where: str, raws: list[str], tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = ["--jobs", 2] if where == "processes" else ["--ray", request.getfixturevalue("ray_cluster")]
    folders = ["-o", tmp_path / "out", "--report", tmp_path / "reports", "--png", tmp_path / "pictures"]
    assert replay(*raws, *folders, *beside) == 0
    told = capsys.readouterr().out
    for raw in raws:
        name = Path(raw).stem
        assert f"{raw}: 1 images in" in told
        assert replay(raw, "-o", tmp_path / "alone.h5") == 0
        # Sums of other numbers of threads differ in the last bits.
        found, alone = (pixels(path).astype(int) for path in (tmp_path / "out" / f"{name}.h5", tmp_path / "alone.h5"))
        assert np.abs(found - alone).max() <= 1
        assert (tmp_path / "reports" / f"{name}.json").exists()
        assert (tmp_path / "pictures" / name / "image_1_0001.png").exists()


def test_a_file_that_fails_stops_no_other(raws: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw1.h5").write_text("no HDF5")
    assert replay(*raws, "-o", tmp_path / "out") == 1
    err = capsys.readouterr().err.splitlines()
    assert "raw1.h5 is not an HDF5 file" in err[0]
    assert "1 of 3 files failed" in err[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"raw0.h5", "raw2.h5"}


def test_files_whose_images_would_have_one_name_are_refused(
    raws: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(raws[0], raws[0], "-o", tmp_path / "out") == 2
    assert "several raw files are called raw0" in capsys.readouterr().err
    assert replay(*raws, "-o", raws[0]) == 2
    assert "raw0.h5" in capsys.readouterr().err


def test_one_file_goes_into_a_folder_that_is_named_as_one(raws: list[str], tmp_path: Path) -> None:
    assert replay(raws[0], "-o", f"{tmp_path}/new/") == 0
    assert replay(raws[1], "-o", tmp_path / "new") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"raw0.h5", "raw1.h5"}
