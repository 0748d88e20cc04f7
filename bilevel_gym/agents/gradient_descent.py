"""Plain gradient descent, for loops whose whole step takes less than half a millisecond."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bilevel_gym.errors import InvalidProblem

__all__ = ["GradientDescent"]


class GradientDescent:
    """x ← x − β_k ∇̂φ with β_k = lr·(k+1)^−decay: what ``torch.optim.SGD`` does without momentum, without its 40 µs of bookkeeping a step.

    Args:
        parameters: tensors [D] or [N, D] with a ``grad``.
        lr: β > 0.
        decay: 0 for a constant β; ⅓ is the schedule of Stoc-SoBiRL.
        max_norm: a longer ∇̂φ is scaled down to this length, each row of a batch for itself; None does not clip.

    Raises:
        InvalidProblem: β is not positive and finite, the decay negative, or ``max_norm`` not positive.
    """

    def __init__(self, parameters: list[Tensor], *, lr: float, decay: float = 0.0, max_norm: float | None = None) -> None:
        if not 0.0 < lr < float("inf"):
            raise InvalidProblem(f"the learning rate is {lr}: it must be positive and finite, such as 8e-3")
        if not 0.0 <= decay < float("inf"):
            raise InvalidProblem(f"the decay of the learning rate is {decay}: it must not be negative, 0 keeps the rate constant")
        if max_norm is not None and not max_norm > 0.0:
            raise InvalidProblem(f"max_norm is {max_norm}: it must be positive, such as 1, or None for no clipping")
        self.parameters, self.lr, self.decay, self.max_norm, self.steps = parameters, lr, decay, max_norm, 0

    def step(self) -> None:
        """One step, in place."""
        self.steps += 1
        for parameter in self.parameters:
            assert parameter.grad is not None
            gradient = parameter.grad
            if self.max_norm is not None:
                gradient = gradient * (self.max_norm / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)
            parameter.sub_(gradient, alpha=self.lr * self.steps**-self.decay)

    def state_dict(self) -> dict[str, Any]:
        """The learning rate with its decay and clip, and the number of steps so far."""
        return {"lr": self.lr, "decay": self.decay, "max_norm": self.max_norm, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to it."""
        self.lr, self.decay, self.steps = float(state["lr"]), float(state["decay"]), int(state["steps"])
        self.max_norm = None if state["max_norm"] is None else float(state["max_norm"])
