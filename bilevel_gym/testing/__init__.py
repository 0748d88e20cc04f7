"""Checks that are shipped: of gradients, and of outer environments."""

from bilevel_gym.testing.enumeration import enumerated_critic
from bilevel_gym.testing.environment import EXPECTED_ADVICE, check_bilevel_env
from bilevel_gym.testing.hypergradient import Comparison, central_differences, check_hypergradient, compare, phi

__all__ = [
    "EXPECTED_ADVICE",
    "Comparison",
    "central_differences",
    "check_bilevel_env",
    "check_hypergradient",
    "compare",
    "enumerated_critic",
    "phi",
]
