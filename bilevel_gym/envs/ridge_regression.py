"""``bilevel/RidgeRegression-v0``: the penalties of ridge regression, chosen on a validation set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.errors import InvalidProblem, require
from bilevel_gym.numerics import as_table, matvec
from bilevel_gym.objectives import ExplicitObjective
from bilevel_gym.problem import ConvexProblem
from bilevel_gym.rewards import Box
from bilevel_gym.solvers import GradientDescentSolver
from bilevel_gym.types import LowerSolver

__all__ = ["Regression", "RidgeFunction", "ValidationError", "draw_ridge_regression", "ridge_regression"]


@checked
def ridge_regression(
    *,
    shared: bool = False,
    train: int = 100,
    validation: int = 100,
    steps: int = 50,
    solver: LowerSolver | None = None,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Hyper-parameters of ridge regression: a penalty for each feature, or one for all, chosen on a validation set.

    Description:
        Scikit-learn's diabetes data: the progress of the disease in 442 patients, from 10 measurements. ``reset(seed)`` draws who is
        in the training, validation and test set. Features and progress are standardised by the training set.
    x:
        Logarithms of the penalties: R^10 (R^1 with ``shared=True``) in the box [−4, 4]; it starts standard normal.
    Lower level:
        g(x, w) = ½ mean_i (⟨z_i, w⟩ − t_i)² + ½ Σ_j e^{x_j} w_j² over 100 patients, hence w*(x) = (ZᵀZ/n + diag e^x)⁻¹ Zᵀt/n. A step
        runs 50 gradient steps from the last w.
    Upper objective:
        f(x, w) = ½ Σ_i (⟨z_i, w⟩ − t_i)² over 100 other patients.
    Observation:
        ``objective`` [1], ``gap`` [1] (‖∇_w g‖), ``x`` [D], float64.
    Reward:
        −f(x, w).
    Reference value:
        φ* by L-BFGS on the closed form, mean over the seeds 0 to 9: 22.7; 24.4 with one penalty for all, 24.8 with hardly any (all at
        e^−4). Seed 0: 26.657, and 27.470 with one penalty, which is attained at x = −2.433; 100 steps of ``aid`` come to 26.691 and to
        27.470. Single penalties may have their optimum at the edge of the box: a feature is left out, or not penalised.
        ``info`` has ``test_r2``, the share of the variance of the remaining 242 patients' progress that w explains
        (at the optimum .446, .439 with one penalty, .432 with hardly any; mean over the seeds 0 to 9).

    Args:
        shared: one penalty for all features.
        train: patients of the lower level.
        validation: patients of the upper level; the others are the test set.
        steps: N inner gradient steps.
        solver: a solver object instead of them.
        solve_on_reset: whether a reset runs the N steps at the first x, or leaves w = 0.
        device: where the data live.
        render_mode: ``"rgb_array"`` (x above w) or ``"ansi"``.

    Raises:
        MissingExtra: scikit-learn is not installed.

    Version history:
        v0: the first.
    """
    draw = partial(draw_ridge_regression, shared=shared, train=train, validation=validation, device=device)
    return BilevelEnv(draw, solver or GradientDescentSolver(steps=steps), solve_on_reset=solve_on_reset, render_mode=render_mode)


@dataclass(frozen=True)
class Regression:
    """A set of samples."""

    inputs: Tensor
    """[n, p] z."""
    targets: Tensor
    """[n] t."""

    def errors(self, weights: Tensor) -> Tensor:
        """(⟨z_i, w⟩ − t_i)² of each sample: [B, p] → [B, n]. Cost: O(np)."""
        return (matvec(self.inputs, weights) - self.targets).square()


@dataclass(frozen=True)
class RidgeFunction:
    """g(x, w) = ½ mean_i (⟨z_i, w⟩ − t_i)² + ½ Σ_j e^{x_j} w_j², x of p entries or of one."""

    data: Regression

    @property
    def size(self) -> int:
        """p."""
        return self.data.inputs.shape[-1]

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """g: [B, D], [B, p] → [B]."""
        return 0.5 * (self.data.errors(y).mean(-1) + (x.exp() * y.square()).sum(-1))

    def curvature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues of ZᵀZ/n plus the extreme penalties: [B], [B]."""
        return self._ends[0] + x.amin(-1).exp(), self._ends[-1] + x.amax(-1).exp()

    @cached_property
    def _ends(self) -> Tensor:
        inputs = self.data.inputs
        eigenvalues: Tensor = torch.linalg.eigvalsh(inputs.mT @ inputs / len(inputs))
        return eigenvalues[[0, -1]].clamp_min(0.0)


@dataclass(frozen=True)
class ValidationError(ExplicitObjective):
    """f(x, w) = ½ Σ_i (⟨z_i, w⟩ − t_i)² over samples that the lower level does not see."""

    data: Regression
    test: Regression
    """Read by the metric alone."""

    def value(self, problem: Any, x: Tensor, policy: Tensor) -> Tensor:
        """f: [B, D], [B, p] → [B]."""
        return 0.5 * self.data.errors(policy).sum(-1)

    def metrics(self, problem: Any, x: Tensor, policy: Tensor) -> dict[str, float]:
        """1 − (mean squared error)/(variance) on the test set."""
        return {"test_r2": 1.0 - float(self.test.errors(policy).mean() / self.test.targets.var(correction=0))}


def draw_ridge_regression(
    rng: np.random.Generator, *, shared: bool = False, train: int = 100, validation: int = 100, device: str = "cpu"
) -> ConvexProblem:
    """One split of the diabetes data.

    Args:
        rng: who is in which set.
        shared: one penalty for all features.
        train: samples of the lower level.
        validation: samples of the upper level.
        device: where the data live.

    Raises:
        InvalidProblem: a set would have fewer than two samples.
        MissingExtra: scikit-learn is not installed.
    """
    inputs, targets = require("sklearn.datasets", "data").load_diabetes(return_X_y=True)
    if min(train, validation, len(targets) - train - validation) < 2:
        raise InvalidProblem(
            f"train is {train} and validation {validation}, of {len(targets)} samples: each set, the test set too, needs two"
        )
    order = rng.permutation(len(targets))
    known = order[:train]
    inputs, targets = ((table - table[known].mean(0)) / table[known].std(0) for table in (inputs, targets))
    parts = np.split(order, [train, train + validation])
    lower, upper, test = (Regression(as_table(inputs[part], device), as_table(targets[part], device)) for part in parts)
    return ConvexProblem(RidgeFunction(lower), ValidationError(upper, test), Box(1 if shared else inputs.shape[-1], 4.0, device=device))
