"""Atari games as endless worlds of pixels, on ale-py's native vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem, require
from bilevel_gym.frames import FrameStacks
from bilevel_gym.worlds.atari_game import SEEDS, STACK, AtariGame, rom_of
from bilevel_gym.worlds.simulated import SimulatedWorld, check_times
from bilevel_gym.worlds.simulation import VectorEnv

__all__ = ["AtariWorld", "EndlessAtari"]


@dataclass(frozen=True)
class AtariWorld(SimulatedWorld):
    """An Atari game that never ends, as a world: observations are the last four frames, [4, 84, 84] uint8.

    Neither lost lives nor ends of games are shown: where a game is over the next one starts in the same step. That is a decision problem
    of its own, in which the end of a game is a transition like any other: what follows it is the new game's first frame, on which the
    follower acts next, so its value is the right one to bootstrap from, and the stack goes on, three frames of the old game and one of
    the new. Nothing is ever terminated. After ``horizon`` steps all copies are truncated and start anew; what follows *then* is the last
    stack of the old episode, as it has to be.

    A frame is grey, the brighter of the last two screens of a step at each pixel, shrunk by area (see ``AtariGame``, which is one copy of
    this world with states that can be restored, bit for bit the same).

    Args:
        game: such as ``"BeamRider"`` or ``"beam_rider"``.
        discount: γ in [0, 1).
        horizon: steps of an episode.
        full_action_space: all 18 actions, or those that do something in this game.
        frame_skip: emulator frames of a step.
        noops: a game starts with fewer idle frames than this.
        sticky: the probability that the emulator repeats the last action instead, at each frame.
        clip_rewards: whether the true rewards, which teachers and metrics read, are clipped to [−1, 1].
        threads: that step the copies; 0 takes as many as there are cores.
        native: whether ale-py's threads step them, which keep no moments: a run that is resumed starts new episodes. False steps emulators
            in turn, whose episodes a resumed run goes on with, bit for bit, if there are no sticky actions.
        device: where the tensors go.

    Raises:
        MissingExtra: ale-py is not installed.
        UnknownName: there is no such game.
        InvalidProblem: a number is out of range.
    """

    game: str
    discount: float
    _: KW_ONLY
    horizon: int
    full_action_space: bool = False
    frame_skip: int = 4
    noops: int = 30
    sticky: float = 0.0
    clip_rewards: bool = False
    threads: int = 0
    native: bool = True
    device: str | torch.device = "cpu"
    observation_shape: tuple[int, ...] = field(init=False, compare=False)
    """(4, 84, 84)."""
    action_count: int = field(init=False, compare=False, repr=False)
    """A."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_times(self.discount, self.horizon)
        if self.frame_skip < 1 or min(self.noops, self.threads) < 0 or not 0.0 <= self.sticky <= 1.0:
            raise InvalidProblem("frame_skip must be positive, noops and threads not negative, and sticky a probability")
        self._set(device=torch.device(self.device))
        self._describe(self._make(), self.game)

    def _vector(self, num_envs: int, horizon: int) -> VectorEnv:
        if not self.native:
            return self._copies(num_envs, horizon)
        native = require("ale_py", "atari").AtariVectorEnv(
            rom_of(self.game).stem,
            num_envs,
            num_threads=self.threads,
            max_num_frames_per_episode=2**30,
            repeat_action_probability=self.sticky,
            full_action_space=self.full_action_space,
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            stack_num=1,
            frameskip=self.frame_skip,
            noop_max=self.noops,
            reward_clipping=self.clip_rewards,
        )
        return EndlessAtari(native, horizon)

    def _make(self, horizon: int | None = None, **options: Any) -> gym.Env[Any, Any]:
        game = AtariGame(
            self.game,
            full_action_space=self.full_action_space,
            frame_skip=self.frame_skip,
            noops=self.noops,
            sticky=self.sticky,
            clip_rewards=self.clip_rewards,
            **options,
        )
        return gym.wrappers.TimeLimit(game, horizon or self.horizon)

    def _kept(self, observations: Tensor) -> Tensor:
        return observations[:, -1]

    def _table(self, first: Tensor, columns: Sequence[Tensor], steps: int) -> FrameStacks:
        return FrameStacks.sliding(torch.cat([first[:, :-1], super()._table(first, columns, steps)], 1), STACK)


class EndlessAtari(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The native environment with ends of games hidden, stacks that go on through them, and a time limit.

    Args:
        native: an ``ale_py.AtariVectorEnv`` of single frames under SAME_STEP autoreset.
        horizon: steps after which all copies are truncated, and start anew with seeds of their own generators.
    """

    def __init__(self, native: Any, horizon: int) -> None:
        self.native, self.horizon, self.num_envs = native, horizon, native.num_envs
        self.metadata = native.metadata
        self.single_observation_space, self.observation_space = AtariGame.observation_space, native.observation_space
        self.single_action_space, self.action_space = native.single_action_space, native.action_space
        self._stacks = np.zeros((self.num_envs, *AtariGame.observation_space.shape), np.uint8)
        self._elapsed, self._seeds = 0, [np.random.default_rng(0)] * self.num_envs

    def reset(  # type: ignore[override]  # one seed for each copy, as ``SyncVectorEnv`` takes them
        self, *, seed: Sequence[int], options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all copies: [N, 4, 84, 84], which the next step overwrites."""
        self._seeds = [np.random.default_rng(number) for number in seed]
        self._begin(np.array(seed) % SEEDS)
        return self._stacks, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of each copy: [N] actions → [N, 4, 84, 84], [N], [N], [N]; all are truncated at once."""
        frames, rewards, *_ = self.native.step(actions)
        self._elapsed += 1
        self._stacks[:, :-1] = self._stacks[:, 1:]
        self._stacks[:, -1] = frames[:, -1]
        ended = np.full(self.num_envs, self._elapsed == self.horizon)
        info = {}
        if ended.any():
            info = {"final_obs": self._stacks.copy(), "_final_obs": ended}
            self._begin(np.array([generator.integers(SEEDS) for generator in self._seeds]))
        return self._stacks, rewards, np.zeros_like(ended), ended, info

    def _begin(self, seeds: np.ndarray) -> None:
        frames, _ = self.native.reset(seed=seeds)
        self._stacks[:], self._elapsed = frames, 0
