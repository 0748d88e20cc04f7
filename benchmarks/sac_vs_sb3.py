"""Steps a second of ``solvers.SAC`` and of Stable-Baselines3's SAC, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/sac_vs_sb3.py --rounds 15 --steps 500
    OMP_NUM_THREADS=2 python benchmarks/sac_vs_sb3.py --rounds 15 --steps 500 --reward velocity

Both learn HalfCheetah-v5 on the CPU with 256×256 networks, batches of 256, float32, one gradient update an environment step, a
fixed temperature and the same learning rate. They take turns of ``--steps`` environment steps, so that whatever else the machine
does falls on both; the first turn of each (filling the replay, warming up) is not counted. What is reported is the median over the
rounds of each, and the median of the ratios within a round.

The peer reads a stored reward. Our side computes the rewards of every batch, since x may have changed: with ``--reward network`` by a
network of 2×64 units, which costs it more than the peer has to do, and with ``--reward velocity`` by the task's own formula, forward
velocity less the cost of control.

Written as CSV to ``benchmarks/results/``: one row a round.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import gymnasium as gym
import stable_baselines3
import torch
from torch import Tensor

from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.solvers import SAC
from bilevel_gym.worlds import mujoco_world

ENV_ID = "HalfCheetah-v5"
TEMPERATURE = 0.2
WARM_UP = 1000
"""Transitions collected before the first update, on both sides."""


class Velocity(MLPReward):
    """HalfCheetah's own reward, whatever x is."""

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Forward velocity less the cost of control: [..., 17], [..., 6] → [...]."""
        return torch.sub(states[..., 8], actions.square().sum(-1), alpha=0.1)


def ours(reward_name: str, steps: int) -> Callable[[], int]:
    """A function that runs one turn of our SAC and returns its gradient updates."""
    world = mujoco_world(ENV_ID)
    reward = (Velocity if reward_name == "velocity" else MLPReward).for_world(world)
    problem = BilevelProblem(world, reward, Shannon(TEMPERATURE), None)  # type: ignore[arg-type]
    solver = SAC(steps=steps, learning_starts=WARM_UP)
    generator = torch.Generator().manual_seed(0)
    x = reward.initial(generator)
    response = SAC(steps=WARM_UP + 100, learning_starts=WARM_UP).solve(problem, x, generator=generator)

    def turn() -> int:
        nonlocal response
        response = solver.solve(problem, x, warm=response, generator=generator)
        return response.steps

    return turn


def peer(steps: int) -> Callable[[], int]:
    """A function that runs one turn of Stable-Baselines3's SAC and returns its gradient updates."""
    agent = stable_baselines3.SAC(
        "MlpPolicy",
        gym.make(ENV_ID, disable_env_checker=True),
        ent_coef=TEMPERATURE,
        learning_starts=WARM_UP,
        batch_size=256,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
        device="cpu",
        seed=0,
    )
    agent.learn(WARM_UP + 100)

    def turn() -> int:
        before = agent._n_updates
        agent.learn(steps, reset_num_timesteps=False)
        return agent._n_updates - before

    return turn


def timed(turn: Callable[[], int], steps: int) -> float:
    """Steps a second of one turn.

    Raises:
        RuntimeError: the turn did not make one update a step, so the comparison would not be equal.
    """
    begun = time.perf_counter()
    updates = turn()
    seconds = time.perf_counter() - begun
    if updates != steps:
        raise RuntimeError(f"{updates} updates in {steps} steps: both sides must make one update a step")
    return steps / seconds


def main() -> None:
    """Measure, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=("network", "velocity"), default="network", help="what labels our batches")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=500, help="environment steps of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    sides = {"ours": ours(options.reward, options.steps), "sb3": peer(options.steps)}
    rows = []
    for number in range(options.rounds):
        rate = {name: timed(turn, options.steps) for name, turn in sides.items()}
        rows.append((number, rate["ours"], rate["sb3"], rate["ours"] / rate["sb3"]))
        print(f"round {number}: ours {rows[-1][1]:6.1f}/s   sb3 {rows[-1][2]:6.1f}/s   ratio {rows[-1][3]:.2f}", flush=True)
    _, ours_rate, peer_rate, ratio = (median(column) for column in zip(*rows, strict=True))
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(f"median: ours {ours_rate:.1f}/s, sb3 {peer_rate:.1f}/s, ratio {ratio:.2f} ({machine})")

    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"sac_vs_sb3_{options.reward}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("round", "ours_steps_per_second", "sb3_steps_per_second", "ratio"))
        writer.writerows((number, f"{a:.2f}", f"{b:.2f}", f"{c:.3f}") for number, a, b, c in rows)


if __name__ == "__main__":
    main()
