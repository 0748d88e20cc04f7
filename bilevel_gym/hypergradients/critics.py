"""Regressors of L(s, a), the mean of l given that (s, a) was visited in the fragment (mathematics §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import coarse
from bilevel_gym.types import Fragments, Problem

__all__ = ["Critic", "GivenCritic", "RidgeCritic", "TableCritic"]


class Critic(Protocol):
    """Fits L on fragments that it will never weight, and evaluates it on others."""

    def fit(self, problem: Problem, fragments: Fragments, loss: Tensor, generator: torch.Generator) -> Any:
        """What was fitted: fragments [M, I, H] and their l [M]; a constant may be added to L, only differences count."""
        ...

    def evaluate(self, fitted: Any, states: Tensor, actions: Tensor) -> Tensor:
        """L at state-action pairs: [n, …], [n, …] → [n]."""
        ...


@dataclass(frozen=True)
class GivenCritic:
    """L is known: the estimator is unbiased then.

    Args:
        table: [S, A] L.
    """

    table: Tensor

    def fit(self, problem: Problem, fragments: Fragments, loss: Tensor, generator: torch.Generator) -> Tensor:
        """The table, whatever was seen.

        Raises:
            InvalidProblem: it is not one of the world's states and actions.
        """
        sizes = (problem.world.states, problem.world.actions)
        if self.table.shape != sizes:
            raise InvalidProblem(f"the table of L has shape {tuple(self.table.shape)}: it must be [S, A] = {list(sizes)}")
        return self.table

    def evaluate(self, fitted: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """L at state-action pairs: [n], [n] → [n]."""
        return fitted[states, actions]


@dataclass(frozen=True)
class TableCritic:
    """The mean of l over the visits of each (s, a), shrunk towards the overall mean as if by ``prior`` further visits.

    Args:
        prior: visits that the overall mean counts for, above 0.

    Raises:
        InvalidProblem: a prior that is not positive.
    """

    prior: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.prior < float("inf"):
            raise InvalidProblem(f"prior is {self.prior}: it must be positive and finite, or a cell without a visit has no mean")

    def fit(self, problem: Problem, fragments: Fragments, loss: Tensor, generator: torch.Generator) -> Tensor:
        """[S, A]. Cost: O(MIH + SA)."""
        shape = (problem.world.states, problem.world.actions)
        cell = (fragments.states * shape[1] + fragments.actions).flatten()
        alive = fragments.alive.flatten().to(loss.dtype)
        centred = (loss - loss.mean())[:, None, None].expand_as(fragments.alive).flatten()
        visits = torch.zeros(shape[0] * shape[1], dtype=loss.dtype, device=loss.device).index_add_(0, cell, alive)
        total = torch.zeros_like(visits).index_add_(0, cell, alive * centred)
        return (total / (visits + self.prior)).view(shape)

    def evaluate(self, fitted: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """L at state-action pairs: [n], [n] → [n]."""
        return fitted[states, actions]


@dataclass(frozen=True)
class _Ridge:
    choices: int | None
    centre: Tensor
    scale: Tensor
    frequencies: Tensor
    phases: Tensor
    weights: Tensor


@dataclass(frozen=True)
class RidgeCritic:
    """Ridge regression on random Fourier features of the standardised (s, a), s of pixels as ``frames.coarse`` sees them: one symmetric eigendecomposition, no step size.

    The penalty is chosen on a fifth of the tuples, which the fit does not see: l is one number for all steps of a fragment, so steps
    are no independent data, and in-sample criteria would overfit. Where nothing is learnable the largest penalty wins and L is flat.

    Source of the features: Rahimi and Recht, "Random features for large-scale kernel machines", 2007.

    Args:
        features: random features, half of the cost's exponent.
        penalties: the grid that is tried, relative to the mean eigenvalue.

    Raises:
        InvalidProblem: no feature, or penalties that are not positive.

    Cost: O(n·features² + features³), n steps.
    """

    features: int = 128
    penalties: tuple[float, ...] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)

    def __post_init__(self) -> None:
        if self.features < 1 or not self.penalties or not min(self.penalties) > 0:
            raise InvalidProblem(
                f"features is {self.features} and penalties {self.penalties}: one feature and one positive penalty at least"
            )

    def fit(self, problem: Problem, fragments: Fragments, loss: Tensor, generator: torch.Generator) -> _Ridge:
        """Fit on four fifths of the tuples for each penalty, keep the one that predicts the last fifth best, and refit on all."""
        choices = None if fragments.actions.is_floating_point() else problem.world.action_count
        inputs = _inputs(choices, fragments.states, fragments.actions)[fragments.alive]
        centre, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-3)
        size, device = inputs.shape[-1], inputs.device
        frequencies = torch.randn(size, self.features, generator=generator, dtype=inputs.dtype, device=device) / size**0.5
        phases = 2 * torch.pi * torch.rand(self.features, generator=generator, dtype=inputs.dtype, device=device)
        empty = _Ridge(choices, centre, scale, frequencies, phases, torch.zeros(self.features, dtype=inputs.dtype, device=device))
        design = _features(empty, inputs)
        target = (loss - loss.mean())[:, None, None].expand_as(fragments.alive)[fragments.alive]
        tuples = loss.shape[0]
        judging = torch.randperm(tuples, generator=generator, device=device) < tuples // 5
        held = judging[:, None, None].expand_as(fragments.alive)[fragments.alive]
        best = self._best(design, target, held) if tuples >= 5 else self.penalties[-1]
        weights = _solve(design, target, (best,))[0]
        return _Ridge(choices, centre, scale, frequencies, phases, weights)

    def evaluate(self, fitted: _Ridge, states: Tensor, actions: Tensor) -> Tensor:
        """L at state-action pairs: [n, *observation], [n, action] or [n] → [n]."""
        return _features(fitted, _inputs(fitted.choices, states, actions)) @ fitted.weights

    def _best(self, design: Tensor, target: Tensor, held: Tensor) -> float:
        weights = _solve(design[~held], target[~held], self.penalties)
        errors = (design[held] @ weights.mT - target[held, None]).square().mean(0)
        return self.penalties[int(errors.argmin())]


def _inputs(choices: int | None, states: Any, actions: Tensor) -> Tensor:
    """What is standardised: flat observations or coarse pictures, and actions of a box, or an indicator of one of ``choices``."""
    seen = coarse(states) if states.dtype == torch.uint8 else states
    return torch.cat([seen, actions if choices is None else functional.one_hot(actions, choices).to(seen.dtype)], -1)


def _features(ridge: _Ridge, inputs: Tensor) -> Tensor:
    standard = ((inputs - ridge.centre) / ridge.scale).clamp(-5.0, 5.0)
    return torch.cos(standard @ ridge.frequencies + ridge.phases)


def _solve(design: Tensor, target: Tensor, penalties: tuple[float, ...]) -> Tensor:
    """Ridge solutions for all penalties from one eigendecomposition: [penalties, features]."""
    values, vectors = torch.linalg.eigh(design.mT @ design)
    values = values.clamp_min(0.0)
    projected = vectors.mT @ (design.mT @ target)
    mean = values.mean()
    return torch.stack([vectors @ (projected / (values + penalty * mean)) for penalty in penalties])
