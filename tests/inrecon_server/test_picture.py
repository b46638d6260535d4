"""Pictures: one row of images, one of errors where there is a truth; the pixels are looked at, not only the file."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from inrecon.errors import InvalidFrame
from inrecon_server.picture import intervention, side_by_side

ROWS, COLUMNS = np.mgrid[-20:20, -16:16]
SUPPORT = np.hypot(ROWS, COLUMNS) < 14
REFERENCE = np.where(SUPPORT, 1 + 0.4 * np.sin(ROWS / 2) * np.cos(COLUMNS / 3), 0) * np.exp(0.3j * ROWS)
NOISE = np.random.default_rng(0).standard_normal(REFERENCE.shape)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_with_a_reference_there_is_a_row_of_errors(tmp_path: Path) -> None:
    images = {"good": 7 * REFERENCE, "bad": REFERENCE + 0.3 * NOISE}
    side_by_side(tmp_path / "two.png", reference=REFERENCE, images=images, support=SUPPORT, title="two")
    side_by_side(tmp_path / "none.png", reference=None, images=images, support=None, title="none")
    with_errors, without = pixels(tmp_path / "two.png"), pixels(tmp_path / "none.png")
    assert with_errors.shape[0] > 1.6 * without.shape[0]
    assert with_errors.shape[1] == 1.5 * without.shape[1]
    coloured = (np.ptp(with_errors.astype(int), axis=2) > 20).sum(axis=0)
    third = with_errors.shape[1] // 3
    assert coloured[third : 2 * third].sum() == 0  # the error of a mere scale is black
    assert coloured[2 * third :].sum() > 1000
    assert (np.ptp(without.astype(int), axis=2) == 0).all()  # grey


def test_images_share_one_window_whatever_their_scale(tmp_path: Path) -> None:
    images = {"a": 1e-4 * REFERENCE, "b": 1e4 * REFERENCE}
    side_by_side(tmp_path / "p.png", reference=REFERENCE, images=images, support=SUPPORT, title="")
    picture = pixels(tmp_path / "p.png")
    width = picture.shape[1] // 3
    means = [picture[: picture.shape[0] // 3, i * width : (i + 1) * width].mean() for i in range(3)]
    assert means[0] > 10
    np.testing.assert_allclose(means, means[0], rtol=0.1)


def test_no_support_is_everywhere_and_the_suffix_does_not_matter(tmp_path: Path) -> None:
    side_by_side(tmp_path / "picture", reference=REFERENCE, images={"a": REFERENCE + NOISE}, support=None, title="t")
    everywhere = np.ones_like(SUPPORT)
    side_by_side(tmp_path / "same", reference=REFERENCE, images={"a": REFERENCE + NOISE}, support=everywhere, title="t")
    np.testing.assert_array_equal(pixels(tmp_path / "picture"), pixels(tmp_path / "same"))


def test_an_image_of_zeros_can_be_shown(tmp_path: Path) -> None:
    side_by_side(tmp_path / "p.png", reference=None, images={"nothing": np.zeros((8, 8))}, support=None, title="t")
    assert pixels(tmp_path / "p.png").size


@pytest.mark.parametrize(
    ("reference", "images"),
    [
        (None, {}),
        (REFERENCE, {}),
        (REFERENCE, {"a": REFERENCE[1:]}),
        (None, {"a": REFERENCE, "b": REFERENCE[1:]}),
        (None, {"a": REFERENCE[None]}),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, reference: NDArray[np.complex128] | None, images: dict[str, NDArray[np.complex128]]
) -> None:
    with pytest.raises(InvalidFrame, match="two-dimensional shape"):
        side_by_side(tmp_path / "p.png", reference=reference, images=images, support=None, title="t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moved", [True, False])
def test_an_intervention_shows_errors_in_grey_and_latencies(tmp_path: Path, moved: bool) -> None:
    changed = np.zeros_like(SUPPORT)
    changed[18:22, 14:18] = moved
    before = np.where(changed, 0, REFERENCE)
    intervention(
        tmp_path / "p.png",
        reference=REFERENCE,
        before=before,
        images={"before": before, "now": 3 * REFERENCE},
        support=SUPPORT,
        changed=changed,
        latency_s={"now": [0.1, 0.2, 0.2], "none": []},
        title="t",
    )
    picture = pixels(tmp_path / "p.png")
    height, width = picture.shape[0] // 2, picture.shape[1] // 3
    errors = picture[height + 60 :, width:].astype(int)
    coloured = np.ptp(errors, axis=2) > 20
    assert coloured.any() == moved  # the outline of the region, and nothing else
    assert (errors[:, :width].min(axis=2) > 200).any() == moved
    assert (errors[~coloured][:, 0] < 60).mean() > 0.9
    assert (np.ptp(picture[height:, :width].astype(int), axis=2) > 50).any()  # the histogram
