"""Incentives: a fixed amount that x shares out among the states."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, as_table
from bilevel_gym.rewards.tabular import Table, finite_table

__all__ = ["IncentiveReward"]


class IncentiveReward(Table):
    """r_sa(x) = base_sa + paid_s · amount · softmax(x)_s, with one logit more than states: what falls to the last one is paid nowhere.

    Source: the four rooms of HPGD (Thoma et al., NeurIPS 2024), where the amount is −.2 and goals pay nothing.

    Args:
        base: [S, A], or [C, S, A] with contexts: the reward without incentives.
        paid: [S] or [C, S] of 0 and 1, or any weights: where an incentive takes effect; None is everywhere.
        amount: what is shared out; negative where the leader charges for states.
        spread: the standard deviation of the logits to start from, with nearly equal shares; the released code of HPGD has .01.
        bound: x lies in [−bound, bound]^(S+1).
        device: where the tables live.

    Raises:
        InvalidProblem: a shape does not fit, or a number is not finite.
    """

    def __init__(
        self,
        base: ArrayLike,
        paid: ArrayLike | None = None,
        *,
        amount: float,
        spread: float = 0.01,
        bound: float = 10.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.base = finite_table(base, device)
        if self.base.ndim < 2:
            raise InvalidProblem(f"base has shape {tuple(self.base.shape)}: it must be [S, A] or [C, S, A]")
        states = self.base.shape[-2]
        weights = torch.ones(states, dtype=torch.float64) if paid is None else as_table(paid, "cpu")
        if weights.shape[-1:] != (states,) or not bool(weights.isfinite().all()):
            raise InvalidProblem(
                f"paid has shape {tuple(weights.shape)}: it must end with one finite number for each of the {states} states"
            )
        if not 0.0 < abs(amount) < float("inf"):
            raise InvalidProblem(f"amount is {amount}: there is nothing to share out; give a finite number other than 0, such as -0.2")
        self.paid = weights.to(self.base.device)
        self.amount = float(amount)
        super().__init__(states + 1, bound, spread=spread, device=device)

    def incentives(self, x: Tensor) -> Tensor:
        """amount · softmax(x), without the share that is paid nowhere: [B, D] → [B, S]."""
        return self.amount * torch.softmax(x, -1)[..., :-1]

    def at(self, x: Tensor) -> Tensor:
        """r_x: [B, D] → [B, S, A]. Cost: O(SA)."""
        return self.base + (self.paid * self.incentives(x)).unsqueeze(-1)

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """p ⊙ (g − ⟨p, g⟩) with p = softmax(x), g_s = amount · paid_s Σ_a cotangent_sa: [B, S, A] → [B, D]. Cost: O(SA)."""
        share = torch.softmax(x, -1)
        slope = torch.nn.functional.pad(self.amount * self.paid * cotangent.sum(-1), (0, 1))
        return share * (slope - (share * slope).sum(-1, keepdim=True))
