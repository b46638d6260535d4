"""Coil maps beyond the object that they were estimated from."""

from __future__ import annotations

import dataclasses
import math

import torch

from inrecon.frame import CoilMaps


def widened(maps: CoilMaps, margin: int) -> CoilMaps:
    """`maps` with a support wider by `margin` pixels, for what will move there.

    Coil sensitivities are smooth: a new pixel has the mean of the old ones near it, by a Gaussian of that width, with
    unit root-sum-of-squares. Of several sets of maps the first is widened.
    """
    first = maps.csm.view(-1, *maps.csm.shape[-3:])[0]
    known = maps.support.to(first.dtype)
    near = _blurred(first * known, margin)
    size = torch.linalg.vector_norm(near, dim=0)
    wide = torch.nn.functional.max_pool2d(maps.support[None].float(), 2 * margin + 1, stride=1, padding=margin)[0] > 0
    wide &= size > 1e-3 * size.max()
    new = wide & ~maps.support
    csm = maps.csm.clone()
    csm.view(-1, *first.shape)[0] = torch.where(new, near / size.clamp(min=1e-30), first)
    return dataclasses.replace(maps, csm=csm, support=maps.support | new)


def _blurred(images: torch.Tensor, width: int) -> torch.Tensor:
    """`images` ``(coils, rows, columns)``, convolved with a Gaussian of standard deviation `width`, zero beyond the
    edges."""
    reach = torch.arange(-3 * width, 3 * width + 1, device=images.device) / width
    kernel = torch.exp(-reach.square() / 2) / (width * math.sqrt(2 * math.pi))
    parts = torch.view_as_real(images).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        weights = kernel.view(shape)
        parts = torch.nn.functional.conv2d(parts, weights, padding="same")
    return torch.view_as_complex(parts[:, 0].unflatten(0, (-1, 2)).permute(0, 2, 3, 1).contiguous())
