"""Soft backups, linear solves and views of flat parameters: the arithmetic under every station.

Every function broadcasts over leading axes: a batch of problems is the same code with one more axis. A transition [S, A, S] may be
shared by a batch of values [B, S], and it may be dense or a ``SparseTransition``: who calls these functions does not see the difference.
"""

from bilevel_gym.numerics.backups import (
    Transitions,
    backup,
    dense,
    expect_next,
    expect_pairs,
    matvec,
    policy_transition,
    push_forward,
    staying,
)
from bilevel_gym.numerics.boxes import EDGE, EDGE_DRIVE, place_in_box
from bilevel_gym.numerics.draws import draw_categorical, draw_horizons, draw_seed
from bilevel_gym.numerics.functions import ArrayLike, TableFunction, as_table, gradients, rewards_of, split_flat, stack_functions, vjp
from bilevel_gym.numerics.krylov import KrylovSolution, conjugate_gradient
from bilevel_gym.numerics.systems import adjoint, factorize, policy_value, solve_transposed

__all__ = [
    "EDGE",
    "EDGE_DRIVE",
    "ArrayLike",
    "KrylovSolution",
    "TableFunction",
    "Transitions",
    "adjoint",
    "as_table",
    "backup",
    "conjugate_gradient",
    "dense",
    "draw_categorical",
    "draw_horizons",
    "draw_seed",
    "expect_next",
    "expect_pairs",
    "factorize",
    "gradients",
    "matvec",
    "place_in_box",
    "policy_transition",
    "policy_value",
    "push_forward",
    "rewards_of",
    "solve_transposed",
    "split_flat",
    "stack_functions",
    "staying",
    "vjp",
]
