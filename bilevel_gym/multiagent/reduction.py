"""From the game back to the leader's problem alone: any lower-level solver takes the follower's seat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.multiagent.game import FOLLOWER, LEADER
from bilevel_gym.multiagent.leader_follower import LeaderFollowerAEC, LeaderFollowerParallel
from bilevel_gym.numerics import draw_categorical, draw_seed
from bilevel_gym.types import Evaluation, LowerSolver, Response

__all__ = ["PlayedRounds", "follower_of", "play_rounds", "to_outer"]


def follower_of(problem: Any, policy: Any, generator: torch.Generator) -> Callable[[np.ndarray], Any]:
    """A response's policy as a player of ``follower_0``'s seat.

    Args:
        problem: the game's.
        policy: [S, A] (or [C, S, A]) on tables, a ``types.Policy`` elsewhere.
        generator: the source of its draws.

    Returns:
        observation → action, of the follower's spaces.
    """
    if not problem.tabular:
        return lambda seen: policy.sample(torch.as_tensor(seen, device=generator.device)[None], generator)[0].cpu().numpy()
    contexts, states = policy.shape[0] if policy.ndim > 2 else 0, policy.shape[-2]

    def act(seen: np.ndarray) -> int:
        """Draw from the row of the state that is seen."""
        own = policy[int(seen[:contexts].argmax())] if contexts else policy
        return int(draw_categorical(own[int(seen[contexts : contexts + states].argmax())][None], generator))

    return act


def play_rounds(
    env: LeaderFollowerParallel, x: np.ndarray, follower: Callable[[np.ndarray], Any], rounds: int, *, seed: int | None = None
) -> np.ndarray:
    """The leader's rewards at the ends of so many rounds under one x: [rounds].

    Args:
        env: the game, which is reset.
        x: [D].
        follower: observation → action.
        rounds: how many.
        seed: of the reset.

    Raises:
        InvalidProblem: not that form of the game, or fewer rounds than one; or ``max_cycles`` ends the game before. (To go on after a reset would drop the rounds that were cut off, the long ones.)
    """
    if not isinstance(env.unwrapped, LeaderFollowerParallel) or rounds < 1:
        raise InvalidProblem(
            f"{type(env).__name__} for {rounds} rounds: give multiagent.leader_follower(problem, 'parallel'), and one round at least"
        )
    observations, _ = env.reset(seed=seed)
    earned: list[float] = []
    while len(earned) < rounds:
        if not env.agents:
            raise InvalidProblem(f"max_cycles is {env.max_cycles}, too few for {rounds} rounds: make the game with more")
        action = follower(observations[FOLLOWER])
        observations, rewards, _, _, infos = env.step({LEADER: x, FOLLOWER: action})
        if infos[LEADER].get("round_over"):
            earned.append(rewards[LEADER])
    return np.array(earned)


@dataclass(frozen=True)
class PlayedRounds:
    """f as the mean of the leader's losses over rounds of the game, nothing else being known about it: what black-box agents take.

    Args:
        env: the game.
        rounds: of an evaluation.
    """

    env: LeaderFollowerParallel
    _: KW_ONLY
    rounds: int

    def start(self) -> None:
        """No memory."""
        return

    def evaluate(self, problem: Any, x: Tensor, response: Response, memory: None, generator: torch.Generator) -> tuple[Evaluation, None]:
        """Play the response in the game; ``standard_error`` of the mean is among the metrics."""
        follower = follower_of(problem, response.policy, generator)
        losses = -play_rounds(self.env, x.cpu().numpy(), follower, self.rounds, seed=draw_seed(generator))
        error = float(losses.std(ddof=1) / self.rounds**0.5) if self.rounds > 1 else float("nan")
        played = self.rounds * self.env.game.rounds.episodes * self.env.game.rounds.steps
        value = torch.tensor(losses.mean(), dtype=x.dtype, device=x.device)
        return Evaluation(value, metrics={"standard_error": error}, env_steps=played), None


@checked
def to_outer(
    env: LeaderFollowerParallel | LeaderFollowerAEC,
    solver: LowerSolver,
    *,
    rounds: int | None = None,
    solve_on_reset: bool = True,
    render_mode: str | None = None,
) -> BilevelEnv:
    """The leader's side of the game as an outer environment, with a solver in the follower's seat.

    Args:
        env: the game, in either form, wrapped or not; it is not changed.
        solver: any follower.
        rounds: None looks at the response as the problem's own objective does (exact on tables where that is, and with its horizon, not
            the game's); a number plays so many rounds of the game for each step, and −reward is their mean loss.
        solve_on_reset: see ``BilevelEnv``.
        render_mode: see ``BilevelEnv``.

    Raises:
        InvalidProblem: it is not the game, or fewer rounds than one.
    """
    view: Any = getattr(env, "unwrapped", env)
    if not isinstance(view, LeaderFollowerParallel | LeaderFollowerAEC):
        raise InvalidProblem(f"{env!r} is not the game of a leader and a follower: make it with multiagent.leader_follower(problem)")
    problem = view.problem
    if rounds is not None:
        if rounds < 1:
            raise InvalidProblem(f"rounds is {rounds}: play one at least, or leave it out")
        longest = view.game.rounds.episodes * view.game.rounds.steps + 1
        game = LeaderFollowerParallel(problem, horizon=view.horizon, max_cycles=rounds * longest)
        problem = replace(problem, objective=PlayedRounds(game, rounds=rounds))
    return BilevelEnv(problem, solver, solve_on_reset=solve_on_reset, render_mode=render_mode)
