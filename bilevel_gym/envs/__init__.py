"""The outer environment, and the catalogue of registered problems."""

from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.oracle import Counters, ProblemOracle
from bilevel_gym.envs.preference import PRESETS, Preset, gym_preference
from bilevel_gym.envs.random_mdp import draw_random_mdp, random_mdp
from bilevel_gym.envs.vector_env import BilevelVectorEnv, Member, VectorOracle

__all__ = [
    "PRESETS",
    "BilevelEnv",
    "BilevelVectorEnv",
    "Counters",
    "Member",
    "Preset",
    "ProblemOracle",
    "VectorOracle",
    "draw_random_mdp",
    "gym_preference",
    "random_mdp",
]
