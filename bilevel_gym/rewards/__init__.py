"""r_x: what x chooses."""

from bilevel_gym.rewards.box import Box
from bilevel_gym.rewards.function import FunctionReward
from bilevel_gym.rewards.incentive import IncentiveReward
from bilevel_gym.rewards.network import DiscreteMLPReward, MLPReward
from bilevel_gym.rewards.quadratic_cost import QuadraticCost
from bilevel_gym.rewards.tabular import LinearReward, QuadraticReward

__all__ = [
    "Box",
    "DiscreteMLPReward",
    "FunctionReward",
    "IncentiveReward",
    "LinearReward",
    "MLPReward",
    "QuadraticCost",
    "QuadraticReward",
]
