"""Reward networks with one output an action."""

from __future__ import annotations

from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards.network import NetworkReward

__all__ = ["AllActionsReward"]


class AllActionsReward(NetworkReward):
    """r_x(s, ·) = scale · tanh(network_x(s)), one output an action: one forward pass gives r_x for all actions, and E_π r for nothing more."""

    action_count: int
    """A."""

    def all_actions(self, x: Tensor, states: Tensor) -> Tensor:
        """r_x(s, ·), the mean over the members, differentiable in x, by one batched forward pass.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., *observation], or [B, ..., *observation]; the axis B may be 1 where all of the population see the same states.

        Returns:
            [..., A], or [B, ..., A].

        Raises:
            InvalidProblem: a shape does not fit.
        """
        return self._mean(x, self._scores(x, states))

    def along_each(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Each member's r at state-action pairs, one entry of its r(s, ·) for each: actions [...] int64 → [K, ...]."""
        scores, axis = self._scores(x, states), x.ndim - 1
        expected = [*scores.shape[:axis], *scores.shape[axis + 1 : -1]]
        if list(actions.shape) not in (expected, [1] * axis + expected[axis:]):
            raise InvalidProblem(f"actions have shape {tuple(actions.shape)}: they must be numbers of actions, {expected}")
        chosen = actions.unsqueeze(axis).expand(scores.shape[:-1])
        return scores.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    def _scores(self, x: Tensor, states: Tensor) -> Tensor:
        """Each member's r(s, ·): [K, ..., A], or [B, K, ..., A]."""
        return self._outputs(x, self._observed(x, states), self.action_count)

    def _inputs(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        return self._observed(x, states)
