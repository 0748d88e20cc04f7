"""τΩ on the simplex, seen through its convex conjugate: value, policy and Hessian product (mathematics §2)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, as_table

__all__ = ["KullbackLeibler", "Shannon", "Tsallis"]


@dataclass(frozen=True)
class Shannon:
    """Negative Shannon entropy, Ω(p) = Σ_a p_a log p_a: soft values are logsumexp, policies are softmax.

    Args:
        temperature: τ > 0, in units of the reward.

    Raises:
        InvalidProblem: τ is not a positive finite number.
    """

    entropic: ClassVar[bool] = True
    temperature: float

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def at(self, temperature: float) -> Shannon:
        """The same Ω under another τ."""
        return replace(self, temperature=temperature)

    def conjugate(self, q: Tensor) -> Tensor:
        """τ logsumexp(q/τ): [B, S, A] → [B, S]."""
        return _soft_maximum(q, self.temperature)

    def policy(self, q: Tensor) -> Tensor:
        """softmax(q/τ): [B, S, A] → [B, S, A], rows sum to one."""
        return torch.softmax(q / self.temperature, -1)

    def hessian_product(self, policy: Tensor, h: Tensor) -> Tensor:
        """π⊙(h − ⟨π, h⟩), a product with diag π − ππᵀ that never forms it: [B, S, A] → [B, S, A]."""
        return _softmax_product(policy, h)

    def penalty(self, policy: Tensor) -> Tensor:
        """τ Σ_a π log π ≤ 0: [B, S, A] → [B, S]."""
        return self.temperature * _negative_entropy(policy)

    def lipschitz(self, actions: int) -> float:
        """1/τ: softmax(·/τ) is so from ‖·‖_∞ to ‖·‖_1 for any number of actions, hence to ‖·‖_2."""
        return 1.0 / self.temperature


@dataclass(frozen=True, eq=False)
class KullbackLeibler:
    """Divergence from a reference policy, Ω(p) = Σ_a p_a log(p_a/μ_a): the follower departs from its habit μ at a price.

    With a uniform μ it is Shannon's, but for the constant log A. An action with μ_a = 0 is never played: Ω is infinite there.

    Args:
        temperature: τ > 0, in units of the reward.
        reference: μ, [A] for all states, [S, A], or [C, S, A] for each of C contexts; rows are distributions, which may have zeros.
        device: where the table lives, the problem's device.

    Raises:
        InvalidProblem: τ is not a positive finite number, or a row of μ is not a distribution (a row of zeros has an empty support).
    """

    entropic: ClassVar[bool] = True
    temperature: float
    reference: ArrayLike
    _: KW_ONLY
    device: str | torch.device = "cpu"
    _log_reference: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        table = as_table(self.reference, self.device)
        _check_reference(table)
        object.__setattr__(self, "reference", table)
        object.__setattr__(self, "_log_reference", table.log())

    def at(self, temperature: float) -> KullbackLeibler:
        """The same Ω under another τ."""
        return replace(self, temperature=temperature)

    def conjugate(self, q: Tensor) -> Tensor:
        """τ logsumexp(q/τ + log μ): [B, S, A] → [B, S].

        Raises:
            InvalidProblem: μ is of other states and actions than q.
        """
        return _soft_maximum(self._tilted(q), self.temperature)

    def policy(self, q: Tensor) -> Tensor:
        """∝ μ exp(q/τ): [B, S, A] → [B, S, A], rows sum to one, 0 where μ is.

        Raises:
            InvalidProblem: μ is of other states and actions than q.
        """
        return torch.softmax(self._tilted(q) / self.temperature, -1)

    def hessian_product(self, policy: Tensor, h: Tensor) -> Tensor:
        """π⊙(h − ⟨π, h⟩), as for Shannon's: [B, S, A] → [B, S, A]."""
        return _softmax_product(policy, h)

    def penalty(self, policy: Tensor) -> Tensor:
        """τ Σ_a π log(π/μ) ≥ 0, infinite for a policy that plays what μ never does: [B, S, A] → [B, S]."""
        played = torch.where(policy > 0, self._log_reference, 0.0)
        return self.temperature * (_negative_entropy(policy) - (policy * played).sum(-1))

    def lipschitz(self, actions: int) -> float:
        """1/τ, as for Shannon's: q/τ is shifted by log μ and no more."""
        return 1.0 / self.temperature

    def _tilted(self, q: Tensor) -> Tensor:
        """q + τ log μ, whose soft maximum and softmax are Shannon's."""
        expected = self._log_reference.shape
        if q.shape[-len(expected) :] != expected:
            raise InvalidProblem(
                f"the reference policy has shape {list(expected)}, the follower's q {list(q.shape)}: give μ for the same states and actions"
            )
        return torch.add(q, self._log_reference, alpha=self.temperature)


@dataclass(frozen=True)
class Tsallis:
    """Negative Tsallis-2 entropy, Ω(p) = ½(‖p‖² − 1): policies are sparsemax, and play bad actions with probability zero.

    Source: Martins and Astudillo (2016) for sparsemax, Lee, Choi and Oh (2018) for the decision problem. π is piecewise linear in q:
    derivatives exist but at kinks, where an action enters or leaves the support.

    Args:
        temperature: τ > 0, in units of the reward.

    Raises:
        InvalidProblem: τ is not a positive finite number.
    """

    entropic: ClassVar[bool] = False
    temperature: float

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def at(self, temperature: float) -> Tsallis:
        """The same Ω under another τ."""
        return replace(self, temperature=temperature)

    def conjugate(self, q: Tensor) -> Tensor:
        """⟨π, q⟩ − τΩ(π) with π = sparsemax(q/τ): [B, S, A] → [B, S]. Cost: O(A log A) a state."""
        z = _below_maximum(q, self.temperature)
        policy = _sparsemax(z)
        return q.amax(-1) + self.temperature * ((policy * z).sum(-1) - _half_square(policy))

    def policy(self, q: Tensor) -> Tensor:
        """sparsemax(q/τ), the point of the simplex that is nearest to q/τ: [B, S, A] → [B, S, A]. Cost: O(A log A) a state."""
        return _sparsemax(_below_maximum(q, self.temperature))

    def hessian_product(self, policy: Tensor, h: Tensor) -> Tensor:
        """m⊙(h − mean of h over the support m of π): [B, S, A] → [B, S, A]."""
        support = (policy > 0).to(h.dtype)
        return support * (h - ((support * h).sum(-1) / support.sum(-1)).unsqueeze(-1))

    def penalty(self, policy: Tensor) -> Tensor:
        """τ ½(‖π‖² − 1) ≤ 0: [B, S, A] → [B, S]."""
        return self.temperature * _half_square(policy)

    def lipschitz(self, actions: int) -> float:
        """√A/τ: a projection is 1-Lipschitz in ‖·‖_2, which is at most √A ‖·‖_∞; attained at half of an even A up, half down."""
        return sqrt(actions) / self.temperature


def _check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < float("inf"):
        raise InvalidProblem(
            f"temperature is {temperature}: it must be positive and finite; for a nearly greedy follower use a small one such as 1e-3"
        )


def _check_reference(table: Tensor) -> None:
    if table.ndim < 1 or 0 in table.shape:
        raise InvalidProblem(f"the reference policy has shape {list(table.shape)}: it must be [A], [S, A] or [C, S, A]")
    if not bool((table >= 0).all()):
        raise InvalidProblem("the reference policy must be probabilities: some are negative or not a number")
    total = table.sum(-1).flatten()
    if bool((total == 0).any()):
        raise InvalidProblem("the reference policy has a row of zeros: with an empty support no action is left to play; leave one at least")
    worst = float(total[(total - 1.0).abs().argmax()])
    if not abs(worst - 1.0) < 1e-8:
        raise InvalidProblem(
            f"rows of the reference policy must sum to one, and one sums to {worst:.12g}: normalise them in double precision"
        )


def _soft_maximum(q: Tensor, temperature: float) -> Tensor:
    """τ logsumexp(q/τ), read off the greedy action as q_a − τ log π_a: [B, S, A] → [B, S].

    There log π_a lies in [−log A, 0], so nothing overflows or cancels at any temperature, and it is quicker than ``logsumexp``.
    """
    return torch.sub(q.amax(-1), torch.log_softmax(q / temperature, -1).amax(-1), alpha=temperature)


def _softmax_product(policy: Tensor, h: Tensor) -> Tensor:
    return policy * (h - (policy * h).sum(-1, keepdim=True))


def _negative_entropy(policy: Tensor) -> Tensor:
    """Σ_a π log π; an action of probability 0 counts for 0, and so does its derivative (the true one is infinite, and poisons a chain)."""
    return (policy * torch.where(policy > 0, policy, 1.0).log()).sum(-1)


def _half_square(policy: Tensor) -> Tensor:
    return 0.5 * (policy.square().sum(-1) - 1.0)


def _below_maximum(q: Tensor, temperature: float) -> Tensor:
    """(q − max q)/τ ≤ 0: a sparsemax is the same for it, and keeps its digits however large q is."""
    return (q - q.amax(-1, keepdim=True)) / temperature


def _sparsemax(z: Tensor) -> Tensor:
    """The projection (z − t)₊ onto the simplex, t = (Σ of the k largest − 1)/k with the largest k that leaves the k-th above t."""
    ordered = z.sort(-1, descending=True).values
    total = ordered.cumsum(-1) - 1.0
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    size = (rank * ordered > total).sum(-1, keepdim=True).clamp_min(1)  # 1 at least, but where z is NaN, which goes through
    threshold = total.gather(-1, size - 1) / size
    return (z - threshold).clamp_min(0.0)
