"""Tissue that has moved: a smooth field of displacements that takes a prior image to the present one."""

from __future__ import annotations

import math

import torch

from inrecon.operators import ColumnSense

STEPS = 3
"""Gauss-Newton steps a frame; the field goes on from that of the frame before."""
REACH_PIXELS = 4.0
"""Standard deviation of a displacement, and of the difference between neighbouring control points, before any data."""
BEND_PIXELS = 0.7
FAR_PIXELS = 0.5
"""How far a step moves a control point before the slopes of the image count as others."""
COLUMNS = 48
"""How many columns at least tell the curvature."""
LARGEST_TURN = 10
"""In degrees, either way, of a patient who has moved."""


class Displacement:
    """x(r) = prior(r + u(r)), u a free-form deformation of `points` control points a side (Rueckert et al., IEEE Trans
    Med Imaging 18:712-721, 1999), fitted to k-space by Gauss-Newton steps.

    `prior` ``(rows, columns)`` or ``(sets, rows, columns)`` complex64, interpolated by cubic convolution on a grid of
    twice its resolution.
    """

    def __init__(self, prior: torch.Tensor, points: int) -> None:
        *_, rows, columns = prior.shape
        self._shape = prior.shape
        self._points = points
        fine = _upsampled(prior.reshape(-1, rows, columns))
        slopes = [(fine.roll(-1, axis) - fine.roll(1, axis)) for axis in (-2, -1)]  # per pixel of the coarse grid
        stack = torch.stack([fine, *slopes])
        self._fine = torch.view_as_real(stack).permute(0, 1, 4, 2, 3).reshape(1, -1, *fine.shape[-2:]).contiguous()
        self._basis = _cubic(rows, points, prior.device), _cubic(columns, points, prior.device)
        steps = [torch.arange(n, device=prior.device, dtype=torch.float32) for n in (rows, columns)]
        self._grid = torch.stack(torch.meshgrid(*steps, indexing="ij"))
        self._precision = self._prior_precision(prior.device)
        self.control = torch.zeros(2, points, points, device=prior.device)

    def image(self) -> torch.Tensor:
        """The prior, displaced."""
        return self._sampled()[0].view(self._shape)

    def follow(self, operator: ColumnSense, kspace: torch.Tensor, *, grams: torch.Tensor, noise: float) -> None:
        """Fit the field to `kspace`, of noise with that standard deviation a sample; `grams` are the operator's.

        What the field leaves unexplained counts as noise, too, so that what appears does not bend what is there.
        """
        samples = max(int(operator.sampled.sum()), 1) * len(kspace)
        curvature: torch.Tensor | None = None
        for _ in range(STEPS):
            values, *both = self._sampled()
            slopes = torch.stack(both)
            residual = operator.forward(values.view(self._shape)) - kspace
            variance = noise**2 + residual.abs().square().sum() / samples
            if curvature is None:  # the dearest by far, and nearly the same as long as steps are small
                curvature = self._curvature(operator, slopes, grams)
            pull = (slopes.conj() * operator.adjoint(residual).view_as(values)).real.sum(1)
            down, across = self._basis
            misfit = torch.einsum("yi,ayx,xj->aij", down, pull, across).flatten() / variance
            slope = misfit + self._precision @ self.control.flatten()
            step = torch.linalg.solve(curvature / variance + self._precision, slope)
            self.control = self.control - step.view_as(self.control)
            if float(step.abs().max()) > FAR_PIXELS:
                curvature = None

    def realign(self, image: torch.Tensor) -> None:
        """Begin with the rigid motion that takes the prior's magnitude nearest to that of `image`, to a pixel and a
        degree: the correlation for each angle by one Fourier transform."""
        *_, rows, columns = self._shape
        goal = torch.fft.fft2(_magnitude(image.view(-1, rows, columns)))
        best = 0.0
        for degrees in range(-LARGEST_TURN, LARGEST_TURN + 1):
            self.control = self._rigid(math.radians(degrees), shift=(0.0, 0.0))
            turned = _magnitude(self._sampled()[0])
            correlation = torch.fft.ifft2(goal * torch.fft.fft2(turned).conj()).real
            found = float(correlation.max() / torch.linalg.vector_norm(turned).clamp(min=1e-30))
            if found > best:
                best, angle = found, math.radians(degrees)
                down, across = divmod(int(correlation.argmax()), columns)
                shift = ((down + rows // 2) % rows - rows // 2, (across + columns // 2) % columns - columns // 2)
        self.control = self._rigid(angle, shift=shift) if best > 0 else torch.zeros_like(self.control)

    def _rigid(self, angle: float, *, shift: tuple[float, float]) -> torch.Tensor:
        """Control points of the field that turns the prior by `angle` and moves it by `shift` pixels: a field that is
        linear in place has its own values for them."""
        *_, rows, columns = self._shape
        places = [
            (torch.arange(self._points, device=self.control.device) - 1.0) * ((n - 1) / max(self._points - 3, 1))
            for n in (rows, columns)
        ]
        y, x = torch.meshgrid(*places, indexing="ij")
        down, across = y - shift[0] - rows // 2, x - shift[1] - columns // 2
        cosine, sine = math.cos(angle), math.sin(angle)
        turned = cosine * down - sine * across, sine * down + cosine * across
        return torch.stack([turned[0] + rows // 2 - y, turned[1] + columns // 2 - x])

    @property
    def largest(self) -> float:
        """The largest displacement in pixels."""
        return float(torch.linalg.vector_norm(self._field(), dim=0).max())

    def _field(self) -> torch.Tensor:
        """u, ``(2, rows, columns)`` in pixels, rows first."""
        down, across = self._basis
        return torch.einsum("yi,aij,xj->ayx", down, self.control, across)

    def _sampled(self) -> torch.Tensor:
        """The prior and its slopes along rows and columns at the displaced places, ``(3, sets, rows, columns)``."""
        *_, rows, columns = self._shape
        place = self._grid + self._field()
        size = self._grid.new_tensor([rows, columns])[:, None, None]
        where = (2 * place + 0.5) / size - 1  # the fine grid's pixel 2 i lies at the coarse grid's i
        found = torch.nn.functional.grid_sample(
            self._fine, where.flip(0).permute(1, 2, 0)[None], mode="bicubic", padding_mode="border", align_corners=False
        )
        return torch.view_as_complex(found[0].view(3, -1, 2, rows, columns).permute(0, 1, 3, 4, 2).contiguous())

    def _curvature(self, operator: ColumnSense, slopes: torch.Tensor, grams: torch.Tensor) -> torch.Tensor:
        """Real part of J^H A^H A J, J the change of the image with the control points; by some of the columns, which
        are enough for steps whose goal the exact gradient sets."""
        rows, columns = operator.box
        apart = max((columns.stop - columns.start) // COLUMNS, 1)
        some = slice(columns.start, columns.stop, apart)
        down, across = self._basis[0][rows], self._basis[1][some]
        weights = torch.einsum("yi,xj->xijy", down, across).flatten(1, 2)
        parts = slopes[..., rows, some].permute(3, 0, 1, 2)
        jacobian = (weights[:, None, :, None] * parts[:, :, None]).flatten(3).flatten(1, 2)
        projected = jacobian @ grams[::apart].mT
        one, other = (torch.view_as_real(part).transpose(0, 1).flatten(1) for part in (jacobian, projected))
        return apart * (one @ other.T)

    def _prior_precision(self, device: torch.device) -> torch.Tensor:
        """Inverse covariance of the control points of both axes."""
        n = self._points
        rough = torch.diff(torch.eye(n, device=device), dim=0)
        along = rough.T @ rough
        eye = torch.eye(n, device=device)
        bending = torch.kron(along, eye) + torch.kron(eye, along)
        one = torch.eye(n * n, device=device) / REACH_PIXELS**2 + bending / BEND_PIXELS**2
        return torch.block_diag(one, one)


def _magnitude(images: torch.Tensor) -> torch.Tensor:
    """Root sum of squares ``(rows, columns)`` of all sets."""
    return torch.linalg.vector_norm(images, dim=0)


def _upsampled(images: torch.Tensor) -> torch.Tensor:
    """``(..., rows, columns)`` on a grid of twice the resolution whose even pixels they are."""
    for axis in (-2, -1):
        n = images.shape[axis]
        spectrum = torch.fft.fftshift(torch.fft.fft(images, dim=axis), dim=axis)
        padding = [0, 0, 0, 0]
        padding[2 * (-1 - axis) : 2 * (-1 - axis) + 2] = [n - n // 2, n - (n - n // 2)]
        wide = torch.nn.functional.pad(spectrum, padding)
        images = 2 * torch.fft.ifft(torch.fft.ifftshift(wide, dim=axis), dim=axis)
    return images


def _cubic(size: int, points: int, device: torch.device) -> torch.Tensor:
    """Weights ``(size, points)`` of uniform cubic B-splines, control points from edge to edge and one step beyond."""
    spacing = (size - 1) / max(points - 3, 1)
    place = torch.arange(size, device=device, dtype=torch.float32) / spacing + 1
    distance = (place[:, None] - torch.arange(points, device=device)).abs()
    near = 2 / 3 - distance.square() + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)
