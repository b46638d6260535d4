"""UnrollINR (Xu et al.): a network's image made consistent with the data inside the fit, its loss on the result."""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

import torch

from inrecon.deadline import DEADLINE, time_left
from inrecon.encoders import EncoderSettings
from inrecon.errors import FitDiverged
from inrecon.events import FitProgressed, observe
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.consistency import DataConsistency
from inrecon.methods.held_out import Best
from inrecon.methods.linear import CGSense, data_consistent
from inrecon.methods.method import Method, announced, bounded, divergence, methods, tunable
from inrecon.methods.network import Grid, NetworkSettings, build_network, check_encoder, surrounded
from inrecon.methods.phase import smooth_phase
from inrecon.methods.total_variation import differences

CHECK_EVERY = 10
# The smoothing of TV, relative to the mean magnitude of the image: without it the gradient jumps where x is flat.
TV_SMOOTHING = 1e-2
CLOSING_ITERATIONS = 50


@methods.register("unroll_inr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UnrollINR(Method):
    """x = (A^H A + lambda I)^-1 (A^H y + lambda z) with z = MLP(encoder(r)), Eqs. (9) and (10), fitted by Adam.

    The loss is |A x - y|_2 / |y|_2 + |A x - y|_1 / |y|_1 + lambda_s TV(x), Eqs. (11) to (13); TV is divided by the sum
    of magnitudes of the image for z = 0, so that every term is free of scale. `dc_weight` is lambda and stays as it is;
    lambda_s falls geometrically from `tv_weight` to `tv_weight` times `tv_final_fraction`. The paper learns both, but
    the loss falls with lambda_s whatever the image is. z is averaged exponentially over the iterations
    (`image_averaging`, 0 for the last iterate), which averages x as well. In each iteration a random `sample_dropout`
    of the samples is left out of the loss, and the encoder decays by `weight_decay_encoder` (Adam's own l2, not in the
    paper): only together, and with a large `dc_weight`, do they help. With `phase_width` > 0 the network's two outputs
    are the parts of z in and out of phase with a low-resolution image (`smooth_phase`). With `patience` > 0 the fit
    stops after that many checks on held-out samples without improvement and goes on with the best z. The image is x of
    all samples, the network that of the training samples alone.
    """

    learning_rate: float = tunable(1e-2, low=1e-4, high=5e-2, log=True)
    dc_weight: float = tunable(0.2, low=1e-4, high=1.0, log=True, symbol="lambda")
    tv_weight: float = tunable(0.16, low=1e-3, high=10.0, log=True, symbol="lambda_s")
    tv_final_fraction: float = bounded(0.5, low=1e-3, high=1.0)
    weight_decay_encoder: float = tunable(8e-3, low=1e-5, high=5e-2, log=True)
    sample_dropout: float = bounded(0.3, low=0.0, high=0.9)
    encoder: str = "hash_grid"
    levels: int = bounded(16, low=1, high=32)
    features_per_level: int = bounded(2, low=1, high=64)
    log2_table_size: int = bounded(18, low=8, high=24)
    base_resolution: int = bounded(16, low=2, high=512)
    per_level_scale: float = bounded(1.5, low=1.2, high=2.0)
    interpolation: Literal["linear", "smoothstep"] = "linear"
    hidden_layers: int = bounded(2, low=0, high=16)
    width: int = bounded(64, low=1, high=1024)
    iterations: int = bounded(150, low=1, high=100_000)
    cg_iterations: int = bounded(8, low=1, high=1000)
    image_averaging: float = bounded(0.93, low=0.0, high=0.9999)
    phase_width: float = bounded(16.0, low=0.0, high=1e4)
    patience: int = bounded(0, low=0, high=1000)
    seed: int = bounded(0, low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check_encoder("unroll_inr", self.encoder)

    def fit(self, frame: Frame) -> Reconstruction:
        """Fit `frame`; raises `FitDiverged` when loss or image are not finite, or the fit ends worse than it began."""
        started = time.perf_counter()
        fit = _Fit(self, frame)
        losses, stopped_by = fit.run()
        image, trial = (self._consistent(f, fit.prior) for f in (frame, frame.training))
        if (error := divergence("unroll_inr", image, losses)) is not None:
            raise error
        result = Reconstruction(
            image=image,
            iterations=len(losses),
            stopped_by=stopped_by,
            losses=tuple(losses),
            trial=None if frame.held_out is None else trial,
            validation_loss=frame.loss(trial),
            backend=f"{self.encoder} by {fit.network.encoder.backend}",
        )
        return announced(result, method="unroll_inr", started=started)

    def _consistent(self, frame: Frame, prior: torch.Tensor) -> torch.Tensor:
        """x of Eq. (9) for a z."""
        return data_consistent(frame, prior=prior, weights=[self.dc_weight], iterations=CLOSING_ITERATIONS)[0]

    def network_settings(self) -> NetworkSettings:
        """The fields that shape the network."""
        return NetworkSettings(
            encoder=self.encoder,
            encoder_settings=EncoderSettings(
                levels=self.levels,
                features_per_level=self.features_per_level,
                log2_table_size=self.log2_table_size,
                base_resolution=self.base_resolution,
                per_level_scale=self.per_level_scale,
                interpolation=self.interpolation,
            ),
            hidden_layers=self.hidden_layers,
            width=self.width,
        )


class _Fit:
    """One run: network, optimiser, and the z that it has come to."""

    def __init__(self, method: UnrollINR, frame: Frame) -> None:
        self.method = method
        self.frame = frame
        training = frame.training
        self.data, self.seen = training.kspace, training.operator.sampled
        self.consistent = DataConsistency(frame, weight=method.dc_weight, iterations=method.cg_iterations)
        magnitude = self.consistent.start.abs()
        self.magnitudes, self.smoothing = magnitude.sum(), TV_SMOOTHING * magnitude.mean()
        width = method.phase_width
        self.phase = smooth_phase(CGSense().fit(training).image, width=width) if width > 0 else None
        # Two pixels around the support are evaluated as well: the differences of TV reach out of it.
        region = surrounded(frame.maps.support)
        self.network = build_network(
            [Grid(region=region, offset=(0.0, 0.0))],
            method.network_settings(),
            shape=frame.operator.domain_shape,
            generators=[torch.Generator().manual_seed(method.seed)],
        )
        encoder = list(self.network.encoder.parameters())
        decays = [(encoder, method.weight_decay_encoder), (list(self.network.mlp.parameters()), 0.0)]
        self.optimizer = torch.optim.Adam(
            [{"params": parameters, "weight_decay": decay} for parameters, decay in decays if parameters],
            lr=method.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=True,
        )
        self.dropout = torch.Generator(frame.kspace.device).manual_seed(method.seed)
        self.prior = torch.zeros_like(self.consistent.start)

    def run(self) -> tuple[list[float], str]:
        """Iterate; sets `prior`, returns training losses and the reason of the stop."""
        method, losses = self.method, list[torch.Tensor]()
        best = Best()
        stopped_by = "iterations"
        for iteration in range(1, method.iterations + 1):
            losses.append(self._step(iteration))
            late = time_left() <= 0
            if iteration % CHECK_EVERY and iteration != method.iterations and not late:
                continue
            observe(FitProgressed(iteration=iteration, iterations=method.iterations))
            if not torch.isfinite(losses[-1]):
                raise FitDiverged(f"unroll_inr diverged: its loss is not finite after {iteration} iterations")
            if late:
                stopped_by = DEADLINE
                break
            if not method.patience or self.frame.held_out is None:
                continue
            if best.update(self.frame.loss(self.consistent(self.prior)), self.prior) >= method.patience:
                stopped_by = "held-out samples"
                break
        if best.image is not None:
            self.prior = best.image
        return [float(loss) for loss in losses], stopped_by

    def _step(self, iteration: int) -> torch.Tensor:
        """One iteration of Adam; returns the training loss."""
        method = self.method
        progress = (iteration - 1) / max(method.iterations - 1, 1)
        self.optimizer.zero_grad(set_to_none=True)
        prior = self._rendered()
        image = self.consistent(prior)
        predicted = self.frame.operator.forward(image)
        loss = self._loss(image, predicted, tv_weight=method.tv_weight * method.tv_final_fraction**progress)
        loss.backward()
        self.optimizer.step()
        self.consistent.impute(predicted.detach())
        momentum = min(method.image_averaging, (iteration - 1) / iteration)
        self.prior = torch.lerp(prior.detach(), self.prior, momentum)
        return loss.detach()

    def _rendered(self) -> torch.Tensor:
        """z, in the shape of the image."""
        (image,) = self.network()
        return image if self.phase is None else self.phase * image

    def _loss(self, image: torch.Tensor, predicted: torch.Tensor, *, tv_weight: float) -> torch.Tensor:
        """Eq. (11); `predicted` is A x of the image."""
        magnitude = (predicted * self.seen - self.data).abs()
        drawn = torch.rand(magnitude.shape, generator=self.dropout, device=magnitude.device)
        share = (drawn >= self.method.sample_dropout) / (1 - self.method.sample_dropout)
        euclidean = (share * magnitude.square()).sum().sqrt() / torch.linalg.vector_norm(self.data)
        absolute = (share * magnitude).sum() / self.data.abs().sum()
        variation = total_variation(image, smoothing=self.smoothing) / self.magnitudes
        return euclidean + absolute + tv_weight * variation


def total_variation(image: torch.Tensor, *, smoothing: torch.Tensor | float = 0.0) -> torch.Tensor:
    """|G x|_1 of Eq. (13): the sum over pixels of sqrt(|dx|^2 + |dy|^2 + smoothing^2) - smoothing.

    Forward differences, none across the edges of `image` ``(..., rows, columns)``.
    """
    squares = torch.view_as_real(differences(image)).square().sum((0, -1))
    return ((squares + smoothing**2).sqrt() - smoothing).sum()
