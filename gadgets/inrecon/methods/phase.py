"""The smooth phase of an image: what a reconstruction may expect of the phase before it has begun."""

import torch

from inrecon.operators import displace_image
from inrecon.operators.cartesian import Offset


def smooth_phase(image: torch.Tensor, *, width: float, offset: Offset = (0.0, 0.0)) -> torch.Tensor:
    """exp(i phi) of `image` ``(..., rows, columns)`` at low resolution, at pixel centres moved by `offset` pixels.

    Low resolution is a Hann window over spatial frequencies of less than `width` cycles per field of view along each
    axis (Noll, Nishimura, Macovski, IEEE TMI 1991, take the phase of a partial-Fourier image from such a one). Where
    there is no signal the phase is arbitrary.
    """
    windows = [_hann(n, width, image.device) for n in image.shape[-2:]]
    spectrum = torch.fft.fft2(image) * windows[0][:, None] * windows[1]
    return torch.polar(torch.ones_like(image.real), displace_image(torch.fft.ifft2(spectrum), offset).angle())


def _hann(n: int, width: float, device: torch.device) -> torch.Tensor:
    cycles = (torch.fft.fftfreq(n, device=device) * n).abs()
    return torch.where(cycles < width, 0.5 + 0.5 * torch.cos(torch.pi * cycles / width), 0.0)
