"""Checks that are shipped: of gradients, and of outer environments."""

from bilevel_gym.testing.enumeration import enumerated_critic
from bilevel_gym.testing.environment import check_bilevel_env
from bilevel_gym.testing.hypergradient import Comparison, central_differences, check_hypergradient, compare, phi

__all__ = ["Comparison", "central_differences", "check_bilevel_env", "check_hypergradient", "compare", "enumerated_critic", "phi"]
