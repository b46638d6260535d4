"""Raw files in, image files out: nothing is lost or changed, and damage is told in words."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd.hdf5 import acquisition_header_dtype
from PIL import Image as Picture

from inrecon.simulate import SimulatedScan, simulate_scan, write_ismrmrd
from inrecon_server.files import UnreadableFile, UnwritableFile, open_raw, replacing, write_images, write_pngs


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    """More readouts than are read at once."""
    scan = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8, repetitions=30)
    assert len(scan.acquisitions) > 256
    return scan


@pytest.fixture
def raw(tmp_path: Path, scan: SimulatedScan) -> Path:
    path = tmp_path / "raw.h5"
    write_ismrmrd(path, scan)
    return path


def image(value: float, *, series: int = 1, index: int = 1, shape=(1, 1, 4, 6), dtype=np.float32, **meta: str):
    pixels = (value * np.arange(np.prod(shape))).reshape(shape).astype(dtype)
    made = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=series, image_index=index)
    made.meta = dict(meta)
    return made


def read_images(path: Path, container: str) -> list[ismrmrd.Image]:
    with ismrmrd.File(path, "r") as file:
        return list(file["images"][container].images)


def test_a_raw_file_gives_back_what_was_written_in_its_order(raw: Path, scan: SimulatedScan) -> None:
    before = raw.read_bytes()
    with open_raw(raw) as file:
        assert file.header == scan.header
        assert file.readouts == len(scan.acquisitions)
        assert list(file.acquisitions()) == list(scan.acquisitions)
    assert raw.read_bytes() == before


def test_a_configuration_is_found_however_its_writer_stored_the_text(raw: Path) -> None:
    with open_raw(raw) as file:
        assert (file.config, file.parameters) == (None, ())
    with h5py.File(raw, "r+") as file:
        file["dataset/config_file"] = np.array([b"cg_sense"], dtype="S16")
        file["dataset/configAdditional"] = "{}"
    with open_raw(raw) as file:
        assert (file.config, file.parameters) == ("cg_sense", ("{}",))
    with h5py.File(raw, "r+") as file:
        file["dataset/config"] = np.arange(3)
    with open_raw(raw) as file:
        assert file.config == "cg_sense"


def test_fields_are_found_by_name_however_the_file_lays_them_out(raw: Path, scan: SimulatedScan) -> None:
    fields = acquisition_header_dtype
    backwards = np.dtype([(name, fields[name]) for name in reversed(fields.names)])
    with h5py.File(raw, "r+") as file:
        rows = file["dataset/data"][:]
        floats = h5py.vlen_dtype(np.float32)
        table = np.empty(len(rows), [("data", floats), ("traj", floats), ("head", backwards)])
        table["data"], table["traj"] = rows["data"], rows["traj"]
        for name in fields.names:
            table["head"][name] = rows["head"][name]
        del file["dataset/data"]
        file.create_dataset("dataset/data", data=table)
    with open_raw(raw) as file:
        assert list(file.acquisitions()) == list(scan.acquisitions)


def test_another_group_can_be_named(raw: Path, scan: SimulatedScan) -> None:
    with h5py.File(raw, "r+") as file:
        file.move("dataset", "second/scan")
    with open_raw(raw, group="second/scan") as file:
        assert file.readouts == len(scan.acquisitions)
    with pytest.raises(UnreadableFile, match=r"'dataset'; its groups are: second"), open_raw(raw):
        pass


def test_a_file_that_is_missing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="there is no file"), open_raw(tmp_path / "raw.h5"):
        pass


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_hdf5_is_told_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "raw.h5").write_bytes(content)
    with pytest.raises(UnreadableFile, match="not an HDF5 file"), open_raw(tmp_path / "raw.h5"):
        pass


def test_a_file_of_images_is_not_raw_data(tmp_path: Path) -> None:
    write_images(tmp_path / "images.h5", [image(1)])
    with (
        pytest.raises(UnreadableFile, match="no ISMRMRD raw data"),
        open_raw(tmp_path / "images.h5", group="images/image_1"),
    ):
        pass


def test_a_readout_that_contradicts_its_header_is_refused_with_its_number(raw: Path) -> None:
    with h5py.File(raw, "r+") as file:
        row = file["dataset/data"][3]
        row["data"] = row["data"][:-2]
        file["dataset/data"][3] = row
    with open_raw(raw) as file, pytest.raises(UnreadableFile, match=r"readout 3 holds 63 samples.* says 2 x 32"):
        list(file.acquisitions())


def test_damage_anywhere_gives_the_readouts_or_one_kind_of_error(raw: Path) -> None:
    whole = raw.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
        at = rng.integers(0, min(len(damaged), 6000))
        damaged[at : at + 8] = rng.bytes(8)
        raw.write_bytes(damaged)
        try:
            with open_raw(raw) as file:
                list(file.acquisitions())
        except UnreadableFile:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.complex64])
def test_images_are_read_back_by_ismrmrd(tmp_path: Path, dtype: type) -> None:
    written = [image(index, index=index, dtype=dtype, inrecon_method="zero_filled") for index in (1, 2, 3)]
    write_images(tmp_path / "out.h5", written)
    found = read_images(tmp_path / "out.h5", "image_1")
    assert len(found) == len(written)
    for one, other in zip(found, written, strict=True):
        assert one.data.dtype == dtype
        assert np.array_equal(one.data, other.data)
        assert one.image_index == other.image_index
        assert one.meta == other.meta


def test_each_series_and_within_it_each_shape_has_a_container_of_its_own(tmp_path: Path) -> None:
    images = [image(1, series=1), image(2, series=2), image(3, series=1, shape=(1, 1, 2, 2)), image(4, series=1)]
    write_images(tmp_path / "out.h5", images)
    first, smaller, second = (read_images(tmp_path / "out.h5", name) for name in ("image_1", "image_1_2", "image_2"))
    assert [len(first), len(smaller), len(second)] == [2, 1, 1]
    assert np.array_equal(first[1].data, images[3].data)


def test_attributes_in_any_alphabet_survive(tmp_path: Path) -> None:
    write_images(tmp_path / "out.h5", [image(1, comment="Schädel 頭")])
    (found,) = read_images(tmp_path / "out.h5", "image_1")
    assert found.meta["comment"] == "Schädel 頭"


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")

    def stopped_half_way() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert target.read_text() == "old"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_output_that_cannot_be_is_refused_before_anything_is_done(tmp_path: Path, raw: Path) -> None:
    link = tmp_path / "link.h5"
    link.symlink_to(raw)
    for path, why in [(raw, "is the input"), (link, "is the input"), (tmp_path, "folder"), (raw / "x", "cannot be")]:
        with pytest.raises(UnwritableFile, match=why), replacing(path, source=raw):
            pytest.fail("went on")


def test_pngs_show_the_window_of_the_meta_or_the_image_itself(tmp_path: Path) -> None:
    own = image(1, index=1)
    windowed = image(1, index=2, WindowCenter="12", WindowWidth="24")
    black = image(0, index=3)
    volume = image(1j, index=4, shape=(1, 2, 4, 6), dtype=np.complex64)
    write_pngs(tmp_path, [own, windowed, black, volume])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*(f"image_1_000{n}.png" for n in (1, 2, 3)), "image_1_0004_z000.png", "image_1_0004_z001.png"]
    grey = {name: np.asarray(Picture.open(tmp_path / name)) for name in names}
    assert all(pixels.shape == (4, 6) and pixels.dtype == np.uint8 for pixels in grey.values())
    assert grey["image_1_0001.png"][-1, -1] == 255
    assert grey["image_1_0002.png"][2, 0] == round(255 * 12 / 24)
    assert not grey["image_1_0003.png"].any()
    assert grey["image_1_0004_z001.png"].min() > grey["image_1_0004_z000.png"].max()
