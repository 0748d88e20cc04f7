"""What trajectories of the follower are worth to the upper level, which sees nothing but them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel_gym.arguments import check_call, check_numbers
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.objectives.playing import play, reward_metrics, steps_with_tail, world_at
from bilevel_gym.preferences import draw_fragments
from bilevel_gym.types import Evaluation, Fragments, Problem, Response, Trajectory

__all__ = ["SampledReturn"]

Worth = Callable[[Trajectory], Tensor]
"""What trajectories [N, T] are worth: [N]."""


@dataclass(frozen=True)
class SampledReturn:
    """f(x, π) = −E_{d ~ π}[ G(d) ], G what a trajectory of H steps from the reset is worth: a model-free ``ReturnObjective``.

    G is a function of yours, or Σ_{t<H} γ̄^t r_t of the world's own (true) reward. It reads ``states``, ``actions``, ``rewards`` and the
    named ``terms`` of the steps that are ``alive``; it need not be differentiable, nor written in torch. l = −G(d) does not depend on x,
    so all of ∇φ is what x does through π, ``ScoreFunction``'s implicit term (mathematics §5, I = 1).

    The metrics are ``true_return`` and ``learned_return``, over all steps that are played, and ``reward_saturated`` where r_x has a bound.

    Args:
        function: G, trajectories [N, H] → [N]; None takes the true reward.
        length: H; None takes the world's horizon.
        trajectories: N of an evaluation.
        steps: T ≥ H that are played; None takes H and the tail past it in which γ^t falls to .01, which ``"critic"`` sensitivities want.
            Never more than an episode has.
        discount: γ̄ in [0, 1], of the true reward.

    Raises:
        InvalidProblem: a number that is out of range, or a function that does not take trajectories.

    Cost: N·T environment steps an evaluation.
    """

    function: Worth | None = None
    _: KW_ONLY
    length: int | None = None
    trajectories: int = 8
    steps: int | None = None
    discount: float = 1.0

    direct: ClassVar[bool] = False
    """Whether l depends on x otherwise than through π."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.trajectories < 1 or (self.length is not None and self.length < 1):
            raise InvalidProblem(f"trajectories is {self.trajectories} and length {self.length}: take one at least")
        if self.steps is not None and self.steps < (self.length or 1):
            raise InvalidProblem(f"steps is {self.steps}, and the first {self.length or 1} of them count: play as many")
        if not 0.0 <= self.discount <= 1.0:
            raise InvalidProblem(f"discount is {self.discount}: it must be in [0, 1]; 1 does not discount")
        if self.function is not None:
            check_call("the function of trajectories", self.function, ["played"])

    def start(self) -> None:
        """No memory: every evaluation plays anew."""
        return

    @torch.no_grad()
    def evaluate(
        self, problem: Problem, x: Tensor, response: Response, memory: None, generator: torch.Generator
    ) -> tuple[Evaluation, None]:
        """Play the policy, and ask what that is worth.

        Raises:
            InvalidProblem: the world has no horizon and no ``length`` is given, or it is longer than an episode; or the function does not
                give one number for each trajectory.
            UnsupportedProblem: the world has no true reward.
        """
        length = self._length(problem.world)
        steps = steps_with_tail(problem.world, length, self.steps)
        played = play(world_at(problem, x), response.policy, self.trajectories, steps, generator)
        cut, _ = draw_fragments(played, self.trajectories, 1, length, "start", generator)
        worth = self._worth(played, length)
        fresh = replace(cut, fragments=replace(cut.fragments, outcome=worth[cut.origin[:, 0]]), asked=True)
        return Evaluation(-worth.mean(), fresh, metrics=reward_metrics(problem, x, played), env_steps=played.alive.numel()), None

    def loss(self, problem: Problem, x: Tensor, fragments: Fragments) -> Tensor:
        """−G of each trajectory, as it was observed: [M]."""
        return -fragments.outcome

    def _length(self, world: Any) -> int:
        horizon = getattr(world, "horizon", None)
        length = self.length or horizon
        if length is None:
            raise InvalidProblem("this world has no horizon: say how many steps of a trajectory count, such as length=100")
        if horizon is not None and length > horizon:
            raise InvalidProblem(f"length is {length}, and episodes have {horizon} steps: lower it, or leave it out")
        return int(length)

    def _worth(self, played: Trajectory, length: int) -> Tensor:
        """G of the first ``length`` steps: [N, T] → [N]."""
        begun = replace(played, **{column.name: _cut(column.name, getattr(played, column.name), length) for column in fields(played)})
        assert begun.rewards is not None
        if self.function is None:
            time = torch.arange(length, dtype=begun.rewards.dtype, device=begun.rewards.device)
            return (self.discount**time * begun.rewards * begun.alive).sum(-1)
        answer, count = self.function(begun), len(begun.alive)
        try:
            worth = torch.as_tensor(answer)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidProblem(
                f"the function of trajectories returned a {type(answer).__name__}: it must return a tensor [{count}], one number for each"
            ) from error
        if worth.shape != (count,):
            raise InvalidProblem(
                f"the function of trajectories [{count}, {length}] gave an answer of shape {tuple(worth.shape)}: it must be [{count}], one number for each"
            )
        return worth.to(begun.rewards.device, begun.rewards.dtype)


def _cut(name: str, column: Any, length: int) -> Any:
    """The first steps of a column that has steps."""
    return column if column is None or name in ("contexts", "seeds") else column[:, :length]
