"""Meta attributes of an image: the names that scanners and Gadgetron read, as text that every peer can parse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import ismrmrd

MetaValue = str | float | Sequence[str | float]

# Gadgetron reads the same facts under names of its own (mri_core_def.h).
_TWINS = {
    "DataRole": "GADGETRON_DataRole",
    "ImageComments": "GADGETRON_ImageComment",
    "ImageProcessingHistory": "GADGETRON_ImageProcessingHistory",
    "SequenceDescriptionAdditional": "GADGETRON_SeqDescription",
    "WindowCenter": "GADGETRON_WindowCenter",
    "WindowWidth": "GADGETRON_WindowWidth",
}
_DESCRIPTION: Mapping[str, MetaValue] = {
    "DataRole": "Image",
    "ImageProcessingHistory": ["inrecon"],
    "ImageComments": "inrecon",
    "SeriesDescriptionAdditional": "inrecon",
    "SequenceDescriptionAdditional": "inrecon",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def describe(
    header: ismrmrd.ImageHeader,
    meta: Mapping[str, MetaValue],
    *,
    scale: float | None,
    window: tuple[float, float] | None,
) -> ismrmrd.Meta:
    """The attributes of the image with `header`.

    `meta` adds to the description and may reword it (comments, history, series), but not what follows from the
    image itself: directions, image number, `scale` (grey values per unit of signal) and `window` (centre, width,
    in grey values); None leaves the last two out.
    """
    facts: dict[str, MetaValue] = {
        "Keep_image_geometry": 1,
        "ImageRowDir": [f"{component:.18f}" for component in header.read_dir],
        "ImageColumnDir": [f"{component:.18f}" for component in header.phase_dir],
        "GADGETRON_ImageNumber": header.image_index,
    }
    if window is not None:
        facts |= {"WindowCenter": f"{window[0]:.6g}", "WindowWidth": f"{window[1]:.6g}"}
    if scale is not None:
        facts["GADGETRON_ScaleRatio"] = scale
    everything = {**_DESCRIPTION, **meta, **facts}
    everything |= {twin: everything[name] for name, twin in _TWINS.items() if name in everything}
    attributes = ismrmrd.Meta()
    for name, value in everything.items():
        texts = _texts(value)
        if texts:
            attributes[plain_text(name)] = texts if len(texts) > 1 else texts[0]
    return attributes


def plain_text(text: str) -> str:
    """`text` without what XML cannot hold, other alphabets as character references such as ``&#228;``.

    ASCII throughout, because a peer that stores images with ismrmrd.File encodes the parsed attributes as ASCII and
    loses the image where they are not. Control characters become ``?``.
    """
    return _CONTROL.sub("?", text).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _texts(value: MetaValue) -> list[str]:
    """`value` as its texts. Empty ones are left out: ismrmrd reads them back as None and sends that on as "None"."""
    items = [value] if isinstance(value, str | int | float) else value
    return [text for text in (plain_text(str(item)) for item in items) if text]
