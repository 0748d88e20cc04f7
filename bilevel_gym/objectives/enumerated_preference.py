"""The expected loss of comparisons by enumeration of all fragments: the exact half of ``PreferenceObjective``."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import gradients
from bilevel_gym.objectives.enumeration import Enumeration, fragments_of
from bilevel_gym.objectives.pairs import answer_entropy, mean_losses, pair_losses
from bilevel_gym.preferences import Cut, Teacher
from bilevel_gym.types import Problem

__all__ = ["NO_TRUE_REWARD", "EnumeratedPreference"]

NO_TRUE_REWARD = "the teacher compares true returns, and this world has no reward of its own: give TabularWorld a true_reward"


class EnumeratedPreference(ABC):
    """f(x, π) and its derivatives as sums over all pairs of fragments that a small table can show."""

    length: int
    teacher: Teacher
    cut: Cut
    reference: Any

    @property
    def on_policy(self) -> bool:
        """Whether π chooses what is compared, so that f depends on it."""
        return self.reference is None

    def not_explicit(self, problem: Problem) -> str | None:
        """None where f can be enumerated, else the reason why it can only be sampled. Cost: an enumeration, remembered where P is fixed."""
        low, high = problem.domain.bounds
        middle = torch.as_tensor((low + high) / 2.0, dtype=problem.domain.dtype, device=problem.domain.device)
        try:
            self._truth(problem, self.fragments(problem, middle))
        except UnsupportedProblem as error:
            return str(error)
        return None

    def value(self, problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
        """f(x, π) by enumeration of all pairs of fragments, for small tables and ``cut="start"``: [B, D], [B, S, A] → [B].

        Raises:
            UnsupportedProblem: what ``not_explicit`` says, or a batch of x where P depends on x.

        Cost: O(B(FH + U²)), F fragments of U kinds; the pairs are taken in parts, which bounds the memory.
        """
        every, law = self._law(problem, x, policy)
        losses = mean_losses(law, every.returns(problem.reward.at(x)), self._truth(problem, every), self.teacher)
        return (law * losses).sum(-1)

    def entropy(self, problem: Problem, policy: Tensor, x: Tensor | None = None) -> Tensor:
        """The least that f can be on fragments of a policy, which the teacher's noise leaves over: [B, S, A] → [B].

        It is the entropy of the answers, as far as the loss can tell (``pairs.answer_entropy``). Under a Bradley–Terry teacher with a
        ``reference`` f attains it, at the true reward times the rationality; on-policy the fragments move with x.

        Args:
            problem: the problem.
            policy: whose fragments, unless there is a ``reference``.
            x: [D], where P depends on it.

        Raises:
            InvalidProblem: P depends on x, and none is given.
        """
        if x is None:
            if problem.world.depends_on_x:
                raise InvalidProblem("P depends on x here, and with it which fragments there are: say at which x")
            x = torch.zeros(problem.dimension, dtype=policy.dtype, device=policy.device)
        every, law = self._law(problem, x, policy)
        return answer_entropy(law, self._truth(problem, every), self.teacher)

    def fragments(self, problem: Problem, x: Tensor) -> Enumeration:
        """All fragments, of as many kinds as reward and teacher tell apart.

        Raises:
            UnsupportedProblem: there are contexts, the fragments are cut anywhere, there are too many of them, or more than one P.
        """
        self.check(problem)
        if self.cut != "start":
            raise UnsupportedProblem(
                "fragments cut anywhere have no closed-form start law: enumerate with cut='start', or use the sampled estimators"
            )
        return fragments_of(problem.world, x, self.length, self.teacher.discount)

    def pair_losses(self, problem: Problem, x: Tensor, every: Enumeration) -> Tensor:
        """E_y l of each pair of kinds of fragments, differentiable in x: [B, D] → [B, U, U].

        Raises:
            UnsupportedProblem: the world has no true reward.
        """
        return pair_losses(every.returns(problem.reward.at(x)), self._truth(problem, every), self.teacher)

    def gradient(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(∇_x f [B, D], ∇_π f [B, S, A]) of the enumeration, by one backward pass."""
        by_x, by_policy = gradients(lambda x, policy: self.value(problem, x, policy), x, policy)
        return by_x, by_policy

    def advantage(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """L − E_πL with L(s, a) the mean of l given that (s, a) was visited in either fragment, and the visits of s in both.

        What HPGD's A_upper is for this loss (mathematics §7). With a ``reference`` π chooses nothing, and it is 0.

        Returns:
            A [B, S, A], zero where (s, a) is never visited, and d [B, S].
        """
        every, law = self._law(problem, x, policy)
        losses = mean_losses(law, every.returns(problem.reward.at(x)), self._truth(problem, every), self.teacher)
        visits, lost = (2.0 * (weight @ every.counts).view_as(policy) for weight in (law.expand_as(losses), law * losses))
        mean = torch.where(visits > 0, lost / visits.clamp_min(torch.finfo(visits.dtype).tiny), 0.0)
        advantage = torch.where(visits > 0, mean - (policy * mean).sum(-1, keepdim=True), 0.0)
        return advantage if self.on_policy else torch.zeros_like(advantage), visits.sum(-1)

    def shown(self, problem: Problem, policy: Any) -> Any:
        """The policy whose fragments are compared: the follower's, or the reference, brought to where x lives if it is a table."""
        if self.reference is None:
            return policy
        return self.reference.to(problem.domain.device) if isinstance(self.reference, Tensor) else self.reference

    def _law(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Enumeration, Tensor]:
        """All fragments, and the law of their kinds: [B, U]."""
        every = self.fragments(problem, x)
        return every, every.law(self.shown(problem, policy))

    def _truth(self, problem: Problem, every: Enumeration) -> Tensor:
        """What the teacher sees of each kind of fragment: [U, 2]."""
        true: Tensor | None = getattr(problem.world, "true_reward", None)
        if true is None:
            raise UnsupportedProblem(NO_TRUE_REWARD)
        return every.seen(true)

    def check(self, problem: Problem) -> None:
        """Refuse a problem that this objective is not for.

        Raises:
            UnsupportedProblem: there are contexts, or the reference is a table of another world.
        """
        if getattr(problem.world, "context_weights", None) is not None:
            raise UnsupportedProblem(
                "there are several followers (contexts), and fragments do not say whose they are: take one follower, in a world of its own"
            )
        if isinstance(self.reference, Tensor) and problem.tabular and list(self.reference.shape) != problem.sizes[1:]:
            raise UnsupportedProblem(f"reference has shape {tuple(self.reference.shape)}: it must be [S, A] = {problem.sizes[1:]}")
