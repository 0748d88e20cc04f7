"""How the follower learns."""

from bilevel_gym.solvers.base import TabularSolver
from bilevel_gym.solvers.continuation import Continuation, Stage, UnregularizedGap, anneal, unregularized_gap
from bilevel_gym.solvers.discrete_sac import DiscreteSAC
from bilevel_gym.solvers.gradient_descent import GradientDescentSolver
from bilevel_gym.solvers.policy_iteration import SoftPolicyIteration
from bilevel_gym.solvers.riccati import Riccati
from bilevel_gym.solvers.sac import SAC
from bilevel_gym.solvers.sb3 import SB3Solver, from_sb3
from bilevel_gym.solvers.soft_q import SoftQ
from bilevel_gym.solvers.value_iteration import SoftValueIteration

__all__ = [
    "SAC",
    "Continuation",
    "DiscreteSAC",
    "GradientDescentSolver",
    "Riccati",
    "SB3Solver",
    "SoftPolicyIteration",
    "SoftQ",
    "SoftValueIteration",
    "Stage",
    "TabularSolver",
    "UnregularizedGap",
    "anneal",
    "from_sb3",
    "unregularized_gap",
]
