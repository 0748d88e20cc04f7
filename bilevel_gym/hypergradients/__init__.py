"""∇φ(x) = direct + implicit: one estimator a file."""

from bilevel_gym.hypergradients.advantage import AdvantageWeighted
from bilevel_gym.hypergradients.aid import AID
from bilevel_gym.hypergradients.critics import Critic, GivenCritic, RidgeCritic, TableCritic
from bilevel_gym.hypergradients.exact import Exact
from bilevel_gym.hypergradients.implicit import Implicit
from bilevel_gym.hypergradients.importance import Importance
from bilevel_gym.hypergradients.momentum import Momentum, MomentumState, Repeatable
from bilevel_gym.hypergradients.own_actor import OwnActorState, SampledPenalty
from bilevel_gym.hypergradients.penalty import Penalty, PenaltyState
from bilevel_gym.hypergradients.per_problem import PerProblem
from bilevel_gym.hypergradients.randomized_truncation import RandomizedTruncation
from bilevel_gym.hypergradients.riccati import ExactRiccati
from bilevel_gym.hypergradients.score_function import ScoreFunction, ScoreState
from bilevel_gym.hypergradients.second_order import SecondOrder
from bilevel_gym.hypergradients.zero_order import ZeroOrder

__all__ = [
    "AID",
    "AdvantageWeighted",
    "Critic",
    "Exact",
    "ExactRiccati",
    "GivenCritic",
    "Implicit",
    "Importance",
    "Momentum",
    "MomentumState",
    "OwnActorState",
    "Penalty",
    "PenaltyState",
    "PerProblem",
    "RandomizedTruncation",
    "Repeatable",
    "RidgeCritic",
    "SampledPenalty",
    "ScoreFunction",
    "ScoreState",
    "SecondOrder",
    "TableCritic",
    "ZeroOrder",
]
