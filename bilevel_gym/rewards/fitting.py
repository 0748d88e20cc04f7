"""The reward network that fits a world."""

from __future__ import annotations

from typing import Any, Unpack

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards.mlp import DiscreteMLPReward, MLPReward
from bilevel_gym.rewards.network import NetworkOptions, NetworkReward
from bilevel_gym.rewards.pixels import CNNReward

__all__ = ["network_for"]


def network_for(world: Any, *, hidden: tuple[int, ...] = (64, 64), **options: Unpack[NetworkOptions]) -> NetworkReward:
    """A perceptron for flat observations, convolutions for stacks of frames, on the world's device unless another is named.

    Args:
        world: with ``observation_shape``, and ``action_count`` or the box of actions, such as ``worlds.VectorWorld``.
        hidden: widths of the hidden layers of a perceptron; behind convolutions there is one, of the last of these widths.
        **options: see ``NetworkReward``.

    Raises:
        InvalidProblem: no reward network reads such observations with such actions.
    """
    shape: tuple[int, ...] | None = getattr(world, "observation_shape", None)
    discrete = hasattr(world, "action_count")
    if shape is not None and len(shape) == 1 and (discrete or hasattr(world, "action_low")):
        return (DiscreteMLPReward if discrete else MLPReward).for_world(world, hidden=hidden, **options)
    if shape is not None and len(shape) == 3 and discrete and hidden:
        return CNNReward.for_world(world, hidden=hidden[-1], **options)
    actions = "finitely many actions" if discrete else "a box of actions" if hasattr(world, "action_low") else "no known kind of actions"
    raise InvalidProblem(
        f"no reward network fits observations of shape {shape} with {actions}: flat observations take either kind of actions, stacks of frames "
        "(stack, height, width) finitely many and one hidden layer; wrap the environment, or write a reward model (types.RewardModel)"
    )
