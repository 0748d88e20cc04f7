"""Which pairs a teacher is asked about, and how many of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import floor
from typing import Literal, get_args

import torch
from scipy.special import digamma
from torch import Tensor

from bilevel_gym.arguments import check_names, check_numbers
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem

__all__ = ["Query", "Rule", "labels_due"]

Rule = Literal["uniform", "disagreement", "entropy"]
"""What the pairs are chosen by; see ``Query``."""


@dataclass(frozen=True)
class Query:
    """Pairs that are chosen, out of ``ratio`` times as many that are drawn uniformly, by what r_x predicts about them.

    With P_k = σ(z_k) the probability that member k of an ensemble gives to the first fragment,

    * ``"disagreement"`` takes those with the largest standard deviation of P_k over the members (Christiano et al., NeurIPS 2017, whose
      candidates are ten times as many as the queries);
    * ``"entropy"`` those whose mean P is nearest to ½, which is the largest entropy of the predicted answer (Lee, Smith, Abbeel, PEBBLE,
      ICML 2021);
    * ``"uniform"`` any of them, which is what the other two are compared with at the same number of labels.

    Chosen pairs are not drawn from π's law, so they only feed ∇l, by way of the queue (mathematics §5).

    Args:
        rule: one of the above.
        pairs: n, chosen in each evaluation after the first, beside those that are drawn uniformly.
        ratio: candidates for each of them.

    Raises:
        UnknownName: there is no such rule.
        InvalidProblem: a number that is not positive.
    """

    rule: Rule
    _: KW_ONLY
    pairs: int
    ratio: int = 10

    def __post_init__(self) -> None:
        check_numbers(self)
        check_names("query rule", [self.rule], get_args(Rule))
        if self.pairs < 1 or self.ratio < 1:
            raise InvalidProblem(f"pairs is {self.pairs} and ratio {self.ratio}: one pair at least, and one candidate for each")

    def check(self, members: int) -> None:
        """Refuse a reward of too few members for the rule.

        Raises:
            UnsupportedProblem: one network has nobody to disagree with.
        """
        if self.rule == "disagreement" and members == 1:
            raise UnsupportedProblem("disagreement needs an ensemble: give the reward members=3, or choose the rule 'entropy'")

    def choose(self, logits: Tensor, count: int) -> Tensor:
        """The places of the ``count`` candidates that the rule ranks first.

        Args:
            logits: [K, M] z of each member about each candidate.
            count: at most M.

        Returns:
            [count].

        Raises:
            UnsupportedProblem: as ``check`` says.
        """
        self.check(len(logits))
        if self.rule == "uniform":
            return torch.arange(count, device=logits.device)
        predicted = torch.sigmoid(logits)
        if self.rule == "entropy":
            return (predicted.mean(0) - 0.5).abs().topk(count, largest=False).indices
        return predicted.std(0, correction=0).topk(count).indices


def labels_due(pairs: int, evaluation: int, half_rate: float | None) -> int:
    """How many labels evaluation k = 0, 1, … asks for: on the mean n t₀/(t₀ + k), which falls hyperbolically.

    Whole numbers whose sums are those of the mean, rounded down; so a rate below one label asks for one every few evaluations.

    Args:
        pairs: n, asked for in evaluation 0.
        evaluation: k.
        half_rate: t₀, the evaluation at which half of n is asked for; None asks for n every time.
    """
    if half_rate is None:
        return pairs

    def asked(k: int) -> int:
        """Before evaluation k: n Σ_{j<k} t₀/(t₀ + j), by the digamma function, and a little more against rounding down from a whole number."""
        later = half_rate * float(digamma(half_rate + k) - digamma(half_rate + 1.0))
        return floor(pairs * (1.0 + later) + 1e-9) if k else 0

    return asked(evaluation + 1) - asked(evaluation)
