"""Who compares two fragments."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from math import inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.preferences.fragments import Cut, draw_fragments
from bilevel_gym.types import Fragments, Trajectory

__all__ = ["BradleyTerry", "Teacher", "compare", "cross_entropy", "pair_loss"]


@dataclass(frozen=True)
class Teacher:
    """Compares fragments by the true reward, with the weaknesses of people: BPref's simulated teachers (mathematics §8).

    With R = Σ_h r(s_h, a_h) over a fragment of H steps and R̃ = Σ_h γ̃^{H−1−h} r(s_h, a_h), what is remembered of it:

    1. a query is skipped, y = NaN, where both R are below ``skip_below``;
    2. else the two count as equal, y = ½, where their R differ by less than ``equal_within``;
    3. else the first is preferred, y = 1, with probability σ(β(R̃_1 − R̃_2)), and the second, y = 0, otherwise;
    4. with probability ε such an answer is turned round.

    Source: Lee, Smith, Dragan, Abbeel, "B-Pref: Benchmarking Preference-Based Reinforcement Learning", NeurIPS 2021, with the order of
    the steps in its released code; there a perfectly rational teacher prefers the second of two that are the same to it, here y = ½.

    Args:
        rationality: β ≥ 0 per unit of reward; infinity never errs, 0 flips a coin.
        discount: γ̃ in (0, 1]; below 1 the teacher is myopic: the end of a fragment weighs more than its beginning.
        mistake: ε in [0, ½].
        skip_below: in units of R, of either sign as true rewards are; −infinity skips nothing.
        equal_within: in units of R, 0 or more.

    Raises:
        InvalidProblem: a number that is out of range.
    """

    rationality: float = 1.0
    _: KW_ONLY
    discount: float = 1.0
    mistake: float = 0.0
    skip_below: float = -inf
    equal_within: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.rationality >= 0.0:
            raise InvalidProblem(f"rationality is {self.rationality}: it must be 0 (a coin) or more, float('inf') never errs")
        if not 0.0 < self.discount <= 1.0:
            raise InvalidProblem(f"discount is {self.discount}: the teacher's must be in (0, 1], 1 remembers all of a fragment alike")
        if not 0.0 <= self.mistake <= 0.5:
            raise InvalidProblem(
                f"mistake is {self.mistake}: it must be a probability of at most 1/2, beyond that labels mean the opposite"
            )
        if not (isfinite(self.skip_below) or self.skip_below == -inf):
            raise InvalidProblem(f"skip_below is {self.skip_below}: it must be a return, or -float('inf') to skip nothing")
        if not 0.0 <= self.equal_within < inf:
            raise InvalidProblem(f"equal_within is {self.equal_within}: it must be a difference of returns, 0 or more and finite")

    def weights(self, length: int) -> Tensor:
        """What each step counts for in R and in R̃: [2, H] float64."""
        ago = torch.arange(length - 1, -1, -1, dtype=torch.float64)
        return torch.stack([torch.ones_like(ago), self.discount**ago])

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """E[y | y is no NaN], the probability that the first is preferred and half of that of a tie; NaN where the query is skipped.

        A cross-entropy is linear in y, so this is all that its mean depends on.

        Args:
            first: [..., 2] R and R̃ of the first fragment.
            second: [..., 2] those of the second.

        Returns:
            [...].
        """
        preferred = torch.where(self._equal(first, second), 0.5, self._preferred(first, second))
        return torch.where(torch.maximum(first[..., 0], second[..., 0]) < self.skip_below, nan, preferred)

    def label(self, rewards: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the answers.

        Args:
            rewards: [M, 2, H] the true reward of each step, 0 past the end of an episode.
            generator: the source of one draw a query.

        Returns:
            [M] y in {0, ½, 1}, or NaN.

        Raises:
            InvalidProblem: a reward is not finite.
        """
        if not bool(rewards.isfinite().all()):
            raise InvalidProblem(
                "the true reward of a fragment has a NaN or an infinity, so nobody can compare it: see to the world's own reward"
            )
        seen = (rewards.unsqueeze(-2) * self.weights(rewards.shape[-1]).to(rewards)).sum(-1)
        first, second = seen.unbind(-2)
        drawn = torch.bernoulli(self._preferred(first, second), generator=generator)
        mean = self.mean(first, second)
        return torch.where(self._equal(first, second) | mean.isnan(), mean, drawn)

    def _preferred(self, first: Tensor, second: Tensor) -> Tensor:
        margin = first[..., 1] - second[..., 1]
        right = 0.5 * (1.0 + margin.sign()) if self.rationality == inf else torch.sigmoid(self.rationality * margin)
        return self.mistake + (1.0 - 2.0 * self.mistake) * right

    def _equal(self, first: Tensor, second: Tensor) -> Tensor:
        margin, remembered = (first - second).unbind(-1)
        equal = margin.abs() < self.equal_within
        return equal | (remembered == 0.0) if self.rationality == inf else equal


def compare(
    trajectories: Trajectory, teacher: Teacher, *, pairs: int, length: int, cut: Cut = "anywhere", generator: torch.Generator
) -> Fragments:
    """Ask a teacher about pairs of fragments, drawn uniformly from trajectories with true rewards, such as those of ``from_minari``.

    Where a fragment starts does not depend on where the episode ends, so with ``cut="anywhere"`` some lie behind an end and show nothing;
    ``from_minari(…, steps=…)`` gives pieces without ends.

    Args:
        trajectories: [N, T].
        teacher: who answers.
        pairs: M.
        length: H ≤ T.
        cut: where fragments start.
        generator: the source of fragments and answers.

    Returns:
        [M, 2, H], with outcomes and true rewards.

    Raises:
        InvalidProblem: too few trajectories, or too short ones, or without true rewards.
    """
    drawn, rewards = draw_fragments(trajectories, pairs, 2, length, cut, generator)
    return replace(drawn.fragments, outcome=teacher.label(rewards, generator))


def BradleyTerry(rationality: float = 1.0) -> Teacher:
    """The plain teacher: P(d_1 ≻ d_2) = σ(β (R_1 − R_2)), nothing is skipped.

    Args:
        rationality: β ≥ 0 per unit of reward; infinity never errs, 0 flips a coin.
    """
    return Teacher(rationality)


def cross_entropy(logit: Tensor, outcome: Tensor) -> Tensor:
    """−y log σ(z) − (1−y) log σ(−z) in its softplus form, 0 where y is NaN (a skipped query): [...] → [...].

    Args:
        logit: z, the learned returns' difference.
        outcome: y in {0, ½, 1}, or a probability.
    """
    preferred = outcome.nan_to_num().to(logit.dtype)
    loss = torch.lerp(functional.softplus(logit), functional.softplus(-logit), preferred)  # no cancellation at either end
    return torch.where(outcome.isnan(), 0.0, loss)


def pair_loss(rewards: Tensor, alive: Tensor, outcome: Tensor) -> Tensor:
    """The cross-entropy of comparisons, z = Σ_h r(d_1) − Σ_h r(d_2), as one node of the graph, which can be differentiated twice.

    ∂l/∂r_h = ±(σ(z) − y) is short, where the softplus form is a dozen nodes that cost more than a small network.

    Args:
        rewards: [K, M, 2, H] r of each step by each of K members.
        alive: [M, 2, H] the steps that count.
        outcome: [M] y, NaN where the query was skipped.

    Returns:
        [M], the mean over the members.
    """
    loss: Tensor = _PairLoss.apply(rewards, alive, outcome)  # type: ignore[no-untyped-call]
    return loss


class _PairLoss(Function):
    @staticmethod
    def forward(ctx: Any, rewards: Tensor, alive: Tensor, outcome: Tensor) -> Tensor:
        logit = _logit(rewards, alive)
        ctx.save_for_backward(rewards, alive, outcome, logit)
        return cross_entropy(logit, outcome).mean(0)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        rewards, alive, outcome, logit = ctx.saved_tensors
        if torch.is_grad_enabled():  # the derivative will be differentiated again, through z as a function of the rewards
            logit = _logit(rewards, alive)
        slope = torch.where(outcome.isnan(), 0.0, torch.sigmoid(logit) - outcome) * (cotangent / len(rewards))
        return torch.stack([slope, -slope], -1).unsqueeze(-1) * alive, None, None


def _logit(rewards: Tensor, alive: Tensor) -> Tensor:
    first, second = torch.where(alive, rewards, 0.0).sum(-1).unbind(-1)
    return first - second
