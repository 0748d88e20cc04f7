"""The dynamics: what x cannot choose."""

from bilevel_gym.worlds.mujoco import mujoco_world
from bilevel_gym.worlds.policies import LinearPolicy, UniformPolicy
from bilevel_gym.worlds.simulation import Simulation, Transition
from bilevel_gym.worlds.tabular import ControlledWorld, TabularWorld
from bilevel_gym.worlds.vector import VectorWorld

__all__ = ["ControlledWorld", "LinearPolicy", "Simulation", "TabularWorld", "Transition", "UniformPolicy", "VectorWorld", "mujoco_world"]
