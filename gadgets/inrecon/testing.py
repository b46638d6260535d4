"""Conformance suites: a new method, encoder or operator inherits one, names itself, and is tested.

    class TestMyMethod(MethodConformance):
        method = MyMethod()

The suites are pytest classes without importing pytest; they need nothing but torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from inrecon.deadline import time_limit
from inrecon.encoders import Encoder, EncoderSettings, encoders, pixel_centres
from inrecon.errors import InreconError
from inrecon.frame import CoilMaps, Frame, Protocol
from inrecon.hyperparams import write_entry
from inrecon.methods import Method, build, hold_out, methods, tunable_fields
from inrecon.methods.method import or_error
from inrecon.operators import CartesianSense, LinearOperator


def random_complex(*shape: int, seed: int) -> torch.Tensor:
    """Complex normal numbers, complex64."""
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def smooth_object(rows: int, columns: int) -> torch.Tensor:
    """An ellipse with structure and a smooth phase, ``(rows, columns)`` complex64, zero outside."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    inside = (x / 0.8).square() + (y / 0.9).square() < 1
    magnitude = 1 + 0.5 * torch.sin(7 * x + 3 * y) + 0.3 * torch.cos(11 * y * x)
    return torch.polar(magnitude * inside, 0.8 * x - 0.5 * y)


def smooth_maps(coils: int, rows: int, columns: int) -> CoilMaps:
    """Gaussian lobes around the object with smooth phases, unit root-sum-of-squares everywhere."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    angle = 2 * torch.pi * torch.arange(coils)[:, None, None] / coils
    distance = (x - torch.cos(angle)).square() + (y - torch.sin(angle)).square()
    csm = torch.polar(torch.exp(-distance), x * torch.cos(2 * angle) + y)
    csm = csm / csm.abs().square().sum(0, keepdim=True).sqrt()
    return CoilMaps(csm=csm, support=torch.ones(rows, columns, dtype=torch.bool), estimated_by="espirit")


def simulated_frame(
    rows: int = 32, columns: int = 24, *, coils: int = 4, noise: float = 1e-4, device: str = "cpu"
) -> tuple[Frame, torch.Tensor]:
    """A frame of `smooth_object`, every third line and eight centre lines, and its true image in the frame's scale."""
    return _measured(smooth_maps(coils, rows, columns), smooth_object(rows, columns), noise=noise, device=device)


def folded_frame(rows: int = 32, columns: int = 24) -> tuple[Frame, torch.Tensor]:
    """`simulated_frame` of an object half as high again as the field of view, with two sets of maps; the true images
    ``(2, rows, columns)``."""
    coils, height, above = 4, rows + 2 * (rows // 4), rows // 4
    maps, whole = smooth_maps(coils, height, columns), smooth_object(height, columns)
    inside, outside = slice(above, above + rows), torch.zeros(coils, rows, columns, dtype=torch.complex64)
    outside[:, rows - above :] = maps.csm[:, :above]
    outside[:, :above] = maps.csm[:, above + rows :]
    first = maps.csm[:, inside]
    second = outside - (first.conj() * outside).sum(0) * first
    second = second / torch.linalg.vector_norm(second, dim=0).clamp_min(1e-30)
    beyond = torch.cat([whole[above + rows :], torch.zeros(rows - 2 * above, columns), whole[:above]])
    coil_images = first * whole[inside] + outside * beyond
    csm = torch.stack([first, second])
    sets = dataclasses.replace(maps, csm=csm, support=torch.ones(rows, columns, dtype=torch.bool))
    return _measured(sets, (csm.conj() * coil_images).sum(1), noise=1e-4, device="cpu")


def _measured(maps: CoilMaps, image: torch.Tensor, *, noise: float, device: str) -> tuple[Frame, torch.Tensor]:
    """A frame of `image` seen through `maps`, and `image` in its scale."""
    rows, columns = maps.support.shape
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[::3] = True
    mask[rows // 2 - 4 : rows // 2 + 4] = True
    operator = CartesianSense(maps.csm, mask)
    kspace = operator.forward(image)
    scale = kspace.abs().max()
    truth = image / scale
    kspace = kspace / scale + noise * random_complex(*kspace.shape, seed=1) * operator.sampled
    maps = dataclasses.replace(maps, csm=maps.csm.to(device), support=maps.support.to(device))
    operator = CartesianSense(maps.csm, mask.to(device))
    frame = Frame(kspace=kspace.to(device), operator=operator, maps=maps, noise_level=noise)
    return frame, truth.to(device)


def scan_protocol(**changes: Any) -> Protocol:
    """What the header of a knee scan says, but for `changes`."""
    knee = Protocol(
        name="knee_T2",
        sequence="TSE",
        anatomy="KNEE",
        vendor="SIEMENS",
        field_strength_T=2.89,
        trajectory="cartesian",
        matrix=(256, 320),
        acceleration=4.2,
        coils=16,
    )
    return dataclasses.replace(knee, **changes)


def silent_protocol(*, matrix: tuple[int, int], coils: int, acceleration: float = 1.0) -> Protocol:
    """That of a scan whose header says nothing but what its readouts do."""
    unsaid = dict.fromkeys(("name", "sequence", "anatomy", "vendor", "field_strength_T"))
    return scan_protocol(**unsaid, matrix=matrix, coils=coils, acceleration=acceleration)


def write_quick_default(folder: Path, *, iterations: int, **values: float) -> None:
    """``default.yaml`` of a small network that is quick to fit, preset ``standard`` with so many `iterations`."""
    small = {"levels": 3, "log2_table_size": 8, "base_resolution": 4, "width": 8, "pixel_shift": 0}
    write_entry(
        folder / "default.yaml",
        match={},
        method="bilevel_inr",
        values={**small, **values},
        presets={"standard": {"iterations": iterations}},
        provenance={"from": "by hand", "source": "made for a test"},
    )


def relative_error(image: torch.Tensor, truth: torch.Tensor) -> float:
    """|image - truth| / |truth|."""
    return float(torch.linalg.vector_norm(image - truth) / torch.linalg.vector_norm(truth))


class OperatorConformance:
    """The laws of `LinearOperator`. Give `operator`."""

    operator: LinearOperator

    def _pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        image = random_complex(*self.operator.domain_shape, seed=1)
        kspace = random_complex(*self.operator.range_shape, seed=2) * self.operator.sampled
        return image, kspace

    def test_shapes(self) -> None:
        """forward, adjoint and gram go where they say."""
        image, kspace = self._pair()
        assert tuple(self.operator.forward(image).shape) == self.operator.range_shape
        assert tuple(self.operator.adjoint(kspace).shape) == self.operator.domain_shape
        assert tuple(self.operator.gram(image).shape) == self.operator.domain_shape

    def test_linearity(self) -> None:
        """A (a x + y) == a A x + A y."""
        image, _ = self._pair()
        other = random_complex(*self.operator.domain_shape, seed=3)
        combined = self.operator.forward((2 - 1j) * image + other)
        separate = (2 - 1j) * self.operator.forward(image) + self.operator.forward(other)
        torch.testing.assert_close(combined, separate, rtol=1e-4, atol=1e-4)

    def test_adjointness(self) -> None:
        """<A x, y> == <x, A^H y>."""
        image, kspace = self._pair()
        left = torch.vdot(self.operator.forward(image).flatten(), kspace.flatten())
        right = torch.vdot(image.flatten(), self.operator.adjoint(kspace).flatten())
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)

    def test_gram_is_adjoint_of_forward(self) -> None:
        """gram == adjoint(forward)."""
        image, _ = self._pair()
        expected = self.operator.adjoint(self.operator.forward(image))
        torch.testing.assert_close(self.operator.gram(image), expected, rtol=1e-4, atol=1e-4)

    def test_nothing_where_not_sampled(self) -> None:
        """forward is zero where nothing was acquired."""
        image, _ = self._pair()
        unsampled = ~self.operator.sampled.expand(self.operator.range_shape)
        assert not self.operator.forward(image)[unsampled].any()


class EncoderConformance:
    """The laws of encoders. Give `encoder`, its registered name, and perhaps `settings`."""

    encoder: str
    settings = EncoderSettings(levels=4, base_resolution=4, log2_table_size=10)

    def _make(self, shape: tuple[int, ...] = (9, 8), seed: int = 0) -> Encoder:
        return self._of_members(shape, seeds=[seed])

    def _of_members(self, shape: tuple[int, ...], *, seeds: list[int]) -> Encoder:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return encoders[self.encoder]([pixel_centres(shape, "cpu")], self.settings, generators=generators)

    def test_shape_in_two_and_three_dimensions(self) -> None:
        """One row of features a point, finite."""
        for shape in ((9, 8), (5, 4, 3)):
            encoder = self._make(shape)
            features = encoder()
            assert features.shape == (1, torch.Size(shape).numel(), encoder.features)
            assert torch.isfinite(features).all()

    def test_same_seed_same_features(self) -> None:
        """The generator decides, not the global state."""
        first = self._make(seed=3)()
        torch.rand(5)
        assert torch.equal(first, self._make(seed=3)())

    def test_members_are_encoders_of_their_own(self) -> None:
        """Two in one give what each gives alone."""
        both = self._of_members((9, 8), seeds=[3, 4])()
        torch.testing.assert_close(both, torch.cat([self._make(seed=3)(), self._make(seed=4)()]))

    def test_gradients_are_those_of_finite_differences(self) -> None:
        """d <f, c> / d parameter along a random direction."""
        encoder = self._make()
        parameters = list(encoder.parameters())
        cotangent = torch.randn(encoder().shape, generator=torch.Generator().manual_seed(1))
        for parameter in parameters:
            (encoder() * cotangent).sum().backward()
            direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            assert parameter.grad is not None
            predicted = (parameter.grad * direction).sum()
            before = (encoder() * cotangent).sum()
            with torch.no_grad():
                parameter.add_(direction)
            torch.testing.assert_close((encoder() * cotangent).sum() - before, predicted, rtol=1e-3, atol=1e-3)


class MethodConformance:
    """What every method promises. Give `method`, an instance quick enough for a frame of 32 x 24 x 4."""

    method: Method

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return next(name for name in methods.names() if methods[name] is type(self.method))

    def test_gives_a_finite_image_of_the_right_shape(self) -> None:
        """(rows, columns), complex64, finite."""
        frame, _ = simulated_frame()
        result = self.method.fit(frame)
        assert tuple(result.image.shape) == frame.operator.domain_shape
        assert result.image.dtype == torch.complex64
        assert torch.isfinite(torch.view_as_real(result.image)).all()
        assert result.iterations >= 1
        assert result.stopped_by

    def test_same_frame_same_bits(self) -> None:
        """Deterministic for a seed on the CPU."""
        frame, _ = simulated_frame()
        assert torch.equal(self.method.fit(frame).image, self.method.fit(frame).image)

    def test_does_not_touch_the_frame(self) -> None:
        """The frame is as it was."""
        frame, _ = simulated_frame()
        before = frame.kspace.clone()
        self.method.fit(frame)
        assert torch.equal(frame.kspace, before)

    def test_the_image_is_that_of_the_object(self) -> None:
        """Error below 0.45 of the truth's norm, intensity included: as much as a short fit may leave."""
        frame, truth = simulated_frame()
        assert relative_error(self.method.fit(frame).image, truth) < 0.45

    def test_two_sets_of_maps_have_an_image_each(self) -> None:
        """Where the field of view folds: (sets, rows, columns), that of the object as above."""
        frame, truth = folded_frame()
        image = self.method.fit(frame).image
        assert tuple(image.shape) == frame.operator.domain_shape == (2, 32, 24)
        assert torch.isfinite(torch.view_as_real(image)).all()
        assert relative_error(image, truth) < 0.6

    def test_is_judged_by_the_samples_held_out(self) -> None:
        """`judged` gives a finite trial and its loss, or neither; also where lines are held out as a whole."""
        for columns in (24, 9):
            frame = hold_out(simulated_frame(64, columns)[0], 0.3, seed=0)
            assert frame.held_out is not None
            result = or_error(self.method.judged, frame)
            if isinstance(result, InreconError):  # as `fit` may
                continue
            if result.trial is None:
                assert result.validation_loss is None
                continue
            assert torch.isfinite(torch.view_as_real(result.trial)).all()
            assert result.validation_loss == frame.loss(result.trial)

    def test_without_time_there_is_an_image_all_the_same(self) -> None:
        """Finite, of no more iterations than a fit that has time; it may be CG-SENSE that looks better."""
        frame = hold_out(simulated_frame()[0], 0.2, seed=0)
        with time_limit(-1):
            hurried = or_error(self.method.fit, frame)
        if isinstance(hurried, InreconError):  # as `fit` may
            return
        assert torch.isfinite(torch.view_as_real(hurried.image)).all()
        assert hurried.iterations <= self.method.fit(frame).iterations

    def test_builds_from_its_own_values(self) -> None:
        """Every field can be written to a file and read back."""
        values = dataclasses.asdict(self.method)
        assert build(self.name, values) == self.method
        assert build(self.name, {k: str(v) for k, v in values.items() if not isinstance(v, bool)}) == self.method

    def test_tunable_ranges_hold_their_defaults(self) -> None:
        """low <= default <= high, and a logarithmic range is positive."""
        default = type(self.method)()
        for name, span in tunable_fields(type(self.method)).items():
            assert span.low <= getattr(default, name) <= span.high
            assert not span.log or span.low > 0
