"""``bilevel/DataHyperCleaning-v0``: which training labels to trust."""

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
from bilevel_gym.numerics import as_table
from bilevel_gym.objectives import ExplicitObjective
from bilevel_gym.problem import ConvexProblem
from bilevel_gym.rewards import Box
from bilevel_gym.solvers import GradientDescentSolver
from bilevel_gym.types import LowerSolver

__all__ = ["Classification", "CleaningObjective", "WeightedSoftmaxRegression", "data_hyper_cleaning", "draw_data_hyper_cleaning"]


@checked
def data_hyper_cleaning(
    *,
    train: int = 500,
    validation: int = 200,
    corruption: float = 0.4,
    penalty: float = 1e-3,
    steps: int = 50,
    solver: LowerSolver | None = None,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Handwritten digits with wrong labels: x weighs each training sample, so that a classifier does well on a few clean ones.

    Description:
        Data hyper-cleaning (Franceschi et al., ICML 2017; the standard example of AID) on scikit-learn's digits: 1797 images of 8×8
        pixels. ``reset(seed)`` draws the sets and which training labels are replaced by another digit, uniformly.
    x:
        A logit for each training sample: R^500 in the box [−10, 10]^500; it starts at .1 N(0, I), all weights near ½.
    Lower level:
        Softmax regression: g(x, W) = mean_i σ(x_i) CE(W z_i, label_i) + ½λ‖W‖², λ = .001, z the pixels in [0, 1] less their mean, and
        a one. A step runs 50 gradient steps from the last W.
    Upper objective:
        f(x, W) = Σ_i CE(W z_i, label_i) over 200 clean samples.
    Observation:
        ``objective`` [1], ``gap`` [1] (‖∇_W g‖), ``x`` [D], float64.
    Reward:
        −f(x, W).
    Reference value:
        Test accuracy .806 ± .021 with equal weights, .940 ± .007 with the wrong labels left out, .930 ± .008 after 100 steps of ``aid``,
        whose f is then 45 ± 7 (190 ± 13 with equal weights, 57 ± 10 with the wrong labels left out: f is what x is fitted to). Mean and
        standard deviation over the seeds 0 to 9. ``info`` has ``test_accuracy``, on the other 1097 samples, and ``separation``, the chance
        that x puts a right label above a wrong one (½ at the start, .959 ± .010 after those steps).

    Args:
        train: samples of the lower level, D.
        validation: clean samples of the upper level; the others are the test set.
        corruption: the share of wrong training labels, in (0, 1).
        penalty: λ > 0, the strong convexity of g.
        steps: N inner gradient steps.
        solver: a solver object instead of them.
        solve_on_reset: whether a reset runs the N steps at the first x, or leaves W = 0.
        device: where the data live.
        render_mode: ``"rgb_array"`` (x above W) or ``"ansi"``.

    Raises:
        MissingExtra: scikit-learn is not installed.

    Version history:
        v0: the first.
    """
    draw = partial(draw_data_hyper_cleaning, train=train, validation=validation, corruption=corruption, penalty=penalty, device=device)
    return BilevelEnv(draw, solver or GradientDescentSolver(steps=steps), solve_on_reset=solve_on_reset, render_mode=render_mode)


@dataclass(frozen=True)
class Classification:
    """A set of labelled samples; a classifier's weights are [p, K], flat."""

    inputs: Tensor
    """[n, p] z."""
    labels: Tensor
    """[n] of K classes, int64."""
    classes: int
    """K."""

    def logits(self, weights: Tensor) -> Tensor:
        """[B, pK] → [B, n, K]. Cost: O(npK)."""
        return self.inputs @ weights.view(*weights.shape[:-1], self.inputs.shape[-1], self.classes)

    def losses(self, weights: Tensor) -> Tensor:
        """The cross-entropy of each sample: [B, pK] → [B, n]."""
        logits = self.logits(weights)
        chosen: Tensor = logits.gather(-1, self.labels.expand(logits.shape[:-1]).unsqueeze(-1))
        return logits.logsumexp(-1) - chosen.squeeze(-1)

    def accuracy(self, weights: Tensor) -> float:
        """The share of samples whose largest logit is that of the label."""
        return float((self.logits(weights).argmax(-1) == self.labels).double().mean())


@dataclass(frozen=True)
class WeightedSoftmaxRegression:
    """g(x, W) = mean_i σ(x_i) CE(W z_i, label_i) + ½λ‖W‖²."""

    data: Classification
    penalty: float
    """λ > 0."""

    @property
    def size(self) -> int:
        """pK."""
        return self.data.inputs.shape[-1] * self.data.classes

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """g: [B, n], [B, pK] → [B]."""
        return (x.sigmoid() * self.data.losses(y)).mean(-1) + 0.5 * self.penalty * y.square().sum(-1)

    def curvature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """λ, and λ + ½ max_i σ(x_i) λ_max(ZᵀZ/n), since ∇²CE ≼ ½ I in the logits (Böhning, 1992): [B], [B]."""
        smoothness = self.penalty + 0.5 * x.amax(-1).sigmoid() * self._largest
        return torch.full_like(smoothness, self.penalty), smoothness

    @cached_property
    def _largest(self) -> Tensor:
        inputs = self.data.inputs
        eigenvalues: Tensor = torch.linalg.eigvalsh(inputs.mT @ inputs / len(inputs))
        return eigenvalues[-1]


@dataclass(frozen=True)
class CleaningObjective(ExplicitObjective):
    """f(x, W) = Σ_i CE(W z_i, label_i) on clean samples that the lower level does not see."""

    data: Classification
    test: Classification
    """Read by the metric alone."""
    corrupted: Tensor
    """[D] bool: which training labels are wrong; read by the metric alone."""

    def value(self, problem: Any, x: Tensor, policy: Tensor) -> Tensor:
        """f: [B, D], [B, pK] → [B]."""
        return self.data.losses(policy).sum(-1)

    def metrics(self, problem: Any, x: Tensor, policy: Tensor) -> dict[str, float]:
        """The accuracy on the test set, and the chance that x puts a right label above a wrong one (the area under the ROC curve)."""
        right, wrong = x[~self.corrupted], x[self.corrupted].sort().values
        above, upto = torch.searchsorted(wrong, right), torch.searchsorted(wrong, right, right=True)
        return {
            "test_accuracy": self.test.accuracy(policy),
            "separation": float((above + upto).double().mean() / (2 * len(wrong))),
        }


def draw_data_hyper_cleaning(
    rng: np.random.Generator,
    *,
    train: int = 500,
    validation: int = 200,
    corruption: float = 0.4,
    penalty: float = 1e-3,
    device: str = "cpu",
) -> ConvexProblem:
    """One split of the digits, with wrong labels in the training set.

    Args:
        rng: who is in which set, and which labels are wrong.
        train: samples of the lower level, D.
        validation: clean samples of the upper level.
        corruption: the share of wrong training labels, rounded to whole samples, of which there are some of both kinds.
        penalty: λ > 0.
        device: where the data live.

    Raises:
        InvalidProblem: an empty set, no wrong or no right label, or a penalty that is not positive.
        MissingExtra: scikit-learn is not installed.
    """
    pixels, digits = require("sklearn.datasets", "data").load_digits(return_X_y=True)
    wrong = round(corruption * train)
    if min(train, validation, len(digits) - train - validation) < 1:
        raise InvalidProblem(
            f"train is {train} and validation {validation}, of {len(digits)} samples: no set, the test set too, may be empty"
        )
    if not 0 < wrong < train or not 0.0 < penalty < float("inf"):
        raise InvalidProblem(f"{wrong} of {train} labels would be wrong and the penalty is {penalty}: some of each, and a positive penalty")
    parts = np.split(rng.permutation(len(digits)), [train, train + validation])
    corrupted = np.zeros(train, dtype=bool)
    corrupted[rng.choice(train, wrong, replace=False)] = True
    pixels = pixels / 16.0 - pixels[parts[0]].mean(0) / 16.0
    inputs = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
    labels = digits.copy()
    labels[parts[0][corrupted]] += rng.integers(1, 10, wrong)
    lower, upper, test = (
        Classification(as_table(inputs[part], device), torch.as_tensor(labels[part] % 10, device=device), 10) for part in parts
    )
    return ConvexProblem(
        WeightedSoftmaxRegression(lower, penalty),
        CleaningObjective(upper, test, torch.as_tensor(corrupted, device=device)),
        Box(train, 10.0, spread=0.1, device=device),
    )
