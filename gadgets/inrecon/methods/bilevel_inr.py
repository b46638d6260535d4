"""The lower level of the bilevel INR (Yu, Fessler, Jiang, IEEE TMI 2026): one network fitted to one scan."""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

import torch

from inrecon.encoders import EncoderSettings, encoders
from inrecon.errors import FitDiverged
from inrecon.events import FitFinished, FitProgressed, observe
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.linear import data_consistent
from inrecon.methods.method import InvalidHyperparameter, Method, bounded, methods, tunable
from inrecon.methods.network import Grid, ImageNetwork, build_network
from inrecon.operators import CartesianSense, displace_image
from inrecon.operators.cartesian import Offset

# One offset for all validation losses: losses of different weight offsets could not be compared (the authors use 1e-4).
VALIDATION_OFFSET = 1e-4
CHECK_EVERY = 25


@methods.register("bilevel_inr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BilevelINR(Method):
    """x = MLP(encoder(r)), fitted by Adam to min sum |W (A x - y)|^2 with l2 decays, Eqs. (4)-(9).

    k-space is scaled to a largest magnitude of 1 and the loss is the mean over all positions of all coils,
    unsampled ones counted as zero: the decays are relative to that. `weight` is W: from the prediction itself
    ("self", detached), from the acquired data, or none; in the form "squares", |r|^2 / (|A x|^2 + weight_offset),
    as in the authors' published configuration, or "magnitude", |r|^2 / (|A x| + weight_offset)^2, as Eq. (9) is
    printed. The image is averaged exponentially over the iterations (`image_averaging`, 0 for the last iterate). In
    each iteration a random `sample_dropout` of the samples is left out of the loss. With `pixel_shift` > 0 each
    iteration moves the pixel centres by that part of a pixel, one way or the other along the diagonal: the image is
    one continuous function and must fit at both offsets (four diagonals are no better, on two real brains). A
    fraction `held_out` of the acquired samples, drawn point by point, is left out of the fit and measures it; with
    `patience` > 0 the fit stops after that many checks without improvement and gives the best image it had.
    `closing_weight` > 0 ends with min |A x - y|^2 + closing_weight |x - x_INR|^2.
    """

    learning_rate: float = tunable(9.3e-3, low=1e-5, high=5e-2, log=True, symbol="tau")
    weight_decay_encoder: float = tunable(2.6e-4, low=1e-7, high=1e-2, log=True, symbol="lambda_Enc")
    weight_decay_mlp: float = tunable(1e-7, low=1e-10, high=1e-4, log=True, symbol="lambda_MLP")
    weight_offset: float = tunable(2e-4, low=1e-6, high=1e-1, log=True, symbol="delta")
    per_level_scale: float = tunable(1.5, low=1.2, high=2.0, symbol="b")
    weight: Literal["self", "acquired", "none"] = "self"
    weight_form: Literal["squares", "magnitude"] = "squares"
    encoder: str = "hash_grid"
    levels: int = bounded(16, low=1, high=32)
    log2_table_size: int = bounded(18, low=8, high=24)
    base_resolution: int = bounded(16, low=2, high=512)
    interpolation: Literal["linear", "smoothstep"] = "linear"
    hidden_layers: int = bounded(2, low=0, high=16)
    width: int = bounded(64, low=1, high=1024)
    iterations: int = bounded(600, low=1, high=100_000)
    image_averaging: float = bounded(0.93, low=0.0, high=0.9999)
    pixel_shift: float = bounded(0.25, low=0.0, high=0.5)
    sample_dropout: float = bounded(0.25, low=0.0, high=0.9)
    held_out: float = bounded(0.02, low=0.0, high=0.5)
    patience: int = bounded(0, low=0, high=1000)
    closing_weight: float = bounded(0.1, low=0.0, high=100.0)
    seed: int = bounded(0, low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        if self.patience > 0 and self.held_out == 0:
            raise InvalidHyperparameter("bilevel_inr.patience needs samples to judge by: held_out must be above 0")
        if self.encoder not in encoders.names():
            raise InvalidHyperparameter(
                f"bilevel_inr.encoder must be one of {', '.join(encoders.names())}, not {self.encoder!r}"
            )

    def fit(self, frame: Frame) -> Reconstruction:
        """Fit `frame`; raises `FitDiverged` when loss or image are not finite, or the fit ends worse than it began."""
        started = time.perf_counter()
        fit = _Fit(self, frame)
        image, losses, validation, stopped_by = fit.run()
        if not torch.isfinite(torch.view_as_real(image)).all() or losses[-1] > losses[0]:
            raise FitDiverged(f"bilevel_inr diverged: training loss {losses[0]:.3g} at first, {losses[-1]:.3g} at last")
        if self.closing_weight > 0:
            image = data_consistent(frame, prior=image, weight=self.closing_weight, iterations=15)
        seconds = time.perf_counter() - started
        observe(
            FitFinished(
                method="bilevel_inr",
                iterations=len(losses),
                stopped_by=stopped_by,
                seconds=seconds,
                validation_loss=validation,
            )
        )
        return Reconstruction(
            image=image,
            iterations=len(losses),
            stopped_by=stopped_by,
            losses=tuple(losses),
            validation_loss=validation,
            backend=f"{self.encoder} by {fit.network.encoder.backend}",
        )

    def offsets(self) -> list[Offset]:
        """The displacements of the pixel centres that the fit visits, in pixels."""
        d = self.pixel_shift
        return [(d, d), (-d, -d)] if d > 0 else [(0.0, 0.0)]

    def encoder_settings(self) -> EncoderSettings:
        """The fields that shape the encoder."""
        return EncoderSettings(
            levels=self.levels,
            log2_table_size=self.log2_table_size,
            base_resolution=self.base_resolution,
            per_level_scale=self.per_level_scale,
            interpolation=self.interpolation,
        )


@dataclasses.dataclass
class _View:
    """The problem on pixel centres moved by `offset` (rows, columns; pixels), and the average of its images so far."""

    offset: Offset
    operator: CartesianSense
    kspace: torch.Tensor
    average: torch.Tensor | None = None
    count: int = 0


class _Fit:
    """One run of the lower level: network, optimiser, what is held out, what is averaged."""

    def __init__(self, method: BilevelINR, frame: Frame) -> None:
        self.method = method
        self.frame = frame
        self.views = [
            _View(offset=d, operator=frame.operator.displaced(d), kspace=frame.operator.displace(frame.kspace, d))
            for d in method.offsets()
        ]
        generator = torch.Generator().manual_seed(method.seed)
        region = _dilated(frame.maps.support)
        self.network: ImageNetwork = build_network(
            [Grid(region=region, offset=view.offset) for view in self.views],
            encoder=method.encoder,
            settings=method.encoder_settings(),
            hidden_layers=method.hidden_layers,
            width=method.width,
            generator=generator,
        )
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.network.encoder.parameters()), "weight_decay": method.weight_decay_encoder},
                {"params": list(self.network.mlp.parameters()), "weight_decay": method.weight_decay_mlp},
            ],
            lr=method.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=True,
        )
        self.validation = held_out_samples(frame, method.held_out, seed=method.seed)
        self.training = (frame.operator.sampled & ~self.validation).float()
        self.choice = torch.Generator().manual_seed(method.seed)
        self.dropout = torch.Generator(frame.kspace.device).manual_seed(method.seed)

    def run(self) -> tuple[torch.Tensor, list[float], float | None, str]:
        """Iterate; returns image, training losses, validation loss and the reason of the stop."""
        method, losses = self.method, list[torch.Tensor]()
        best = _Best()
        stopped_by = "iterations"
        for iteration in range(1, method.iterations + 1):
            # Every view once before chance decides, so that each has an image.
            unseen = iteration <= len(self.views)
            which = iteration - 1 if unseen else int(torch.randint(len(self.views), (), generator=self.choice))
            losses.append(self._step(which))
            if iteration % CHECK_EVERY and iteration != method.iterations:
                continue
            observe(FitProgressed(iteration=iteration, iterations=method.iterations))
            if not torch.isfinite(losses[-1]):
                raise FitDiverged(f"bilevel_inr diverged: its loss is not finite after {iteration} iterations")
            if method.patience:
                image = self._image()
                if best.update(self._validation_loss(image), image) >= method.patience:
                    stopped_by = "held-out samples"
                    break
        image = self._image() if best.image is None else best.image
        validation = self._validation_loss(image) if best.image is None else best.loss
        return image, [float(loss) for loss in losses], validation, stopped_by

    def _step(self, which: int) -> torch.Tensor:
        """One iteration of Adam on view number `which`; returns the training loss.

        W is detached, so the gradient with respect to the image is A^H W^2 (A x - y) in closed form and only the
        network is differentiated.
        """
        view = self.views[which]
        self.optimizer.zero_grad(set_to_none=True)
        image = self.network(which)
        with torch.no_grad():
            predicted = view.operator.forward(image)
            residual = predicted - view.kspace
            weight = self._kept() * self._squared_weight(predicted, view.kspace) / view.operator.positions
            weighted = weight * residual
            loss = torch.linalg.vecdot(residual.flatten(), weighted.flatten()).real
            gradient = 2 * view.operator.adjoint(weighted)
        torch.autograd.backward(image, gradient)
        self.optimizer.step()
        view.average = self._averaged(view, image.detach())
        view.count += 1
        return loss

    def _averaged(self, view: _View, image: torch.Tensor) -> torch.Tensor:
        """The exponential average with `image` in it; a plain mean as long as there are few."""
        if view.average is None:
            return image
        return torch.lerp(image, view.average, min(self.method.image_averaging, view.count / (view.count + 1)))

    def _kept(self) -> torch.Tensor:
        """The training samples of this iteration: a random part is left out and the rest scaled to keep the mean."""
        dropped = self.method.sample_dropout
        if dropped == 0:
            return self.training
        drawn = torch.rand(self.training.shape, generator=self.dropout, device=self.training.device)
        return self.training * (drawn >= dropped) / (1 - dropped)

    def _squared_weight(self, predicted: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor:
        """W^2 of Eq. (9), or of the published form."""
        method = self.method
        if method.weight == "none":
            return torch.ones((), device=predicted.device)
        source = predicted if method.weight == "self" else acquired
        return _squared_weight(source, method.weight_offset, form=method.weight_form)

    def _image(self) -> torch.Tensor:
        """The mean of the views' averaged images, each moved back to the pixel centres."""
        images = [displace_image(v.average, (-v.offset[0], -v.offset[1])) for v in self.views if v.average is not None]
        return torch.stack(images).mean(0)

    def _validation_loss(self, image: torch.Tensor) -> float | None:
        """Weighted error of `image` on the held-out samples, with one fixed offset; None if none are held out."""
        count = int(self.validation.sum())
        if count == 0:
            return None
        predicted = self.frame.operator.forward(image)
        weight = _squared_weight(predicted, VALIDATION_OFFSET, form="squares")
        error = (weight * (predicted - self.frame.kspace).abs().square())[self.validation]
        return float(error.sum() / count)


def held_out_samples(frame: Frame, fraction: float, *, seed: int) -> torch.Tensor:
    """Boolean, of the range's shape: a random `fraction` of the acquired samples, drawn point by point.

    Drawn on the CPU by a generator of its own, so that a seed holds out the same samples on every device and for
    every network.
    """
    shape = frame.operator.range_shape
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(frame.kspace.device)
    return frame.operator.sampled & (drawn < fraction)


def _dilated(support: torch.Tensor) -> torch.Tensor:
    """`support` and two pixels around it: further out the coil maps are zero and the image has no part in the data."""
    return torch.nn.functional.max_pool2d(support[None].float(), 5, stride=1, padding=2)[0].bool()


class _Best:
    """The best image so far by its loss on held-out samples."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.image: torch.Tensor | None = None
        self._since = 0

    def update(self, loss: float | None, image: torch.Tensor) -> int:
        """Take note of a check; returns the number of checks since the best one."""
        if loss is not None and (self.loss is None or loss < self.loss):
            self.loss, self.image, self._since = loss, image.clone(), 0
        else:
            self._since += 1
        return self._since


def _squared_weight(source: torch.Tensor, offset: float, *, form: str) -> torch.Tensor:
    magnitude = source.abs()
    return 1 / (magnitude.square() + offset) if form == "squares" else 1 / (magnitude + offset).square()
