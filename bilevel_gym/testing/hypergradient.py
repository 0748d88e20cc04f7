"""Is this gradient the gradient? Any estimator against central differences of φ."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidAction, InvalidProblem, UnsupportedProblem
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import Estimator, LowerSolver, OuterProblem

__all__ = ["Comparison", "central_differences", "check_hypergradient", "phi"]

_SOLVER = SoftPolicyIteration(tolerance=1e-13)


class Comparison(NamedTuple):
    """An estimator beside the truth."""

    truth: np.ndarray
    """[D] central differences of φ."""
    mean: np.ndarray
    """[D] the mean of the estimates."""
    standard_error: np.ndarray
    """[D] of that mean; zero for one estimate."""
    relative_error: float
    """‖mean − truth‖ / ‖truth‖."""
    cosine: float
    """Of the angle between mean and truth."""
    p_value: float
    """That all D differences are chance: the smallest of their t-tests, times D (Bonferroni); NaN for one estimate."""


def phi(problem: OuterProblem, x: Tensor, *, solver: LowerSolver = _SOLVER) -> Tensor:
    """φ(x) = f(x, π*(x)), the lower level solved to 1e-13: [D] → []. Cost: one solve."""
    response = solver.solve(problem, x, warm=None, budget=None, generator=torch.Generator(device=x.device))
    value: Tensor = problem.objective.value(problem, x, response.policy)
    return value


def central_differences(problem: OuterProblem, x: Tensor, *, step: float = 1e-5, solver: LowerSolver = _SOLVER) -> np.ndarray:
    """∇φ(x) by (φ(x + he_i) − φ(x − he_i)) / 2h: [D] → [D]. Cost: 2D solves."""
    shifts = step * torch.eye(x.numel(), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        return np.array(
            [float((phi(problem, x + shift, solver=solver) - phi(problem, x - shift, solver=solver)) / (2 * step)) for shift in shifts]
        )


@checked
def check_hypergradient(
    problem: OuterProblem,
    x: Any,
    estimator: Estimator,
    *,
    solver: LowerSolver = _SOLVER,
    tolerance: float = 1e-6,
    estimates: int = 1,
    significance: float = 0.001,
    seed: int = 0,
) -> Comparison:
    """Compare an estimator with central differences of φ, and fail where they differ.

    A deterministic estimator is asked once and must be within ``tolerance``. A sampled one is asked ``estimates`` times, each with
    fresh samples and a fresh state; the check fails where the t-tests of the D means, adjusted for their number, reject equality.

    Args:
        problem: one with an objective that has a ``value(problem, x, policy)``.
        x: [D].
        estimator: any estimator that supports the problem.
        solver: of the lower level, to a residual far below ``tolerance``; soft policy iteration to 1e-13 by default.
        tolerance: on the relative error, for one estimate.
        estimates: how many independent estimates; 2 or more for sampled estimators.
        significance: of the adjusted test.
        seed: of the samples.

    Returns:
        the comparison, for more than pass or fail.

    Raises:
        UnsupportedProblem: the estimator does not fit the problem.
        InvalidProblem: problem or estimator are none, or no estimate is asked for.
        InvalidAction: x cannot be read.
        AssertionError: the estimator is wrong; the message has both gradients.

    Cost: 2D + 1 solves, and the estimates.
    """
    if not hasattr(problem, "domain"):
        raise InvalidProblem(f"{problem!r} is no problem: give a BilevelProblem, such as env.unwrapped.problem")
    if isinstance(estimator, type) or not hasattr(estimator, "supports"):
        raise InvalidProblem(f"estimator is {estimator!r}: give an object, such as hypergradients.Exact()")
    if estimates < 1:
        raise InvalidProblem(f"estimates is {estimates}: ask for one at least")
    if reason := estimator.supports(problem):
        raise UnsupportedProblem(f"{type(estimator).__name__} does not fit this problem: {reason}")
    try:
        x = torch.as_tensor(x, dtype=problem.domain.dtype, device=problem.domain.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidAction(f"x cannot be read as numbers ({error}): give [D]") from error
    oracle = ProblemOracle(problem, solver, torch.Generator(device=x.device).manual_seed(seed))
    response = oracle.solve(x)
    values = np.stack([_estimate(oracle, x, response, estimator) for _ in range(estimates)])
    comparison = compare(central_differences(problem, x, solver=solver), values)
    wrong = comparison.relative_error > tolerance if estimates == 1 else comparison.p_value < significance
    if wrong:
        raise AssertionError(
            f"{type(estimator).__name__} disagrees with central differences: relative error {comparison.relative_error:.3g}, cosine {comparison.cosine:.4f}, "
            f"adjusted p-value {comparison.p_value:.3g}\ntruth {comparison.truth}\nmean  {comparison.mean}"
        )
    return comparison


def compare(truth: np.ndarray, values: np.ndarray) -> Comparison:
    """The comparison of estimates [n, D] with a truth [D]."""
    count, dimension = values.shape
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(dimension)
    scale = float(np.linalg.norm(truth))
    # Coordinates that hardly any sample touches have no t-distribution; what is below a ten-thousandth of the gradient is let pass.
    excess = np.maximum(np.abs(mean - truth) - 1e-4 * scale, 0.0)
    size = np.divide(excess, error, out=np.where(excess > 0, np.inf, 0.0), where=error > 0)
    p_value = min(1.0, dimension * 2.0 * float(stats.t.sf(size.max(), count - 1))) if count > 1 else float("nan")
    cosine = float(mean @ truth / (scale * np.linalg.norm(mean))) if scale > 0 and np.linalg.norm(mean) > 0 else float("nan")
    return Comparison(truth, mean, error, float(np.linalg.norm(mean - truth)) / max(scale, 1e-300), cosine, p_value)


def _estimate(oracle: ProblemOracle, x: Tensor, response: Any, estimator: Estimator) -> np.ndarray:
    estimate, _ = estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))
    value: np.ndarray = estimate.value.detach().cpu().numpy()
    return value
