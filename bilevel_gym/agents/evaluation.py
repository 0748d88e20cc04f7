"""How good what was learned is, measured anew and apart from the training."""

from __future__ import annotations

from dataclasses import replace
from math import nan, sqrt
from typing import Any, NamedTuple

import torch

from bilevel_gym.envs import BilevelEnv, Counters, ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import World

__all__ = ["Measurement", "evaluate_env", "evaluate_policy"]


class Measurement(NamedTuple):
    """One line of an evaluation."""

    name: str
    """What was measured."""
    value: float
    """The number, a mean where there is a standard error."""
    standard_error: float | None = None
    """Over the episodes; None for numbers that are not sampled here."""
    note: str = ""
    """How it was obtained."""


def evaluate_policy(
    world: World, policy: Any, *, episodes: int, generator: torch.Generator, steps: int | None = None
) -> tuple[float, float]:
    """The mean true return of a policy, undiscounted, and its standard error s/√n over the episodes.

    Args:
        world: it must have a true reward.
        policy: what ``world.rollout`` takes.
        episodes: n ≥ 1.
        generator: the source of the resets and actions; equal states of it give two policies the same resets.
        steps: of an episode; None takes ``world.horizon``.

    Returns:
        mean and standard error, which is NaN for one episode. Cost: n·T environment steps.

    Raises:
        UnsupportedProblem: the world has no true reward, or no horizon and no ``steps`` is given.
        InvalidProblem: ``episodes`` is not positive.
    """
    if episodes < 1:
        raise InvalidProblem(f"episodes is {episodes}: play one at least")
    steps = getattr(world, "horizon", None) if steps is None else steps
    if steps is None:
        raise UnsupportedProblem(f"{type(world).__name__} has no horizon: say how many steps an episode has")
    trajectory = world.rollout(policy, trajectories=episodes, steps=steps, generator=generator)
    if trajectory.rewards is None:
        raise UnsupportedProblem(f"{type(world).__name__} has no true reward, so a policy has no true return in it")
    returns = (trajectory.rewards.double() * trajectory.alive).sum(-1)
    error = float(returns.std()) / sqrt(episodes) if episodes > 1 else nan
    return float(returns.mean()), error


def evaluate_env(env: BilevelEnv, *, episodes: int = 20, seed: int = 0) -> list[Measurement]:
    """Measure where an environment stands; it stays as it is, its generators and counters included.

    * what the last upper step saw: objective, gap and metrics;
    * on tables with an explicit objective: f at the exact soft-optimal policy of x, and ‖∇φ(x)‖, to rounding;
    * on worlds with episodes and a true reward: the true return of the policy, and of uniformly random actions on the same resets.

    Args:
        env: after its first reset, or after ``set_state``.
        episodes: for the returns.
        seed: of the resets and actions.
    """
    found = [
        Measurement("objective", float(env.evaluation.value), note="last upper step"),
        Measurement("gap", float(env.response.gap), note="last upper step"),
        *(Measurement(name, float(value), note="last upper step") for name, value in sorted(env.evaluation.metrics.items())),
    ]
    problem: Any = env.problem
    if Exact().supports(problem) is None:
        found += _solved(env)
    world = problem.world
    if hasattr(world, "horizon") and hasattr(world, "uniform"):
        for name, policy in (("learned", env.response.policy), ("random", world.uniform())):
            generator = torch.Generator(device=env.problem.domain.device).manual_seed(seed)
            mean, error = evaluate_policy(world, policy, episodes=episodes, generator=generator)
            found.append(Measurement(f"true return, {name} policy", mean, error, f"{episodes} episodes of {world.horizon} steps"))
    return found


@torch.no_grad()
def _solved(env: BilevelEnv) -> list[Measurement]:
    """f and ‖∇φ‖ at π*(x), by Newton's method and one adjoint solve."""
    problem: Any = env.problem
    x, solver = env.x, SoftPolicyIteration()
    assert x is not None
    response = solver.solve(problem, x)
    objective: Any = problem.objective
    value = objective.value(problem, x, response.policy)
    oracle = ProblemOracle(problem, solver, torch.Generator(), Counters())
    gradient, _ = Exact()(oracle, x, response, replace(env.evaluation, value=value), None)
    return [
        Measurement("objective, solved exactly", float(value), note=f"residual {float(response.gap):.1e}"),
        Measurement("exact gradient norm", float(gradient.value.norm()), note="0 at the optimum"),
    ]
