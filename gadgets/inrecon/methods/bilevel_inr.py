"""The bilevel INR (Yu, Fessler, Jiang, IEEE TMI 2026): a network fitted to one scan, its hyperparameters as fields."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Literal

import torch

from inrecon.deadline import DEADLINE, shared, time_left, time_limit
from inrecon.encoders import EncoderSettings
from inrecon.errors import FitDiverged, InreconError
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.closing import closed, weights_around
from inrecon.methods.held_out import Best
from inrecon.methods.lower_level import LowerLevel
from inrecon.methods.method import Method, announced, bounded, divergence, methods, synchronise, tunable
from inrecon.methods.network import Activation, NetworkSettings, check_encoder
from inrecon.operators.cartesian import Offset

# Networks times pixels that are fitted at once: memory grows with it, by about 2 kB each.
LARGEST_BATCH = 2**20


@methods.register("bilevel_inr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BilevelINR(Method):
    """x = MLP(encoder(r)), fitted by Adam to min sum |W (A x - y)|^2 with l2 decays, Eqs. (4)-(9).

    k-space is scaled to a largest magnitude of 1 and the loss is the mean over all positions of all coils,
    unsampled ones counted as zero: the decays are relative to that. `weight` is W: from the prediction itself
    ("self", detached), from the acquired data, or none; in the form "squares", |r|^2 / (|A x|^2 + delta), as in the
    authors' published configuration, or "magnitude", |r|^2 / (|A x| + delta)^2, as Eq. (9) is printed.
    `weight_offset` is delta in units of `offset_unit`: "power", the mean of |y|^2 over the acquired samples, or "peak",
    its maximum, as the paper has it ("magnitude" takes the square roots of these).

    Beyond the paper: the image is averaged exponentially over the iterations (`image_averaging`, 0 for the last
    iterate). In each iteration a random `sample_dropout` of the samples is left out of the loss. With `pixel_shift` >
    0 the iterations take turns at pixel centres moved by that part of a pixel, one way and the other along the
    diagonal: the image is one continuous function and must fit at both. With `phase_width` > 0 the network's two
    outputs are the parts of the image in and out of phase with a low-resolution image (`smooth_phase`): what the phase
    of a smooth field explains costs the network nothing. The encoder has no level beyond the first of `finest_level`
    vertices of a grid a pixel. `members` networks of different seeds are fitted at once and their images averaged.
    `closing_weight` > 0 ends with min |A x - y|^2 + weight |x - x_INR|^2, the weight chosen by held-out samples from up
    to `closing_doublings` times smaller to as many times larger (`methods.closing`). Where samples are held out, the
    last `released` part of the iterations sees them as well, after they have judged the fit. With `patience` > 0 the
    judged part ends after that many checks without improvement, its best image being the trial; where nothing judges,
    it has no effect.

    Where the noise is known, with q its variance over the mean of |y|^2, the encoder's decay is multiplied by
    1 + (noise_decay q)^2: one setting for scans of all noise levels. Slices that are fitted together have the decay of
    a typical one, and stop together.
    """

    learning_rate: float = tunable(9.3e-3, low=1e-5, high=5e-2, log=True, symbol="tau")
    weight_decay_encoder: float = tunable(2.6e-4, low=1e-7, high=1e-2, log=True, symbol="lambda_Enc")
    weight_decay_mlp: float = tunable(1e-7, low=1e-10, high=1e-4, log=True, symbol="lambda_MLP")
    weight_offset: float = tunable(0.8, low=1e-6, high=1e2, log=True, symbol="delta")
    per_level_scale: float = tunable(1.5, low=1.2, high=2.0, symbol="b")
    offset_unit: Literal["power", "peak"] = "power"
    weight: Literal["self", "acquired", "none"] = "self"
    weight_form: Literal["squares", "magnitude"] = "squares"
    encoder: str = "hash_grid"
    levels: int = bounded(16, low=1, high=32)
    finest_level: float = bounded(2.5, low=0.25, high=1e4)
    log2_table_size: int = bounded(18, low=8, high=24)
    base_resolution: int = bounded(16, low=2, high=512)
    interpolation: Literal["linear", "smoothstep"] = "linear"
    hidden_layers: int = bounded(2, low=0, high=16)
    width: int = bounded(64, low=1, high=1024)
    activation: Activation = "relu"
    iterations: int = bounded(600, low=1, high=100_000)
    members: int = bounded(1, low=1, high=64)
    image_averaging: float = bounded(0.93, low=0.0, high=0.9999)
    pixel_shift: float = bounded(0.25, low=0.0, high=0.5)
    sample_dropout: float = bounded(0.4, low=0.0, high=0.9)
    phase_width: float = bounded(16.0, low=0.0, high=1e4)
    released: float = bounded(0.25, low=0.0, high=0.9)
    patience: int = bounded(0, low=0, high=1000)
    closing_weight: float = bounded(0.12, low=0.0, high=100.0)
    closing_doublings: int = bounded(6, low=0, high=16)
    noise_decay: float = bounded(100.0, low=0.0, high=1e6)
    seed: int = bounded(0, low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check_encoder("bilevel_inr", self.encoder)

    def fit(self, frame: Frame) -> Reconstruction:
        """Fit `frame`; raises `FitDiverged` when loss or image are not finite, or the fit ends worse than it began."""
        (result,) = self.fit_slices([frame])
        if isinstance(result, InreconError):
            raise result
        return result

    def fit_slices(self, frames: Sequence[Frame]) -> list[Reconstruction | InreconError]:
        """As many slices at once as memory allows, their networks side by side; else like `fit`.

        Slices with two sets of coil maps are batches of their own, so that they change nothing in the others.
        """
        batches: list[list[int]] = []
        results: dict[int, Reconstruction | InreconError] = {}
        for sets in sorted({frame.maps.sets for frame in frames}):
            alike = [number for number, frame in enumerate(frames) if frame.maps.sets == sets]
            size = max(1, LARGEST_BATCH // (self.members * sets * frames[0].maps.support.numel()))
            batches += [alike[first : first + size] for first in range(0, len(alike), size)]
        for batch in shared(batches):
            results |= zip(batch, self._fit_batch([frames[number] for number in batch]), strict=True)
        return [results[number] for number in range(len(frames))]

    def _fit_batch(self, frames: Sequence[Frame]) -> list[Reconstruction | InreconError]:
        started = time.perf_counter()
        members = [dataclasses.replace(self, seed=self.seed + member) for member in range(self.members)]
        fit = LowerLevel(members, frames)
        # The closing step solves as many linear problems as the beginning did, and takes about as long.
        synchronise(frames[0].kspace.device)
        closing_s = time.perf_counter() - started
        try:
            with time_limit(time_left() - closing_s):
                with time_limit(time_left() * (1 - self.released)):
                    trials, stopped_by = self._judged_part(fit, frames)
                done = len(fit.history)
                whole = self.iterations if stopped_by == "iterations" else round(done / (1 - self.released))
                images = self._released_part(fit, trials, iterations=whole - done)
            if len(fit.history) < whole:
                stopped_by = DEADLINE
        except FitDiverged as error:
            return [error] * len(frames)
        backend = f"{self.encoder} by {fit.network.encoder.backend}"
        return [
            self._closed(frame, prior, trial, losses, stopped_by=stopped_by, backend=backend, started=started)
            for frame, prior, trial, losses in zip(frames, images, trials, fit.losses(), strict=True)
        ]

    def _judged_part(self, fit: LowerLevel, frames: Sequence[Frame]) -> tuple[list[torch.Tensor | None], str]:
        """Iterate without the held-out samples: each slice's image, its best one with `patience`; why it stopped."""
        if all(frame.held_out is None for frame in frames):
            return [None] * len(frames), "iterations"
        best, stopped_by = [Best() for _ in frames], "iterations"
        for _ in fit.iterate(max(1, round(self.iterations * (1 - self.released)))):
            if not self.patience:
                continue
            judged = zip(best, frames, fit.images().mean(1), strict=True)
            if min(b.update(frame.loss(x), x) for b, frame, x in judged) >= self.patience:
                stopped_by = "held-out samples"
                break
        if time_left() <= 0:
            stopped_by = DEADLINE
        last = zip(best, fit.images().mean(1), strict=True)
        return [image if b.image is None else b.image for b, image in last], stopped_by

    def _released_part(
        self, fit: LowerLevel, trials: Sequence[torch.Tensor | None], *, iterations: int
    ) -> Sequence[torch.Tensor]:
        """Iterate on all samples: each slice's image, which is its trial if no iteration sees them all."""
        fit.release()
        for _ in fit.iterate(iterations):
            pass
        images = fit.images().mean(1)
        kept = self.released == 0
        return [trial if kept and trial is not None else image for trial, image in zip(trials, images, strict=True)]

    def _closed(
        self,
        frame: Frame,
        prior: torch.Tensor,
        tried: torch.Tensor | None,
        losses: list[float],
        *,
        stopped_by: str,
        backend: str,
        started: float,
    ) -> Reconstruction | InreconError:
        """The reconstruction from a network's images: of all samples, and of those not held out."""
        for image in (prior, tried):
            if image is not None and (error := divergence("bilevel_inr", image, losses)) is not None:
                return error
        image, trial = prior, tried
        if self.closing_weight > 0:
            image, trial = closed(
                frame, prior, tried, weights=weights_around(self.closing_weight, self.closing_doublings)
            )
        result = Reconstruction(
            image=image,
            iterations=len(losses),
            stopped_by=stopped_by,
            losses=tuple(losses),
            trial=trial,
            validation_loss=None if trial is None else frame.loss(trial),
            backend=backend,
        )
        return announced(result, method="bilevel_inr", started=started)

    def offsets(self) -> list[Offset]:
        """The displacements of the pixel centres that the fit visits, in pixels."""
        d = self.pixel_shift
        return [(d, d), (-d, -d)] if d > 0 else [(0.0, 0.0)]

    def network_settings(self, shape: tuple[int, ...]) -> NetworkSettings:
        """The fields that shape the network of an image of `shape`."""
        growth = math.log(self.finest_level * max(shape) / self.base_resolution, self.per_level_scale)
        return NetworkSettings(
            encoder=self.encoder,
            encoder_settings=EncoderSettings(
                levels=min(self.levels, 1 + max(0, math.ceil(growth))),
                log2_table_size=self.log2_table_size,
                base_resolution=self.base_resolution,
                per_level_scale=self.per_level_scale,
                interpolation=self.interpolation,
            ),
            hidden_layers=self.hidden_layers,
            width=self.width,
            activation=self.activation,
        )
