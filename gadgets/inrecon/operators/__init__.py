"""Linear operators from image to k-space: ``forward``, ``adjoint``, ``gram``; one tensor in, one out."""

from inrecon.operators.cartesian import CartesianSense, displace_image
from inrecon.operators.columns import ColumnSense
from inrecon.operators.operator import LinearOperator
from inrecon.operators.solve import conjugate_gradient, shifted_conjugate_gradients

__all__ = [
    "CartesianSense",
    "ColumnSense",
    "LinearOperator",
    "conjugate_gradient",
    "displace_image",
    "shifted_conjugate_gradients",
]
