"""r_x: what x chooses."""

from bilevel_gym.rewards.network import MLPReward
from bilevel_gym.rewards.tabular import LinearReward, QuadraticReward

__all__ = ["LinearReward", "MLPReward", "QuadraticReward"]
