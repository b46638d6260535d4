"""What every operator promises."""

from abc import ABC, abstractmethod

import torch


class LinearOperator(ABC):
    """A linear map from images ``domain_shape`` to k-space ``range_shape``, both complex64 on one device.

    Laws (`inrecon.testing.OperatorConformance`): linear; ``<forward(x), y> == <x, adjoint(y)>``;
    ``gram == adjoint(forward)``.
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    @property
    @abstractmethod
    def sampled(self) -> torch.Tensor:
        """Boolean, broadcastable to `range_shape`: where k-space was acquired."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Number of k-space positions of the full grid, all coils, sampled or not (for losses that are means)."""

    @abstractmethod
    def arrange(self, kspace: torch.Tensor) -> torch.Tensor:
        """Centred k-space as it crosses doors, into the layout of this operator's range."""

    @abstractmethod
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """k-space of `image`, zero where nothing was acquired."""

    @abstractmethod
    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """Image of `kspace` by the conjugate transpose."""

    def gram(self, image: torch.Tensor) -> torch.Tensor:
        """``adjoint(forward(image))``, perhaps by a shorter way."""
        return self.adjoint(self.forward(image))
