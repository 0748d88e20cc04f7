"""Pictures of tabular policies, drawn with NumPy alone."""

from __future__ import annotations

import colorsys

import numpy as np
from torch import Tensor

__all__ = ["policy_picture"]


def policy_picture(policy: Tensor, *, width: int = 480, height: int = 240) -> np.ndarray:
    """Stacked bars: one bar a state, one colour an action, its height the probability; contexts below each other.

    Args:
        policy: [S, A], or [C, S, A] for several followers.
        width: pixels, at least.
        height: pixels, of each context.

    Returns:
        [height, width, 3] uint8, or [C·height, width, 3].
    """
    if policy.ndim > 2:
        return np.concatenate([policy_picture(one, width=width, height=height) for one in policy])
    table = np.asarray(policy.detach().cpu())
    states, actions = table.shape
    bar = max(width // states, 1)
    colours = np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(a / actions, 0.55, 0.9)] for a in range(actions)], dtype=np.uint8)
    # The action at relative height (i + ½)/height of a bar is the first whose cumulated probability exceeds it.
    heights = (np.arange(height) + 0.5) / height
    chosen = (heights[:, None, None] >= table.cumsum(-1)[None]).sum(-1).clip(max=actions - 1)
    picture = np.repeat(colours[chosen][::-1], bar, axis=1)
    picture[:, bar - 1 :: bar] //= 2
    return picture
