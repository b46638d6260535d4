"""Names of captures, and which are deleted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import h5py
import pytest

from inrecon_server.keeping import MARK, Keeping, Place, protocol_name, tidy, unfinished

NOW = time.localtime(1_700_000_000)
DAY_S = 86400


def capture(folder: Path, name: str, *, days_old: float = 0, kib: int = 64, ours: bool = True) -> Path:
    path = folder / name
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        if ours:
            group.attrs[MARK] = True
        group.create_dataset("data", data=bytearray(1024 * kib))
    then = time.time() - days_old * DAY_S
    os.utime(path, (then, then))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("element", "name"),
    [
        (b"<protocolName>t2_tse-FS 3</protocolName>", "t2_tse-FS_3"),
        (b"<ismrmrd:protocolName lang='de'>K\xc3\xb6rper</ismrmrd:protocolName>", "K_rper"),
        (b"<protocolName>K\xf6rper</protocolName>", "K_rper"),
        (b"<protocolName>../../etc/&lt;passwd&gt;</protocolName>", "etc_passwd"),
        (b"<protocolName>-rf</protocolName>", "rf"),
        (b"<protocolName>" + 500 * b"a" + b"</protocolName>", 64 * "a"),
        (b"<protocolName></protocolName>", None),
        (b"<protocolName> . </protocolName>", None),
        (b"<patientName>Doe</patientName>", None),
        (b"", None),
    ],
)
def test_a_name_is_made_of_letters_digits_and_lines(element: bytes, name: str | None) -> None:
    assert protocol_name(b"<ismrmrdHeader>" + element + b"</ismrmrdHeader>") == name


def test_sessions_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    first, second = Place.claim(tmp_path, NOW), Place.claim(tmp_path, NOW)
    stamp = time.strftime("%Y-%m-%d-%H%M%S", NOW)
    assert [place.part.name for place in (first, second)] == [f"MRD_input_{stamp}_{n}.h5.part" for n in (1, 2)]
    assert first.publish("brain") == f"brain_{stamp}_1.h5"
    assert second.publish(None) == f"MRD_input_{stamp}_2.h5"
    assert Place.claim(tmp_path, NOW).part.name == f"MRD_input_{stamp}_3.h5.part"
    assert unfinished(tmp_path) == 1


def test_captures_that_are_too_old_go(tmp_path: Path) -> None:
    capture(tmp_path, "brain_2026-01-01-120000_1.h5", days_old=8)
    capture(tmp_path, "MRD_input_2026-01-01-120000_2.h5", days_old=8)
    capture(tmp_path, "brain_2026-01-02-120000_1.h5", days_old=6)
    assert tidy(Keeping(folder=tmp_path, days=7), latest=None) == 2
    assert names(tmp_path) == ["brain_2026-01-02-120000_1.h5"]
    assert tidy(Keeping(folder=tmp_path), latest=None) == 0


def test_of_too_many_the_oldest_go(tmp_path: Path) -> None:
    for day in range(1, 6):
        capture(tmp_path, f"a_2026-01-0{day}-120000_1.h5", days_old=10 - day, kib=100)
    assert tidy(Keeping(folder=tmp_path, gib=250 / 2**20), latest=None) == 3
    assert names(tmp_path) == ["a_2026-01-04-120000_1.h5", "a_2026-01-05-120000_1.h5"]


def test_the_latest_stays_though_it_is_too_large_or_its_clock_is_wrong(tmp_path: Path) -> None:
    latest = capture(tmp_path, "a_2026-01-01-120000_1.h5", days_old=100, kib=1000)
    assert tidy(Keeping(folder=tmp_path, days=1, gib=1 / 2**20), latest=latest.name) == 0
    assert latest.exists()


def test_files_of_others_are_never_deleted_and_do_not_count(tmp_path: Path) -> None:
    capture(tmp_path, "brain_2026-01-01-120000_1.h5", days_old=100, ours=False, kib=500)  # as FIRE calls its own
    capture(tmp_path, "mine.h5", days_old=100, kib=500)
    capture(tmp_path, "brain_2026-01-01-120000_2.h5.part", days_old=100, kib=500)
    (tmp_path / "notes_2026-01-01-120000_1.h5").write_text("not HDF5")
    (tmp_path / "folder_2026-01-01-120000_1.h5").mkdir()
    elsewhere = capture(tmp_path, "elsewhere", days_old=100)
    (tmp_path / "link_2026-01-01-120000_1.h5").symlink_to(elsewhere)
    capture(tmp_path, "a_2026-01-03-120000_1.h5", kib=100)
    before = names(tmp_path)
    assert tidy(Keeping(folder=tmp_path, days=50, gib=300 / 2**20), latest=None) == 0
    assert names(tmp_path) == before
