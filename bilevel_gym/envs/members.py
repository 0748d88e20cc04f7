"""A batch of problems and its members: what estimators may ask of all of them, and of each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bilevel_gym.envs.oracle import ProblemOracle
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.types import Evaluation, Response

if TYPE_CHECKING:
    from bilevel_gym.envs.vector_env import BilevelVectorEnv

__all__ = ["Member", "VectorOracle", "member_of", "spread"]


class Member(NamedTuple):
    """One of the problems of a batch, with all that an estimator asks for."""

    oracle: ProblemOracle
    """With a generator of its own."""
    response: Response
    """[S, A], without the axis B."""
    evaluation: Evaluation
    """f [] of this member, with its samples."""


class VectorOracle(ProblemOracle):
    """Solves and evaluations of a whole batch on the side, and the way to each of its members.

    Args:
        env: where the batch stands.
        generator: the source of draws that concern all members at once.
    """

    def __init__(self, env: BilevelVectorEnv, generator: torch.Generator) -> None:
        super().__init__(env.problem, env.solver, generator)
        self._env = env

    @property
    def members(self) -> list[Member]:
        """The problems of the batch one by one, each with response, evaluation, generator and counters of its own."""
        return self._env.members()

    def solve(self, x: Tensor, warm: Response | None = None, *, reward: Any = None) -> Response:
        """The responses at other x's: [B, D]."""
        response = super().solve(x, warm, reward=reward)
        for counters in self._env.counters:
            counters.lower_step += response.steps
        return response

    def evaluate(self, x: Tensor, response: Response) -> Evaluation:
        """Another look at responses: f [B]."""
        if not self._env.sampled:
            return super().evaluate(x, response)
        seen = [member.oracle.evaluate(x[i], member_of(response, i)) for i, member in enumerate(self.members)]
        return Evaluation(torch.stack([evaluation.value for evaluation in seen]))


def member_of(response: Response, i: int) -> Response:
    """One of a batch of responses."""
    assert response.value is not None
    assert response.q is not None
    return replace(response, policy=response.policy[i], value=response.value[i], q=response.q[i], gap=response.gap[i], factor=None)


def spread(response: Response, count: int) -> Response:
    """A first response with an axis B, where the members share their tables.

    Raises:
        InvalidProblem: it is a policy alone.
    """
    if response.value is None or response.q is None:
        raise InvalidProblem(
            "a batch needs value and q beside the policy of a response: let the solver give them, or take one environment at a time"
        )
    if response.gap.ndim:
        return response
    policy, value, q, gap = (part.expand(count, *part.shape) for part in (response.policy, response.value, response.q, response.gap))
    return replace(response, policy=policy, value=value, q=q, gap=gap)
