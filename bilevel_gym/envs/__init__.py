"""The outer environment, and the catalogue of registered problems."""

from bilevel_gym.envs.apprenticeship import apprenticeship, reward_null_space
from bilevel_gym.envs.atari_preference import atari_preference
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.contract_design import ContractTree, contract_design, draw_contract_tree
from bilevel_gym.envs.data_hyper_cleaning import data_hyper_cleaning, draw_data_hyper_cleaning
from bilevel_gym.envs.four_rooms import four_rooms_incentive
from bilevel_gym.envs.members import Member, VectorOracle
from bilevel_gym.envs.oracle import Counters, ProblemOracle
from bilevel_gym.envs.policy_teaching import policy_teaching
from bilevel_gym.envs.preference import gym_preference
from bilevel_gym.envs.preference_presets import FLAT, PIXELS, Preset
from bilevel_gym.envs.quadratic_bilevel import draw_quadratic_bilevel, quadratic_bilevel
from bilevel_gym.envs.random_mdp import draw_random_mdp, random_mdp
from bilevel_gym.envs.rendering import grid_picture, policy_picture
from bilevel_gym.envs.reward_shaping import reward_shaping
from bilevel_gym.envs.reward_terms import RunningLightly, reward_terms
from bilevel_gym.envs.ridge_regression import draw_ridge_regression, ridge_regression
from bilevel_gym.envs.robot_navigation import drive_cost, robot_navigation
from bilevel_gym.envs.soft_lqr import draw_soft_lqr, soft_lqr
from bilevel_gym.envs.stackelberg_game import MarkovGame, draw_markov_game, stackelberg_game
from bilevel_gym.envs.tabular_preference import preference_null_space, tabular_preference
from bilevel_gym.envs.tax_design import Households, tax_design
from bilevel_gym.envs.true_reward import with_true_reward
from bilevel_gym.envs.vector_env import BilevelVectorEnv
from bilevel_gym.envs.wrap import wrap_env

__all__ = [
    "FLAT",
    "PIXELS",
    "BilevelEnv",
    "BilevelVectorEnv",
    "ContractTree",
    "Counters",
    "Households",
    "MarkovGame",
    "Member",
    "Preset",
    "ProblemOracle",
    "RunningLightly",
    "VectorOracle",
    "apprenticeship",
    "atari_preference",
    "contract_design",
    "data_hyper_cleaning",
    "draw_contract_tree",
    "draw_data_hyper_cleaning",
    "draw_markov_game",
    "draw_quadratic_bilevel",
    "draw_random_mdp",
    "draw_ridge_regression",
    "draw_soft_lqr",
    "drive_cost",
    "four_rooms_incentive",
    "grid_picture",
    "gym_preference",
    "policy_picture",
    "policy_teaching",
    "preference_null_space",
    "quadratic_bilevel",
    "random_mdp",
    "reward_null_space",
    "reward_shaping",
    "reward_terms",
    "ridge_regression",
    "robot_navigation",
    "soft_lqr",
    "stackelberg_game",
    "tabular_preference",
    "tax_design",
    "with_true_reward",
    "wrap_env",
]
