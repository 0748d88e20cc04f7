"""The words that the stations share: what flows between them, and what each may ask of another.

Axes: ``B`` problems in a batch (any number of leading axes, often none), ``S`` states, ``A`` actions, ``D`` the dimension of x,
``N`` trajectories, ``T`` time, ``M`` tuples of ``I`` fragments of ``H`` steps. Where a leader faces several followers there is an
axis ``C`` of contexts between B and S, in every table, value and policy, and in none of x; it is not written out below.

Nothing here computes. A station that needs another's *kind* of thing names the protocol here, never the class.
"""

from bilevel_gym.linear import Factor
from bilevel_gym.types.flow import MDP, Budget, Evaluation, Fragments, Hypergradient, Places, Response, Samples, Trajectory
from bilevel_gym.types.methods import Estimator, LowerSolver, Oracle
from bilevel_gym.types.objectives import (
    AdvantageObjective,
    AsideObjective,
    DiscountedObjective,
    Memory,
    SampledObjective,
    TabularObjective,
    TupleObjective,
    UpperObjective,
)
from bilevel_gym.types.problems import LowerFunction, OuterProblem, Problem, Regularizer
from bilevel_gym.types.rewards import AllActions, Buffered, Domain, Drawing, Ensemble, Played, RewardModel, TabularReward, TransitionReward
from bilevel_gym.types.worlds import Branching, KnownPolicy, Policy, TabularWorldLike, World

__all__ = [
    "MDP",
    "AdvantageObjective",
    "AllActions",
    "AsideObjective",
    "Branching",
    "Budget",
    "Buffered",
    "DiscountedObjective",
    "Domain",
    "Drawing",
    "Ensemble",
    "Estimator",
    "Evaluation",
    "Factor",
    "Fragments",
    "Hypergradient",
    "KnownPolicy",
    "LowerFunction",
    "LowerSolver",
    "Memory",
    "Oracle",
    "OuterProblem",
    "Places",
    "Played",
    "Policy",
    "Problem",
    "Regularizer",
    "Response",
    "RewardModel",
    "SampledObjective",
    "Samples",
    "TabularObjective",
    "TabularReward",
    "TabularWorldLike",
    "Trajectory",
    "TransitionReward",
    "TupleObjective",
    "UpperObjective",
    "World",
]
