"""One Atari game on ALE's own interface: the pixels of the native vector environment, and states that can be kept and restored."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from bilevel_gym.errors import UnknownName, require

__all__ = ["HEIGHT", "SEEDS", "STACK", "WIDTH", "AtariGame", "GameState", "StartNoops", "rom_of", "shrink"]

HEIGHT, WIDTH, STACK = 84, 84, 4
"""Pixels of a frame, and frames of a stack."""

SEEDS = 2**31
"""ALE reads seeds as 32-bit integers, and takes a negative one for none: seeds are taken modulo this."""


class GameState(NamedTuple):
    """A moment of an ``AtariGame``."""

    emulator: bytes
    """ALE's state with its random numbers."""
    stack: np.ndarray
    """[stack, height, width] what was seen."""
    noops: Any
    """The generator of idle frames."""


class AtariGame(gym.Env[np.ndarray, np.int64]):
    """An endless Atari game: the frames, rewards and random numbers of ``ale_py.AtariVectorEnv`` with one copy, bit for bit.

    A step repeats an action for ``frame_skip`` emulator frames. A frame is the brighter of the last two screens at each pixel, in grey,
    shrunk to 84 × 84 by area; an observation holds the last four, the first one repeated at the start. Where a game is over another
    one starts in the same step (with idle frames, and FIRE where the game has it), and the stack goes on: neither the loss of a life
    nor the end of a game is shown in any other way.

    Args:
        game: such as ``"BeamRider"`` or ``"beam_rider"``.
        full_action_space: all 18 actions, or those that do something in this game.
        frame_skip: emulator frames of a step.
        noops: a game starts with fewer idle frames than this.
        sticky: the probability that the emulator repeats the last action instead.
        clip_rewards: whether rewards are clipped to [−1, 1].
        render_mode: ``"rgb_array"``, the screen [210, 160, 3], or None.

    Raises:
        MissingExtra: ale-py is not installed.
        UnknownName: there is no such game.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}
    observation_space = gym.spaces.Box(0, 255, (STACK, HEIGHT, WIDTH), np.uint8)

    def __init__(
        self,
        game: str,
        *,
        full_action_space: bool = False,
        frame_skip: int = 4,
        noops: int = 30,
        sticky: float = 0.0,
        clip_rewards: bool = False,
        render_mode: str | None = None,
    ) -> None:
        ale_py = require("ale_py", "atari")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._rom, self.render_mode = rom_of(game), render_mode
        self._skip, self._clip, self._noop_max, self.sticky = frame_skip, clip_rewards, noops, sticky
        self.emulator = ale_py.ALEInterface()
        self.emulator.setFloat("repeat_action_probability", sticky)
        self.emulator.loadROM(self._rom)
        self._actions = self.emulator.getLegalActionSet() if full_action_space else self.emulator.getMinimalActionSet()
        self._idle, self._fire = ale_py.Action.NOOP, ale_py.Action.FIRE if ale_py.Action.FIRE in self._actions else None
        self.action_space = gym.spaces.Discrete(len(self._actions))
        self._noops = StartNoops(noops, 0)
        self._stack = np.zeros((STACK, HEIGHT, WIDTH), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game; a seed decides, with the actions, all that follows."""
        super().reset(seed=seed)
        if seed is not None:
            self.emulator.setInt("random_seed", seed % SEEDS)
            self.emulator.loadROM(self._rom)
            self._noops = StartNoops(self._noop_max, seed % SEEDS)
        self._stack[:] = self._start()
        return self._stack.copy(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Repeat an action; nothing ever ends here."""
        reward, screens = 0, []
        for left in range(self._skip, 0, -1):
            reward += self.emulator.act(self._actions[action])
            if over := self.emulator.game_over():
                break
            if left <= 2:
                screens.append(self.emulator.getScreenGrayscale())
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = self._start() if over else shrink(np.maximum.reduce(screens))
        return self._stack.copy(), float(np.clip(reward, -1, 1) if self._clip else reward), False, False, {}

    def render(self) -> np.ndarray | None:
        """The screen in colours: [210, 160, 3] uint8."""
        return self.emulator.getScreenRGB() if self.render_mode == "rgb_array" else None

    def state(self) -> GameState:
        """This moment, with every counter and random number; with sticky actions all but the action that may be repeated next."""
        return GameState(self.emulator.cloneState(include_rng=True).serialize(), self._stack.copy(), self._noops.bits.state)

    def set_state(self, state: GameState) -> None:
        """Go back to a moment of this game, which may have been another copy's."""
        self.emulator.restoreState(require("ale_py", "atari").ALEState(state.emulator))
        self._stack[:], self._noops.bits.state = state.stack, state.noops

    def _start(self) -> np.ndarray:
        """A new game, idle for a while: its first frame."""
        self.emulator.reset_game()
        if self._fire is not None:
            self.emulator.act(self._fire)
        for _ in range(self._noops.draw() - (self._fire is not None)):
            self.emulator.act(self._idle)
            if self.emulator.game_over():
                self.emulator.reset_game()
        return shrink(self.emulator.getScreenGrayscale())


class StartNoops:
    """The numbers of idle frames that the native environment draws, uniform in 0, …, ``bound`` − 1, or always 0.

    They come from C++'s mt19937 by multiplication and rejection (Lemire, "Fast random integer generation in an interval", 2019), which
    is what GCC's library does; where ale-py was built with another library the law is the same and the numbers are not.

    Args:
        bound: one more than the largest number; 0 as 1.
        seed: of the generator, below 2³².
    """

    def __init__(self, bound: int, seed: int) -> None:
        self.bound = max(bound, 1)
        key = [seed]
        for position in range(1, 624):  # mt19937 as every C++ library seeds it
            key.append((1812433253 * (key[-1] ^ (key[-1] >> 30)) + position) % 2**32)
        state: Any = {"bit_generator": "MT19937", "state": {"key": np.array(key, np.uint32), "pos": 624}}
        self.bits = np.random.MT19937()
        self.bits.state = state

    def draw(self) -> int:
        """The next number."""
        while True:
            product = int(self.bits.random_raw()) * self.bound
            if product % 2**32 >= 2**32 % self.bound:
                return product >> 32


def shrink(screen: np.ndarray) -> np.ndarray:
    """A screen [height, width] in 84 × 84 pixels, each the mean of the area that it covers: what OpenCV's INTER_AREA gives, bit for bit."""
    rows, columns = _area(screen.shape[0], HEIGHT), _area(screen.shape[1], WIDTH)
    wide = _mix(screen.astype(np.float32).T, *columns)
    pixels: np.ndarray = np.rint(_mix(wide.T, *rows)).astype(np.uint8)
    return pixels


def _mix(lines: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of lines, added up in one fixed order."""
    total: np.ndarray = lines[places[0]] * weights[0][:, None]
    for place, weight in zip(places[1:], weights[1:], strict=True):
        total += lines[place] * weight[:, None]
    return total


@cache
def _area(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``target`` pixels which of ``source`` pixels it covers, and with what share: two [taps, target]."""
    scale = source / target
    begin = scale * np.arange(target)
    end, size = begin + scale, np.minimum(scale, source - begin)
    taps = np.floor(begin).astype(int) + np.arange(int(np.ceil(scale)) + 1)[:, None]
    covered = (np.minimum(taps + 1, end) - np.maximum(taps, begin)).clip(0.0)
    covered[covered < 1e-3] = 0.0  # OpenCV leaves slivers out
    return taps.clip(max=source - 1), (covered / size).astype(np.float32)


def rom_of(game: str) -> Any:
    """Where the program of a game is.

    Raises:
        UnknownName: there is no such game.
    """
    roms = require("ale_py.roms", "atari")
    known = {name.title().replace("_", ""): name for name in roms.get_all_rom_ids()}
    if game not in known and game not in known.values():
        raise UnknownName("game", game, list(known))
    return roms.get_rom_path(known.get(game, game))
