"""The image room: sizes, values, geometry and attributes of what is sent."""

from __future__ import annotations

import pickle
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.events import Event, listening
from inrecon.frame import Complex, Dtype, Geometry, Key, RawFrame, Readouts, Series
from inrecon.image import to_image, to_recon_space
from inrecon.meta import MetaValue, plain_text
from inrecon.testing import silent_protocol

OBLIQUE = {
    "position": (12.5, -40.25, 7.125),
    "read_dir": (0.8, 0.6, 0.0),
    "phase_dir": (-0.48, 0.64, 0.6),
    "slice_dir": (0.36, -0.48, 0.8),
    "patient_table_position": (0.0, 0.0, -1234.5),
}


def geometry_of(
    encoded: tuple[int, int, int],
    recon: tuple[int, int, int],
    *,
    encoded_mm: tuple[float, float, float] | None = None,
    recon_mm: tuple[float, float, float] | None = None,
) -> Geometry:
    """Sizes as (x, y, z); a pixel of the encoded matrix is 1 mm and nothing is cropped unless said otherwise."""
    encoded_mm = encoded_mm or (float(encoded[0]), float(encoded[1]), float(encoded[2]))
    return Geometry(
        encoded_matrix=encoded, encoded_fov_mm=encoded_mm, recon_matrix=recon, recon_fov_mm=recon_mm or encoded_mm
    )


def reference_header() -> ismrmrd.AcquisitionHeader:
    header = ismrmrd.AcquisitionHeader()
    header.version = 1
    header.measurement_uid = 4711
    header.acquisition_time_stamp = 123456
    header.physiology_time_stamp = (1, 2, 3)
    header.user_int = tuple(range(8))
    header.user_float = tuple(0.5 * i for i in range(8))
    for name, value in OBLIQUE.items():
        setattr(header, name, value)
    for number, name in enumerate(("average", "slice", "contrast", "phase", "repetition", "set"), start=1):
        setattr(header.idx, name, number)
    return header


def raw_frame(geometry: Geometry) -> RawFrame:
    x = geometry.encoded_matrix[0]
    readouts = Readouts(
        kspace=np.zeros((1, 1, x), np.complex64), lines=np.zeros((1, 2), np.int64), acquired=np.ones((1, x), np.bool_)
    )
    protocol = silent_protocol(matrix=(geometry.encoded_matrix[1], x), coils=1)
    return RawFrame(
        imaging=readouts,
        calibration=None,
        noise=None,
        sample_time_us=5.0,
        key=Key(slice=2),
        geometry=geometry,
        protocol=protocol,
        reference=bytes(reference_header()),
    )


PLAIN = geometry_of((32, 24, 1), (32, 24, 1))


def noise_volume(shape: tuple[int, ...] = (1, 24, 32), *, seed: int = 0) -> Complex:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def make(
    volume: Complex,
    *,
    geometry: Geometry = PLAIN,
    dtype: Dtype = "uint16",
    series: Series | None = None,
    meta: Mapping[str, MetaValue] | None = None,
    clips: bool = False,
) -> tuple[ismrmrd.Image, Series]:
    raw, series = raw_frame(geometry), series or Series()
    return to_image(volume, raw=raw, dtype=dtype, series=series, meta=meta or {}, clips=clips)


def centred_fft_zero_filled(row: NDArray[np.complex128], size: int) -> NDArray[np.complex128]:
    """The textbook way to resample: FFT, pad or cut about ``n // 2``, FFT back, intensities kept."""
    spectrum = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(row)))
    resized = np.zeros(size, np.complex128)
    shared = min(size, len(row))
    source, target = len(row) // 2 - shared // 2, size // 2 - shared // 2
    resized[target : target + shared] = spectrum[source : source + shared]
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(resized))) * size / len(row)


sizes = st.integers(min_value=1, max_value=40)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(length=sizes, size=sizes, stretch=st.floats(min_value=0.3, max_value=1.0), seed=st.integers(0, 99))
def test_a_band_limited_object_keeps_its_values_at_every_point(
    length: int, size: int, stretch: float, seed: int
) -> None:
    # An object of frequencies that both grids hold, as a function of the place in mm about the centre.
    recon_mm = length * stretch
    highest = int((min(length, size / stretch) - 1 + 1e-9) // 2)
    frequencies = np.arange(-highest, highest + 1)
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(len(frequencies)) + 1j * rng.standard_normal(len(frequencies))

    def value(mm: NDArray[np.float64]) -> NDArray[np.complex128]:
        return np.exp(2j * np.pi * np.outer(mm, frequencies) / length) @ weights

    geometry = geometry_of((1, length, 1), (1, size, 1), recon_mm=(1.0, recon_mm, 1.0))
    volume = value(np.arange(length, dtype=float) - length // 2).astype(np.complex64)[np.newaxis, :, np.newaxis]
    expected = value((np.arange(size, dtype=float) - size // 2) * recon_mm / size)
    result = to_recon_space(volume, geometry)[0, :, 0]
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(weights).sum())


@pytest.mark.parametrize("length", [15, 16])
@pytest.mark.parametrize("size", [7, 8, 15, 16, 21, 24])
def test_one_field_of_view_at_two_matrix_sizes_is_the_fft_zero_filled(length: int, size: int) -> None:
    row = noise_volume((length,), seed=length).astype(np.complex128)
    geometry = geometry_of((length, 1, 1), (size, 1, 1))
    result = to_recon_space(row.astype(np.complex64).reshape(1, 1, -1), geometry)
    expected = centred_fft_zero_filled(row, size)
    np.testing.assert_allclose(result[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize(("length", "kept"), [(16, 8), (16, 9), (15, 7), (15, 8)])
def test_cropping_by_whole_pixels_keeps_them(length: int, kept: int) -> None:
    volume = noise_volume((1, length, 3))
    geometry = geometry_of((3, length, 1), (3, kept, 1), recon_mm=(3.0, float(kept), 1.0))
    first = length // 2 - kept // 2
    np.testing.assert_allclose(to_recon_space(volume, geometry), volume[:, first : first + kept], atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    encoded=st.tuples(sizes, sizes, sizes),
    recon=st.tuples(sizes, sizes, sizes),
    cropped=st.tuples(*[st.floats(min_value=0.3, max_value=1.0)] * 3),
)
def test_ones_stay_ones_on_any_field_of_view_inside(
    encoded: tuple[int, int, int], recon: tuple[int, int, int], cropped: tuple[float, float, float]
) -> None:
    x, y, z = encoded
    recon_mm = (x * cropped[0], y * cropped[1], z * cropped[2])
    result = to_recon_space(np.ones((z, y, x), np.complex64), geometry_of(encoded, recon, recon_mm=recon_mm))
    assert result.shape == (recon[2], recon[1], recon[0])
    assert result.dtype == np.complex64
    np.testing.assert_allclose(result, 1, atol=1e-5)


def test_a_larger_field_of_view_is_filled_with_zeros() -> None:
    result = to_recon_space(
        np.ones((1, 8, 8), np.complex64), geometry_of((8, 8, 1), (12, 16, 1), recon_mm=(12.0, 16.0, 1.0))
    )
    expected = np.zeros((1, 16, 12))
    expected[:, 4:12, 2:10] = 1
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_volume_that_fits_passes_bit_by_bit() -> None:
    geometry = geometry_of((64, 24, 1), (32, 24, 1), recon_mm=(32.0, 24.0, 1.0))
    volume = noise_volume()
    np.testing.assert_array_equal(to_recon_space(volume, geometry), volume)


def test_readout_oversampling_that_is_left_is_cropped() -> None:
    geometry = geometry_of((64, 24, 1), (32, 24, 1), recon_mm=(32.0, 24.0, 1.0))
    volume = noise_volume((1, 24, 64))
    np.testing.assert_allclose(to_recon_space(volume, geometry), volume[..., 16:48], atol=1e-5)


def test_slice_thickness_does_not_touch_a_2d_image() -> None:
    geometry = geometry_of((32, 24, 1), (32, 24, 1), encoded_mm=(32.0, 24.0, 6.0), recon_mm=(32.0, 24.0, 5.0))
    np.testing.assert_array_equal(to_recon_space(noise_volume(), geometry), noise_volume())


@pytest.mark.parametrize(
    ("dtype", "image_type", "pixel"),
    [
        ("complex", ismrmrd.IMTYPE_COMPLEX, np.complex64),
        ("float", ismrmrd.IMTYPE_MAGNITUDE, np.float32),
        ("uint16", ismrmrd.IMTYPE_MAGNITUDE, np.uint16),
    ],
)
def test_kind_size_and_field_of_view(dtype: Dtype, image_type: int, pixel: type) -> None:
    geometry = geometry_of((32, 24, 6), (20, 18, 5), recon_mm=(30.0, 20.0, 5.5))
    image, _ = make(noise_volume((6, 24, 32)), geometry=geometry, dtype=dtype)
    assert image.data.shape == (1, 5, 18, 20)
    assert image.data.dtype == pixel
    head = image.getHead()
    assert (head.image_type, head.channels) == (image_type, 1)
    assert tuple(head.matrix_size) == (20, 18, 5)
    assert tuple(head.field_of_view) == (30.0, 20.0, 5.5)


def test_geometry_counters_and_stamps_are_the_reference_readouts() -> None:
    head, reference = make(noise_volume())[0].getHead(), reference_header()
    fields = (*OBLIQUE, "measurement_uid", "acquisition_time_stamp", "physiology_time_stamp", "user_int", "user_float")
    for name in fields:
        got, wanted = getattr(head, name), getattr(reference, name)
        assert np.array_equal(np.asarray(got), np.asarray(wanted)), name
    counters = (head.average, head.slice, head.contrast, head.phase, head.repetition, head.set)
    assert counters == (1, 2, 3, 4, 5, 6)
    assert head.version == 1


def test_complex_keeps_phase_and_float_is_its_magnitude() -> None:
    volume = noise_volume()
    complex_image, _ = make(volume, dtype="complex")
    float_image, series = make(volume, dtype="float")
    np.testing.assert_array_equal(complex_image.data[0], volume)
    np.testing.assert_allclose(float_image.data[0], np.abs(volume), rtol=1e-6)
    assert series.scale is None


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_the_first_integer_image_fixes_the_scale(unit: float) -> None:
    volume = noise_volume((1, 24, 32)) * np.float32(unit)
    image, series = make(volume)
    assert np.percentile(image.data, 99.9) == pytest.approx(2048, abs=1)
    assert series.scale is not None
    np.testing.assert_allclose(image.data[0], np.abs(volume) * series.scale, atol=0.51)
    assert float(image.meta["GADGETRON_ScaleRatio"]) == series.scale


def test_later_images_share_the_scale() -> None:
    first, series = make(noise_volume())
    second, after = make(noise_volume() / np.float32(2), series=series)
    assert after.scale == series.scale
    np.testing.assert_allclose(second.data, first.data / 2, atol=0.76)


def test_an_empty_first_image_leaves_the_scale_to_the_next() -> None:
    image, series = make(np.zeros((1, 24, 32), np.complex64))
    assert not image.data.any()
    assert series.scale is None
    assert "GADGETRON_ScaleRatio" not in image.meta
    assert make(noise_volume(), series=series)[1].scale is not None


def test_one_bright_pixel_is_signal_enough() -> None:
    volume = np.zeros((1, 48, 64), np.complex64)
    volume[0, 7, 9] = 3j
    image, _ = make(volume, geometry=geometry_of((64, 48, 1), (64, 48, 1)))
    assert image.data.max() == 2048


@pytest.mark.parametrize(("bright_pixels", "clipped"), [(2, True), (5, False)])
def test_a_few_pixels_are_clipped_and_more_begin_a_new_series(bright_pixels: int, clipped: bool) -> None:
    geometry = geometry_of((64, 48, 1), (64, 48, 1))  # 3072 pixels
    volume = np.full((1, 48, 64), 0.5, np.complex64)
    volume[0, 0, :bright_pixels] = 10
    heard: list[Event] = []
    with listening(heard.append):
        image, series = make(volume, geometry=geometry, series=Series(images=7, scale=2000.0))
    assert np.count_nonzero(image.data == 4095) == (bright_pixels if clipped else 0)
    assert (image.image_series_index, image.image_index) == ((1, 8) if clipped else (101, 1))
    assert (series.scale == 2000.0) is clipped
    assert len(heard) == (0 if clipped else 1)


def test_an_image_that_must_not_change_how_others_look_is_clipped() -> None:
    image, series = make(noise_volume(), series=Series(images=7, scale=1e9), clips=True)
    assert (image.image_series_index, series.scale) == (1, 1e9)
    assert image.data.max() == 4095
    assert make(noise_volume(), clips=True)[1].scale == make(noise_volume())[1].scale


def test_images_count_from_one_in_their_series() -> None:
    series = Series(index=3)
    for index in (1, 2, 3):
        image, series = make(noise_volume(), series=series)
        assert (image.image_index, image.image_series_index) == (index, 3)
        assert image.meta["GADGETRON_ImageNumber"] == str(index)
    assert series.images == 3


def test_a_stream_outlasts_the_index() -> None:
    image, series = make(noise_volume(), series=Series(images=65535))
    assert image.image_index == 1
    assert series.images == 65536


@pytest.mark.parametrize("dtype", ["complex", "float", "uint16"])
def test_round_trip_and_pickle(dtype: Dtype) -> None:
    image, _ = make(noise_volume(), dtype=dtype, meta={"seconds": 1.5, "losses": [0.5, 0.25], "note": "ä\x00 <&>"})
    assert ismrmrd.Image.from_bytes(image.to_bytes()) == image
    assert pickle.loads(pickle.dumps(image)) == image


def test_attributes_of_a_scanner_and_of_gadgetron() -> None:
    image, series = make(noise_volume())
    meta = ismrmrd.Meta.deserialize(image.attribute_string)
    assert meta["DataRole"] == meta["GADGETRON_DataRole"] == "Image"
    assert meta["Keep_image_geometry"] == "1"
    for name in ("ImageComments", "ImageProcessingHistory", "SequenceDescriptionAdditional"):
        assert meta[name]
    assert meta["GADGETRON_ImageComment"] == meta["ImageComments"]
    assert meta["GADGETRON_ImageProcessingHistory"] == meta["ImageProcessingHistory"]
    assert meta["GADGETRON_SeqDescription"] == meta["SequenceDescriptionAdditional"]
    assert "SeriesDescriptionAdditional" in meta
    assert float(meta["WindowCenter"]) == float(meta["GADGETRON_WindowCenter"]) == 1024
    assert float(meta["WindowWidth"]) == float(meta["GADGETRON_WindowWidth"]) == 2048
    assert float(meta["GADGETRON_ScaleRatio"]) == series.scale
    for name, direction in (("ImageRowDir", "read_dir"), ("ImageColumnDir", "phase_dir")):
        assert [len(text.split(".")[1]) for text in meta[name]] == [18] * 3
        assert tuple(map(float, meta[name])) == pytest.approx(OBLIQUE[direction], abs=1e-7)


def test_a_float_image_has_a_window_in_its_own_units_and_a_complex_one_none() -> None:
    meta = make(noise_volume() * np.float32(1e-6), dtype="float")[0].meta
    bright = np.percentile(np.abs(noise_volume()) * 1e-6, 99.9)
    assert float(meta["WindowWidth"]) == pytest.approx(bright, rel=1e-4)
    assert float(meta["WindowCenter"]) == pytest.approx(bright / 2, rel=1e-4)
    assert "GADGETRON_ScaleRatio" not in meta
    assert "WindowCenter" not in make(noise_volume(), dtype="complex")[0].meta


def test_the_caller_adds_and_rewords_but_cannot_contradict_the_image() -> None:
    meta = {
        "ImageComments": "fall-back: cg-sense",
        "ImageProcessingHistory": ["inrecon", "cg-sense"],
        "seconds": 2.25,
        "iterations": 300,
        "GADGETRON_ScaleRatio": 1.0,
        "WindowCenter": "3",
    }
    image, series = make(noise_volume(), meta=meta)
    assert image.meta["ImageComments"] == image.meta["GADGETRON_ImageComment"] == "fall-back: cg-sense"
    assert image.meta["GADGETRON_ImageProcessingHistory"] == ["inrecon", "cg-sense"]
    assert (image.meta["seconds"], image.meta["iterations"]) == ("2.25", "300")
    assert float(image.meta["GADGETRON_ScaleRatio"]) == series.scale
    assert image.meta["WindowCenter"] == "1024"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=st.text(min_size=1), text=st.text(), texts=st.lists(st.text()))
def test_any_text_is_valid_xml_in_ascii_that_reads_back(name: str, text: str, texts: list[str]) -> None:
    image, _ = make(noise_volume(), meta={"k" + name: text, "several": texts})
    attributes = image.attribute_string
    assert attributes.isascii()
    ET.fromstring(attributes)
    parsed = ismrmrd.Meta.deserialize(attributes)
    assert parsed.get("k" + plain_text(name)) == (plain_text(text) or None)
    assert parsed.serialize() == attributes


def test_plain_text_leaves_plain_text_and_names_other_alphabets_by_number() -> None:
    assert plain_text("T2* TSE, 3 mm <&>\n\t") == "T2* TSE, 3 mm <&>\n\t"
    assert plain_text("Schädel\x00\x1b") == "Sch&#228;del??"


def test_a_received_image_can_be_stored_with_ismrmrd_file(tmp_path: Path) -> None:
    image, _ = make(noise_volume(), meta={"hyperparameters": "Schädel µ 头\x07.yaml"})
    received = ismrmrd.Image.from_bytes(image.to_bytes())
    with ismrmrd.File(tmp_path / "out.h5") as file:
        file["dataset"].images = [received]
    with ismrmrd.File(tmp_path / "out.h5") as file:
        assert file["dataset"].images[0] == received


@pytest.mark.parametrize(
    "volume",
    [
        np.zeros((24, 32), np.complex64),
        np.zeros((1, 23, 32), np.complex64),
        np.zeros((2, 24, 32), np.complex64),
        np.zeros((1, 24, 33), np.complex64),
        np.zeros((1, 24, 0), np.complex64),
        np.zeros((1, 24, 32), np.complex128),
        np.full((1, 24, 32), np.nan, np.complex64),
        np.full((1, 24, 32), np.inf, np.complex64),
    ],
)
def test_what_is_no_image_of_this_frame_is_refused(volume: NDArray[np.complexfloating]) -> None:
    with pytest.raises(InvalidFrame, match=r"image"):
        make(volume)
