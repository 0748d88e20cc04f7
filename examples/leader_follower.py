"""A leader and a follower learn from each other in PettingZoo's loop, and the exact solution stands beside what they found.

    python examples/leader_follower.py           # ten seconds
    python examples/leader_follower.py --quick   # some seconds

Every morning the follower drives to work, by the bridge or by the tunnel. The bridge is the shorter way, and a crossing costs the leader 2;
it may pay the follower for either way. Neither knows the other's problem: the follower is an actor-critic on its own observations, the
leader tries payments and keeps what was worth it.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bilevel_gym import BilevelProblem, multiagent
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import FunctionReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.worlds import TabularWorld

HOME, BRIDGE, TUNNEL = range(3)


def build() -> BilevelProblem:
    """Three states; in the first one the actions are the two ways, and on either way the next action ends the episode."""
    transition, termination = np.zeros((3, 2, 3)), np.zeros((3, 2))
    transition[HOME, 0, BRIDGE] = transition[HOME, 1, TUNNEL] = 1.0
    termination[[BRIDGE, TUNNEL]] = 1.0
    world = TabularWorld(transition, [1.0, 0.0, 0.0], 0.9, termination)
    there = torch.eye(3, dtype=torch.float64)[:, :, None].expand(3, 3, 2)  # [which state, S, A]

    def paid(x: torch.Tensor) -> torch.Tensor:
        return x[..., 0, None, None] * there[BRIDGE] + x[..., 1, None, None] * there[TUNNEL]

    reward = FunctionReward(lambda x: 1.0 * there[BRIDGE] + 0.4 * there[TUNNEL] + paid(x), [0.0, 0.0], [2.0, 2.0])
    cost = ReturnObjective(lambda x: 2.0 * there[BRIDGE] + paid(x), discount=1.0, horizon=2)
    return BilevelProblem(world, reward, Shannon(0.2), cost)


class Follower:
    """A tabular soft actor-critic: it sees its state and x in one vector, and reads from ``infos`` when an episode has ended."""

    def __init__(self, problem: BilevelProblem, rng: np.random.Generator) -> None:
        self.states, self.rng = problem.world.states, rng
        self.discount, self.temperature = problem.world.discount, problem.regularizer.temperature
        self.value = np.zeros(self.states)
        self.advantage = np.zeros((self.states, problem.world.actions))

    def chances(self, state: int) -> np.ndarray:
        """softmax(advantage/τ)."""
        weights = np.exp((self.advantage[state] - self.advantage[state].max()) / self.temperature)
        return weights / weights.sum()

    def act(self, observation: np.ndarray) -> int:
        """Draw an action."""
        return int(self.rng.choice(len(self.advantage[0]), p=self.chances(int(observation[: self.states].argmax()))))

    def learn(self, observation: np.ndarray, action: int, reward: float, following: np.ndarray, info: dict[str, Any]) -> None:
        """One step; the entropy is the learner's, r_x comes from the game."""
        state, after = (int(seen[: self.states].argmax()) for seen in (observation, info.get("final_obs", following)))
        ahead = 0.0 if info["episode_terminated"] else self.value[after]
        delta = reward + self.discount * ahead - self.value[state]
        self.value[state] += 0.3 * (delta - self.temperature * np.log(self.chances(state)[action]))
        self.advantage[state, action] += 0.2 * (delta - self.advantage[state, action])


def play(env: multiagent.LeaderFollowerAEC, follower: Follower, x: np.ndarray, rounds: int) -> tuple[float, float]:
    """The leader's mean reward over the second half of some rounds under one x, and the share of them in which the bridge was taken."""
    earned, crossed = [], []
    while len(earned) < rounds:
        env.step(x)  # the leader: only its first action of a round binds
        before = env.observe("follower_0")
        action = follower.act(before)
        env.step(action)
        follower.learn(before, action, env.rewards["follower_0"], env.observe("follower_0"), env.infos["follower_0"])
        if env.infos["leader_0"]["round_over"]:
            earned.append(env.rewards["leader_0"])
            crossed.append(before[BRIDGE])
    return float(np.mean(earned[rounds // 2 :])), float(np.mean(crossed[rounds // 2 :]))


def main(
    trials: Annotated[int, typer.Option(help="payments that the leader tries")] = 30,
    rounds: Annotated[int, typer.Option(help="episodes of the follower under each")] = 300,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a few seconds")] = False,
) -> None:
    """Let both learn, and compare."""
    console, rng = Console(), np.random.default_rng(seed)
    trials, rounds = (min(trials, 8), min(rounds, 150)) if quick else (trials, rounds)
    problem = build()
    env = multiagent.leader_follower(problem, "aec", max_cycles=10**9)
    env.reset(seed=seed)
    follower = Follower(problem, rng)
    exact = multiagent.to_outer(env, SoftPolicyIteration(tolerance=1e-10))  # the same problem, with a solver in the follower's seat
    exact.reset(seed=seed)
    table = Table("trial", "paid for bridge", "for tunnel", "leader, in play", "leader, exact", "bridge, in play", "bridge, exact", "kept")
    best, best_reward = np.zeros(2), -np.inf
    for trial in range(trials):
        x = best if trial == 0 else np.clip(best + 0.4 * rng.standard_normal(2), 0.0, 2.0)
        reward, share = play(env, follower, x, rounds)
        kept = reward > best_reward
        if kept:
            best, best_reward = x, reward
        value, policy = exact.step(x)[1], exact.response.policy
        numbers = (*x, reward, value, share, float(policy[HOME, 0]))
        table.add_row(str(trial), *(f"{number:.2f}" for number in numbers), "*" if kept else "")
    console.print(table)
    grid = [(exact.step(np.array([a, b]))[1], a, b) for a in np.linspace(0, 2, 41) for b in np.linspace(0, 2, 41)]
    console.print(f"found in play: payments {best.round(2).tolist()}, worth {exact.step(best)[1]:.3f} against an exact follower")
    console.print("best of a grid: payments [{1:.2f}, {2:.2f}], worth {0:.3f}".format(*max(grid)))


if __name__ == "__main__":
    typer.run(main)
