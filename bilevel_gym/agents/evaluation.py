"""How good what was learned is, measured anew and apart from the training."""

from __future__ import annotations

from dataclasses import replace
from math import nan, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bilevel_gym.agents.loop import OuterEnv, unwrapped
from bilevel_gym.envs import BilevelEnv, BilevelVectorEnv, Counters, ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import factorize, rewards_of, solve_transposed
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import Trajectory, World

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
    metric: str | None = None
    """What an ``Evaluator`` logs it as, behind ``eval_``; None where the last upper step has logged it already."""


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
    trajectory = _play(world, policy, episodes, generator, steps)
    return _summary(_true_rewards(world, trajectory), trajectory)


def evaluate_env(env: OuterEnv, *, episodes: int = 20, seed: int = 0, baseline: bool = True) -> list[Measurement]:
    """Measure where an environment stands; it stays as it is, its generators and counters included.

    * what the last upper step saw: objective, gap and metrics;
    * on tables, where the exact hyper-gradient is to be had: f at the exact soft-optimal policy of x, and ‖∇φ(x)‖, to rounding;
    * on tables: E Σ γ^t r of the response's policy, for r_x and, where there is one, for the true reward, exact and without entropy;
    * on worlds with episodes: the undiscounted return of the policy under r_x, and where there is a true reward also under that, beside
      the true return of uniformly random actions on the same resets.

    Args:
        env: after its first reset, or after ``set_state``, wrapped or not; of a batch the means over its members, with their standard errors.
        episodes: for the returns.
        seed: of the resets and actions.
        baseline: whether to play the random actions.

    Raises:
        InvalidProblem: it is not a bilevel environment, or fewer episodes than one.
    """
    env = unwrapped(env)
    if not isinstance(env, BilevelEnv | BilevelVectorEnv):
        raise InvalidProblem(f"a {type(env).__name__} is not a bilevel environment: make one with gym.make('bilevel/…') or wrap_env")
    found = [
        _over("objective", env.evaluation.value, "last upper step"),
        _over("gap", env.response.gap.max(), "last upper step"),
        *(_over(name, values, "last upper step") for name, values in sorted(_metrics(env).items())),
    ]
    problem: Any = env.problem
    if Exact().supports(problem) is None:
        found += _solved(env)
    if problem.tabular:
        found += _values(env)
    if hasattr(problem.world, "horizon") and hasattr(problem.world, "uniform"):
        found += _returns(env, episodes, seed, baseline)
    return found


def _over(name: str, values: Tensor, note: str, metric: str | None = None) -> Measurement:
    """A number, or the mean over the members of a batch with its standard error: [] or [N]."""
    count = values.numel()
    error = float(values.double().std()) / sqrt(count) if values.ndim and count > 1 else None
    return Measurement(name, float(values.mean()), error, f"{note}, {count} members" if values.ndim else note, metric)


def _metrics(env: BilevelEnv | BilevelVectorEnv) -> dict[str, Tensor]:
    """What the last evaluation saw beside f: [] or [N]."""
    if isinstance(env, BilevelEnv):
        return {name: torch.tensor(value) for name, value in env.evaluation.metrics.items()}
    seen = [member.evaluation.metrics for member in env.members()]
    return {name: torch.tensor([metrics[name] for metrics in seen]) for name in seen[0]}


def _returns(env: BilevelEnv | BilevelVectorEnv, episodes: int, seed: int, baseline: bool) -> list[Measurement]:
    """Sampled returns of the learned policy, and of the random one."""
    problem: Any = env.problem
    world, found, note = problem.world, [], f"{episodes} episodes of {problem.world.horizon} steps"
    for name, policy in (("learned", env.response.policy), *((("random", world.uniform()),) if baseline else ())):
        generator = torch.Generator(device=problem.domain.device).manual_seed(seed)
        played = _play(world, policy, episodes, generator)
        learned = name == "learned"
        if played.rewards is not None:
            mean, error = _summary(played.rewards, played)
            found.append(Measurement(f"true return, {name} policy", mean, error, note, "true_return" if learned else None))
        if learned:
            with torch.no_grad():
                mean, error = _summary(rewards_of(problem.reward, env.x, played), played)
            found.append(Measurement("learned return", mean, error, note, "learned_return"))
    return found


@torch.no_grad()
def _values(env: BilevelEnv | BilevelVectorEnv) -> list[Measurement]:
    """Exact discounted values of the response's policy, without entropy."""
    problem: Any = env.problem
    x, policy = env.x, env.response.policy
    mdp = problem.at(x)
    factor = factorize(mdp, policy)
    found = []
    for name, reward in (("true", problem.world.true_reward), ("learned", mdp.reward)):
        if reward is not None:
            value = solve_transposed(factor, (policy * reward).sum(-1), transposed=False)
            mean = problem.over_contexts((mdp.start * value).sum(-1))
            found.append(_over(f"{name} value", mean, "of this policy, exact", f"{name}_value"))
    return found


@torch.no_grad()
def _solved(env: BilevelEnv | BilevelVectorEnv) -> list[Measurement]:
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
        _over("objective, solved exactly", value, f"residual {float(response.gap.max()):.1e}", "objective"),
        _over("exact gradient norm", gradient.value.norm(dim=-1), "0 at the optimum", "norm_hypergradient"),
    ]


def _play(world: World, policy: Any, episodes: int, generator: torch.Generator, steps: int | None = None) -> Trajectory:
    if episodes < 1:
        raise InvalidProblem(f"episodes is {episodes}: play one at least")
    steps = getattr(world, "horizon", None) if steps is None else steps
    if steps is None:
        raise UnsupportedProblem(f"{type(world).__name__} has no horizon: say how many steps an episode has")
    return world.rollout(policy, trajectories=episodes, steps=steps, generator=generator)


def _true_rewards(world: World, trajectory: Trajectory) -> Tensor:
    if trajectory.rewards is None:
        raise UnsupportedProblem(f"{type(world).__name__} has no true reward, so a policy has no true return in it")
    return trajectory.rewards


def _summary(rewards: Tensor, trajectory: Trajectory) -> tuple[float, float]:
    """Mean and standard error of Σ_t r_t over the living steps: [N, T]."""
    returns = (rewards.double() * trajectory.alive).sum(-1)
    return float(returns.mean()), float(returns.std()) / sqrt(len(returns)) if len(returns) > 1 else nan
