"""The dynamics: what x cannot choose."""

from bilevel_gym.transitions import SparseTransition
from bilevel_gym.worlds.atari import AtariWorld
from bilevel_gym.worlds.atari_game import AtariGame
from bilevel_gym.worlds.controlled import ControlledWorld
from bilevel_gym.worlds.gridworlds import DIRECTIONS, FOUR_ROOMS, SIDEWAYS, Grid, GridWorld, chain, four_rooms, open_grid
from bilevel_gym.worlds.linear_gaussian import LinearGaussianWorld
from bilevel_gym.worlds.mujoco import mujoco_world
from bilevel_gym.worlds.policies import LinearPolicy, SoftmaxPolicy, UniformChoice, UniformPolicy
from bilevel_gym.worlds.simulation import Simulation, Transition
from bilevel_gym.worlds.snapshots import restore, snapshot
from bilevel_gym.worlds.tabular import TabularWorld
from bilevel_gym.worlds.toy_text import from_gymnasium
from bilevel_gym.worlds.vector import Endless, VectorWorld

__all__ = [
    "DIRECTIONS",
    "FOUR_ROOMS",
    "SIDEWAYS",
    "AtariGame",
    "AtariWorld",
    "ControlledWorld",
    "Endless",
    "Grid",
    "GridWorld",
    "LinearGaussianWorld",
    "LinearPolicy",
    "Simulation",
    "SoftmaxPolicy",
    "SparseTransition",
    "TabularWorld",
    "Transition",
    "UniformChoice",
    "UniformPolicy",
    "VectorWorld",
    "chain",
    "four_rooms",
    "from_gymnasium",
    "mujoco_world",
    "open_grid",
    "restore",
    "snapshot",
]
