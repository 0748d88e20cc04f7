"""Policies of Stable-Baselines3 in our protocol, and the global random generators that they draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.numerics import draw_seed

__all__ = ["SB3Policy", "private_randomness"]


@dataclass(frozen=True)
class SB3Policy:
    """A policy of Stable-Baselines3 that learns no more; its draws come from the generator that is given, and torch's own stays as it is.

    The network does not outlive a checkpoint, but its parameters do: ``SB3Solver.revive``, which ``env.set_state`` calls, brings it back.
    """

    module: Any = field(default=None, metadata={"transient": True})
    """The policy there, in evaluation mode."""

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each observation: [n, *observation] → [n, action], or [n] int64. Policies of DQN and TD3 are greedy."""
        with private_randomness(draw_seed(generator), observations.device):
            return self._predict(observations, deterministic=False)

    def mean(self, observations: Tensor) -> Tensor:
        """The action that evaluation plays: [n, *observation] → [n, action], or [n] int64."""
        return self._predict(observations, deterministic=True)

    def probabilities(self, observations: Tensor) -> Tensor:
        """π(·|s) of finitely many actions: [n, *observation] → [n, A]."""
        module = self._alive()
        if not hasattr(module, "get_distribution"):
            return torch.nn.functional.one_hot(self.mean(observations), int(module.action_space.n)).to(torch.float32)
        with torch.no_grad():
            probabilities: Tensor = module.get_distribution(observations).distribution.probs
        return probabilities

    def _predict(self, observations: Tensor, *, deterministic: bool) -> Tensor:
        actions, _ = self._alive().predict(observations.cpu().numpy(), deterministic=deterministic)
        return torch.as_tensor(actions, device=observations.device)

    def _alive(self) -> Any:
        if self.module is None:
            raise UnsupportedProblem(
                "this policy was read from a checkpoint without its network: env.set_state, or solver.revive(problem, response), brings it back"
            )
        return self.module


@contextmanager
def private_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Global generators that begin at a seed, and are put back afterwards: Stable-Baselines3 draws from them."""
    cuda = [device] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # theirs are put back, nothing of ours draws from them
    with torch.random.fork_rng(cuda):
        try:
            random.setstate(random.Random(seed).getstate())
            np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002
            for generator in (torch.default_generator, *(torch.cuda.default_generators[one.index or 0] for one in cuda)):
                generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
