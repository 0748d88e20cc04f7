"""Actions in a box as float32 has them: what is known of one that was rounded to the box's edge."""

from __future__ import annotations

from math import atanh

from torch import Tensor

__all__ = ["EDGE", "EDGE_DRIVE", "place_in_box"]

EDGE = 1e-6
"""Of half a side: nearer to the edge than this, float32 does not tell tanh u from ±1 to any use."""
EDGE_DRIVE = atanh(1.0 - EDGE)
"""The |u| from which on tanh u is at the edge: 7.25."""


def place_in_box(actions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Actions as numbers in [−1, 1], and which of these are at the edge.

    What is at the edge is known to be there and no more. Its law is therefore a probability, that of being there, and not a density.

    Args:
        actions: [n, action] in the environment's units.
        low: [action] the lower corner of the box.
        high: [action] the upper corner.

    Returns:
        [n, action], and [n, action] bool.
    """
    unit = (2.0 * actions - (low + high)) / (high - low)
    return unit, unit.abs() >= 1.0 - EDGE
