"""r_x: what x chooses."""

from bilevel_gym.rewards.all_actions import AllActionsReward
from bilevel_gym.rewards.box import Box, CornerBox
from bilevel_gym.rewards.environment import EnvironmentReward
from bilevel_gym.rewards.features import FeatureReward
from bilevel_gym.rewards.fitting import network_for
from bilevel_gym.rewards.function import FunctionReward
from bilevel_gym.rewards.incentive import IncentiveReward
from bilevel_gym.rewards.mlp import DiscreteMLPReward, MLPReward
from bilevel_gym.rewards.network import NetworkReward
from bilevel_gym.rewards.normalizer import Buffers
from bilevel_gym.rewards.pixels import CNNReward
from bilevel_gym.rewards.quadratic_cost import QuadraticCost
from bilevel_gym.rewards.tabular import LinearReward, QuadraticReward
from bilevel_gym.rewards.terms import RewardTerms

__all__ = [
    "AllActionsReward",
    "Box",
    "Buffers",
    "CNNReward",
    "CornerBox",
    "DiscreteMLPReward",
    "EnvironmentReward",
    "FeatureReward",
    "FunctionReward",
    "IncentiveReward",
    "LinearReward",
    "MLPReward",
    "NetworkReward",
    "QuadraticCost",
    "QuadraticReward",
    "RewardTerms",
    "network_for",
]
