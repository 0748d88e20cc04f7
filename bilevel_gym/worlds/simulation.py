"""Live episodes of a Gymnasium vector environment, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, SimulatorLost

__all__ = ["Moment", "Simulation", "Transition", "VectorEnv", "as_observations"]

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]


class Transition(NamedTuple):
    """What one step of N parallel episodes brought."""

    following: Tensor
    """[N, *observation] s': the *last* observation of an episode that has just ended, never the first of the next one."""
    rewards: Tensor
    """[N] the true reward, which only teachers and metrics may read."""
    terminated: Tensor
    """[N] bool: s' is an end, so its value is 0."""
    truncated: Tensor
    """[N] bool: the horizon was reached; s' has a value, and a learner must bootstrap from it."""
    terms: Tensor | None = None
    """[N, K] the named parts of the true reward, where some were asked for."""


class Moment(NamedTuple):
    """Where N episodes stand: plain data, from which others made in the same way go on bit for bit."""

    observations: Tensor
    """[N, *observation] what to act on next."""
    copies: tuple[Any, ...]
    """[N] each environment's own (see ``snapshots``)."""


class Simulation:
    """N live episodes in a Gymnasium vector environment under SAME_STEP autoreset: an episode that ends starts anew in the same step.

    Args:
        env: with ``autoreset_mode=AutoresetMode.SAME_STEP``.
        device: where the tensors go.
        terms: K names of numbers that each step's ``info`` has, such as MuJoCo's ``"reward_forward"``.
    """

    def __init__(self, env: VectorEnv, device: torch.device, terms: Sequence[str] = ()) -> None:
        self.env = env
        self.terms = tuple(terms)
        self.device = device
        self.seeds: list[int] = []
        """[N] what the last ``reset`` gave to each copy."""
        self._observations: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether an action may follow: False before the first ``reset``, and after a step that an exception cut short."""
        return self._observations is not None

    @property
    def observations(self) -> Tensor:
        """[N, *observation] what to act on next: float32, pixels uint8.

        Raises:
            RuntimeError: there is nothing to act on; call ``reset``.
        """
        if self._observations is None:
            raise RuntimeError("no episode is under way; call reset(seed) first")
        return self._observations

    def reset(self, seed: int) -> Tensor:
        """Start N episodes, which depend on the seed alone: [N, *observation]."""
        self.seeds = np.random.SeedSequence(seed).generate_state(self.env.num_envs).tolist()
        observations, _ = self._answer(self.env.reset, seed=self.seeds)
        self._observations = as_observations(observations, self.device)
        return self._observations

    @property
    def moment(self) -> Moment | None:
        """Where the episodes stand; None where that cannot be kept. Cost: some hundred numbers a copy; of Atari a stack of frames."""
        try:
            copies = self.env.get_attr("moment") if self.ready else ()  # type: ignore[attr-defined]
        except AttributeError:  # an environment of another kind, or copies without
            return None
        return None if not copies or None in copies else Moment(self.observations, tuple(copies))

    def go_to(self, moment: Moment) -> None:
        """Go on from a moment of N such episodes, also of another process."""
        self._observations = None
        self.env.set_attr("moment", list(moment.copies))  # type: ignore[attr-defined]
        self._observations = moment.observations.to(self.device)

    def step(self, actions: Tensor) -> Transition:
        """Play one action in each copy.

        Args:
            actions: [N, action] in the environment's units, or [N] of finitely many.

        Returns:
            what came of it; ``observations`` has moved on to what follows.

        Raises:
            InvalidProblem: ``info`` lacks one of the terms.
            SimulatorLost: a process that steps a copy has died.
        """
        self._observations = None  # an exception in here leaves some copies a step ahead: no action may follow then
        observations, rewards, terminated, truncated, info = self._answer(self.env.step, actions.detach().cpu().numpy())
        following = self._observations = as_observations(observations, self.device)
        if "final_obs" in info:
            following = following.clone()
            ended = np.flatnonzero(info["_final_obs"])
            following[ended] = as_observations(np.stack(info["final_obs"][ended]), self.device)
        return Transition(
            following,
            self._tensor(rewards, torch.float32),
            self._tensor(terminated, torch.bool),
            self._tensor(truncated, torch.bool),
            self._tensor(self._reported(info), torch.float32) if self.terms else None,
        )

    def close(self) -> None:
        """Close every copy."""
        self.env.close()

    def abandon(self) -> None:
        """Close every copy without asking it, as one in the middle of a step, or dead, would not answer."""
        self._observations = None
        for process in getattr(self.env, "processes", ()):
            process.terminate()
        self.env.closed = True

    def _answer(self, ask: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return ask(*arguments, **named)
        except (EOFError, ConnectionError) as error:
            self.abandon()
            raise SimulatorLost(
                "a process that steps a copy of the simulator has died, of a lack of memory or by a signal; resume from the last checkpoint"
            ) from error

    def _reported(self, info: dict[str, Any]) -> np.ndarray:
        """The terms of the step: [N, K]. Those of an episode that has just ended are in ``final_info``."""
        table = np.full((self.env.num_envs, len(self.terms)), np.nan)
        for said in (info, info.get("final_info", {})):
            for column, name in enumerate(self.terms):
                if name in said:
                    here = said[f"_{name}"]
                    table[here, column] = np.asarray(said[name], dtype=np.float64)[here]
        if np.isnan(table).any():
            known = sorted(name for name in info if not name.startswith("_"))
            raise InvalidProblem(f"the steps do not report all of {list(self.terms)} as numbers: what they report is {known}")
        return table

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(values).to(self.device, dtype, copy=True)


def as_observations(values: np.ndarray, device: torch.device) -> Tensor:
    """Observations as networks take them, copied: stacks of pictures [N, stack, height, width] uint8, all else float32.

    Raises:
        InvalidProblem: one of them is not finite, of which no policy and no reward could make anything.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidProblem(
            "an observation of the environment has a NaN or an infinity, which no network can read: see to the environment, or put a wrapper around it"
        )
    return torch.as_tensor(values).to(device, torch.uint8 if values.ndim == 4 else torch.float32, copy=True)
