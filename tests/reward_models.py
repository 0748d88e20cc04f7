"""One reward network of each kind, and pairs for it to look at: what the table of reward models runs over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.rewards import CNNReward, DiscreteMLPReward, MLPReward, NetworkReward
from bilevel_gym.rewards.convolutions import Convolution
from bilevel_gym.types import Fragments

ACTIONS = 3
SHAPE = (2, 12, 12)
SMALL: dict[str, Any] = {"observation_shape": SHAPE, "layers": (Convolution(2, 3, 2), Convolution(3, 3)), "hidden": 4}


def generator(seed: int = 0) -> torch.Generator:
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


def box_pairs(*leading: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Observations of unequal size and place, and actions of a box."""
    source = generator(seed)
    states = torch.randn(*leading, 4, generator=source) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + torch.tensor([0.0, 3.0, 1.0, -1.0])
    return states, 2.0 * torch.rand(*leading, 2, generator=source) - 1.0


def flat_pairs(*leading: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same observations, and numbers of actions."""
    return box_pairs(*leading, seed=seed)[0], torch.randint(ACTIONS, leading, generator=generator(seed + 1))


def pixel_pairs(*leading: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Stacks of frames, and numbers of actions."""
    frames = torch.randint(256, (*leading, *SHAPE), generator=generator(seed), dtype=torch.uint8)
    return frames, torch.randint(ACTIONS, leading, generator=generator(seed + 1))


@dataclass(frozen=True)
class Kind:
    """How a model is made, and what it looks at."""

    make: Callable[..., NetworkReward]
    pairs: Callable[..., tuple[Tensor, Tensor]]


def _box(**options: Any) -> Kind:
    return Kind(lambda **more: MLPReward(4, 2, hidden=(5, 3), **options, **more), box_pairs)


def _flat(**options: Any) -> Kind:
    return Kind(lambda **more: DiscreteMLPReward(4, ACTIONS, hidden=(5, 3), **options, **more), flat_pairs)


def _pixels(**options: Any) -> Kind:
    return Kind(lambda **more: CNNReward(ACTIONS, **SMALL, **options, **more), pixel_pairs)


KINDS = {
    "mlp": _box(),
    "mlp-ensemble": _box(members=3),
    "mlp-normalized": _box(normalize=("observations", "rewards"), scale=2.0),
    "mlp-normalized-ensemble": _box(normalize=("observations", "rewards"), members=2),
    "discrete": _flat(),
    "discrete-ensemble": _flat(members=3),
    "discrete-normalized": _flat(normalize=("observations",)),
    "cnn": _pixels(),
    "cnn-clipped": _pixels(squash="clip"),
    "cnn-ensemble": _pixels(members=2),
    "cnn-batch": _pixels(norm="batch", dropout=0.5),
    "cnn-batch-ensemble": _pixels(norm="batch", members=2, normalize=("rewards",)),
}


def fragments(kind: Kind, count: int = 6, seed: int = 10) -> Fragments:
    """Pairs of fragments of four steps, some of which end early, and who was preferred."""
    states, actions = kind.pairs(count, 2, 4, seed=seed)
    alive = torch.rand(count, 2, 1, generator=generator(seed)) * 6 > torch.arange(4)
    alive[..., 0] = True
    return Fragments(states, actions, alive, torch.tensor([0.0, 1.0, 0.5]).repeat(count)[:count])


def looked(name: str, seed: int = 0) -> tuple[NetworkReward, Tensor, Kind]:
    """A model that has seen something, an x for it, and its kind."""
    kind = KINDS[name]
    reward = kind.make()
    x = reward.initial(generator(seed))
    return reward.absorb(x, fragments(kind)), x, kind
