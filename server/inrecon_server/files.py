"""ISMRMRD's HDF5 files: readouts in, images out; images as PNG; and outputs that appear whole or not at all."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype, image_header_dtype
from numpy.typing import NDArray
from PIL import Image as Picture

from inrecon.errors import InreconError
from inrecon.image import bright_end

# Few enough for little memory, many enough that the cost of a call to HDF5 is shared.
_READOUTS_AT_ONCE = 256

# What h5py raises for a damaged file, depending on where the damage is.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError)


class UnreadableFile(InreconError):
    """The file is missing, is not HDF5, or does not hold the raw data that ISMRMRD describes."""


class UnwritableFile(InreconError):
    """An output cannot be written there."""


class NoVideo(InreconError):
    """Images of which no video can be made."""


def words(error: OSError) -> str:
    """What is wrong, and with which file, in a line."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A raw file, open for reading: `header` is ISMRMRD XML as stored, `table` the acquisitions.

    Of a file that holds what a client sent to a server, `config` is the name or text of the configuration it asked for,
    and `parameters` are the texts, FIRE's JSON, that changed it; others have None and none.
    """

    path: Path
    header: bytes
    table: h5py.Dataset
    config: str | None = None
    parameters: tuple[str, ...] = ()

    @property
    def readouts(self) -> int:
        """Number of acquisitions."""
        return int(self.table.size)

    def acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """All acquisitions in the order in which they are stored, read in bulk; raises `UnreadableFile`."""
        # By name: files differ in how they lay out the fields of a readout.
        table = self.table.astype(acquisition_dtype)
        for start in range(0, self.readouts, _READOUTS_AT_ONCE):
            try:
                rows = table[start : start + _READOUTS_AT_ONCE]
            except _DAMAGE as error:
                raise UnreadableFile(f"{self.path}: the readouts from {start} on cannot be read: {error}") from error
            for number, row in enumerate(rows, start):
                yield self._acquisition(number, row)

    def _acquisition(self, number: int, row: np.void) -> ismrmrd.Acquisition:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(row["head"].tobytes())
        shape = head.active_channels, head.number_of_samples
        trajectory_shape = head.number_of_samples, head.trajectory_dimensions
        data, trajectory = row["data"], row["traj"]
        if data.size != 2 * np.prod(shape) or trajectory.size != np.prod(trajectory_shape):
            raise UnreadableFile(
                f"{self.path}: readout {number} holds {data.size // 2} samples and {trajectory.size} trajectory "
                f"values; its header says {shape[0]} x {shape[1]} and {trajectory_shape[0]} x {trajectory_shape[1]}"
            )
        samples = np.ascontiguousarray(data, np.float32).view(np.complex64)
        return ismrmrd.Acquisition(head, samples.reshape(shape), trajectory.reshape(trajectory_shape))


@contextmanager
def open_raw(path: Path, *, group: str = "dataset") -> Iterator[RawFile]:
    """Open an ISMRMRD raw file, read only, at HDF5 `group`; raises `UnreadableFile`."""
    if not path.is_file():
        raise UnreadableFile(f"there is no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UnreadableFile(f"{path} is not an HDF5 file that can be read: {error}") from error
    with file:
        try:
            raw = _raw_file(path, file, group)
        except _DAMAGE as error:
            raise UnreadableFile(f"{path} is damaged: {error}") from error
        yield raw


def _raw_file(path: Path, file: h5py.File, group: str) -> RawFile:
    found = file.get(group)
    table, header = (found.get("data"), found.get("xml")) if isinstance(found, h5py.Group) else (None, None)
    if not isinstance(table, h5py.Dataset) or not isinstance(header, h5py.Dataset):
        groups = ", ".join(name for name, item in file.items() if isinstance(item, h5py.Group)) or "none"
        missing = [name for name, found in (("xml", header), ("data", table)) if not isinstance(found, h5py.Dataset)]
        raise UnreadableFile(
            f"{path} has no ISMRMRD raw data (dataset {' and '.join(missing)}) in its group {group!r}; "
            f"its groups are: {groups}"
        )
    if table.ndim != 1 or not {"head", "traj", "data"} <= set(table.dtype.names or ()):
        raise UnreadableFile(f"{path}: {table.name} does not hold ISMRMRD acquisitions")
    texts = _texts(header)
    if len(texts) != 1:
        raise UnreadableFile(f"{path}: {header.name} does not hold one ISMRMRD XML header")
    config = (*_texts(found.get("config")), *_texts(found.get("config_file")))
    return RawFile(
        path=path,
        header=texts[0],
        table=table,
        config=config[0].decode(errors="replace") if config else None,
        parameters=tuple(text.decode(errors="replace") for text in _texts(found.get("configAdditional"))),
    )


def _texts(dataset: object) -> tuple[bytes, ...]:
    """The texts that an HDF5 dataset holds; none if there is no such dataset, or if it holds something else."""
    items = np.ravel(dataset[()]) if isinstance(dataset, h5py.Dataset) else ()
    if not all(isinstance(item, bytes | str) for item in items):
        return ()
    return tuple(item.encode() if isinstance(item, str) else bytes(item) for item in items)


@contextmanager
def replacing(path: Path, *, source: Path | None = None) -> Iterator[Path]:
    """A temporary file beside `path`, which becomes `path` at the end, or is removed if that is not reached.

    A link is followed. Raises `UnwritableFile` at once if `path` cannot be written, is no plain file, or is `source`,
    the file that is being read.
    """
    if path.is_dir():
        raise UnwritableFile(f"{path} is a folder, not a file")
    if path.exists() and not path.is_file():
        raise UnwritableFile(f"{path} is a device or a pipe; outputs are plain files")
    if source is not None and path.exists() and path.samefile(source):
        raise UnwritableFile(f"{path} is the input, which is not overwritten; choose another name")
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
    except OSError as error:
        raise UnwritableFile(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_images(path: Path, images: Iterable[ismrmrd.Image]) -> None:
    """Write `images` in ISMRMRD's HDF5 form: group ``images``, in it ``image_<series>`` with data, header, attributes.

    A series whose images differ in shape or type, which such a container cannot hold, goes on in
    ``image_<series>_2`` and so on. A file at `path` is replaced.
    """
    kinds: dict[int, list[object]] = defaultdict(list)
    containers: dict[str, list[ismrmrd.Image]] = defaultdict(list)
    for image in images:
        series = image.image_series_index
        kind = image.data.shape, image.data.dtype
        if kind not in kinds[series]:
            kinds[series].append(kind)
        place = kinds[series].index(kind) + 1
        containers[f"image_{series}" + (f"_{place}" if place > 1 else "")].append(image)
    with h5py.File(path, "w") as file:
        for name, members in containers.items():
            _write_container(file.create_group(f"images/{name}"), members)


def _write_container(group: h5py.Group, images: Sequence[ismrmrd.Image]) -> None:
    # Readers of such files take attributes for ASCII; XML can say everything in it.
    attributes = [image.attribute_string.encode("ascii", "xmlcharrefreplace") for image in images]
    headers = np.zeros(len(images), image_header_dtype)
    for index, (image, text) in enumerate(zip(images, attributes, strict=True)):
        head = image.getHead()
        head.attribute_string_len = len(text)
        headers[index] = np.frombuffer(head, image_header_dtype)[0]
    group.create_dataset("data", data=np.stack([image.data for image in images]))
    group.create_dataset("header", data=headers)
    group.create_dataset("attributes", data=attributes, dtype=h5py.special_dtype(vlen=bytes))


def write_pngs(folder: Path, images: Iterable[ismrmrd.Image]) -> None:
    """Write the magnitude of each image as 8-bit PNG ``image_<series>_<index>.png``, of a volume one each partition.

    The grey window is the image's own (WindowCenter and WindowWidth of its Meta), or else ends at the 99.9th
    percentile. `folder` must exist.
    """
    for image in images:
        name = f"image_{image.image_series_index}_{image.image_index:04d}"
        grey = _grey(image)
        for channel, z in np.ndindex(grey.shape[:2]):
            place = (f"_c{channel}" if grey.shape[0] > 1 else "") + (f"_z{z:03d}" if grey.shape[1] > 1 else "")
            Picture.fromarray(grey[channel, z]).save(folder / f"{name}{place}.png")


def _grey(image: ismrmrd.Image) -> NDArray[np.uint8]:
    """The magnitude ``(channels, z, y, x)`` in the image's window, 0 .. 255."""
    magnitude = np.abs(image.data.astype(np.complex64))
    try:
        center, width = float(image.meta["WindowCenter"]), float(image.meta["WindowWidth"])
    except (KeyError, TypeError, ValueError):
        bright = bright_end(magnitude)
        center, width = bright / 2, bright
    fraction = (magnitude - (center - width / 2)) / (width or 1.0)
    grey: NDArray[np.uint8] = np.rint(255 * np.clip(fraction, 0, 1)).astype(np.uint8)
    return grey
