"""The random streams of many environments, each what a single one has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Self, cast

import numpy as np
import torch
from gymnasium.utils import seeding

from bilevel_gym.envs.bilevel_env import generator_at
from bilevel_gym.errors import InvalidProblem

__all__ = ["Streams"]


@dataclass
class Streams:
    """N members' sources of randomness, all of them state."""

    sources: list[np.random.Generator]
    """What Gymnasium calls ``np_random``: instances are drawn from it, and seeds of the others."""
    drawn_from: list[np.random.Generator]
    """Where ``sources`` stood when the present instances were drawn."""
    generators: list[torch.Generator]
    """Of solves and evaluations."""
    asides: list[torch.Generator]
    """Of what agents ask on the side."""
    seeded: bool = False
    """Whether there has been a reset."""

    @classmethod
    def fresh(cls, count: int, device: torch.device) -> Self:
        """Streams before the first reset: the instance is that of seed 0."""
        sources, drawn_from = ([np.random.default_rng(0) for _ in range(count)] for _ in range(2))
        generators, asides = ([torch.Generator(device=device) for _ in range(count)] for _ in range(2))
        return cls(sources, drawn_from, generators, asides)

    def seed(self, seed: int | Sequence[int | None] | None) -> list[np.random.Generator]:
        """Start the streams of those members that are given a seed anew.

        Args:
            seed: s stands for s, s + 1, …; a list gives each member its own, or None to leave it as it is.

        Returns:
            what the instances of all members are to be drawn from; empty where they stay.

        Raises:
            InvalidProblem: a wrong number of seeds, or none.
        """
        count = len(self.sources)
        try:
            if isinstance(seed, list | tuple | np.ndarray):
                seeds = [None if own is None else index(own) for own in seed]
            else:
                seeds = [None if seed is None else index(cast(Any, seed)) + i for i in range(count)]
        except TypeError as error:
            raise InvalidProblem(f"seed is {seed!r}: give a whole number, or a list of one for each of {count} members") from error
        if len(seeds) != count:
            raise InvalidProblem(f"{len(seeds)} seeds for {count} members: give one each, or a single number")
        fresh = not self.seeded
        self.sources = [
            seeding.np_random(own)[0] if own is not None or fresh else source for own, source in zip(seeds, self.sources, strict=True)
        ]
        for i, own in enumerate(seeds):
            if own is not None:
                self.drawn_from[i].bit_generator.state = self.sources[i].bit_generator.state
        self.seeded = True
        if all(own is None for own in seeds):
            return []
        return [
            generator_at(drawn.bit_generator.state) if own is None else source
            for own, source, drawn in zip(seeds, self.sources, self.drawn_from, strict=True)
        ]

    def all(self) -> list[np.random.Generator | torch.Generator]:
        """Every one of them."""
        return [*self.sources, *self.drawn_from, *self.generators, *self.asides]

    def restart(self) -> None:
        """New seeds for the torch generators, as every cold reset gives them."""
        for *generators, source in zip(self.generators, self.asides, self.sources, strict=True):
            for generator in generators:
                generator.manual_seed(int(source.integers(2**63 - 1)))
