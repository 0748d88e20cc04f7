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

Our update asks torch for oneDNN's matrix products (``solvers/products.py``), the peer takes torch's default, MKL's. What is due to that
alone is seen where the peer takes a third turn in each round, with our choice of products and else unchanged.

Between the rounds an update alone is timed, and the matrix products in it one by one, of the same shapes and layouts, by the kernels
that torch calls by default and by oneDNN's: an update can take no less than the sum of the quicker ones.

Written as CSV to ``benchmarks/results/``: one row a round.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeVar

import gymnasium as gym
import stable_baselines3
import torch
from torch import Tensor

from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.solvers import SAC
from bilevel_gym.solvers.actor_critic import GaussianLearner, Labelled
from bilevel_gym.solvers.architectures import MLP
from bilevel_gym.solvers.learner import ActorCritic, Rates, Setting
from bilevel_gym.solvers.products import quick_products
from bilevel_gym.worlds import mujoco_world

Result = TypeVar("Result")

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


def quickly(action: Callable[[], Result]) -> Callable[[], Result]:
    """The same with the products of our update."""

    def run() -> Result:
        with quick_products(torch.empty(0)):
            return action()

    return run


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


ACTOR, CRITIC = (17, 256, 256, 12), (23, 256, 256, 1)
"""Layers of the networks on HalfCheetah."""
BATCH = 256


def seconds(action: Callable[[], object], repeats: int) -> float:
    """The median time of an action."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return median(times)


def update() -> Callable[[], None]:
    """One update on a batch of noise."""
    setting, generator = Setting(0.99, TEMPERATURE, MLP(ACTOR), MLP(CRITIC)), torch.Generator().manual_seed(0)
    learner = GaussianLearner(ActorCritic.initial(setting, generator, torch.device("cpu")), setting, Rates(), batch_size=BATCH)
    states, following = torch.randn(2, BATCH, 17, generator=generator)
    actions, noise = torch.rand(BATCH, 6, generator=generator), torch.randn(2, BATCH, 6, generator=generator)
    batch = Labelled(states, actions, following, torch.ones(BATCH), torch.randn(BATCH, generator=generator), noise)
    return lambda: learner.update(batch)


def products() -> Counter[tuple[str, int, int, int, int]]:
    """The matrix products of an update, with how often each occurs: (pass, copies C, n, i, o), [C, n, i]·[C, i, o].

    Both critics at (s', a'), (s, a) and (s, π(s)), back twice, their weights' gradients once; the actor at s and s' together, back once.
    """
    found: Counter[tuple[str, int, int, int, int]] = Counter()
    for sizes, copies, rows, forward, backward in ((ACTOR, 1, 2 * BATCH, 1, 1), (CRITIC, 2, BATCH, 3, 2)):
        for layer, (inner, outer) in enumerate(pairwise(sizes)):
            found["forward", copies, rows, inner, outer] += forward
            found["weights", copies, inner, BATCH, outer] += 1
            if layer:
                found["back", copies, BATCH, outer, inner] += backward
    found["back", 2, BATCH, CRITIC[1], ACTOR[-1] // 2] += 1  # to the actions
    return found


def product(kind: str, copies: int, rows: int, inner: int, outer: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """One of them by torch's default, and by oneDNN."""
    left, right = torch.randn(copies, rows, inner), torch.randn(copies, inner, outer)
    if kind == "weights":  # the left factor is a view of the units, transposed
        left = left.mT.contiguous().mT
    if kind == "back":  # the right one is a view of the weights, transposed
        right = right.mT.contiguous().mT
    out = torch.empty(copies, rows, outer)

    def default() -> None:
        torch.bmm(left, right, out=out)

    return default, quickly(default)


class Arithmetic:
    """Times of an update and of its products, which gather over the rounds."""

    def __init__(self) -> None:
        self.update = update()
        self.products = {(*key, count): product(*key) for key, count in products().items()}
        self.updates: list[float] = []
        self.times: dict[tuple[str, int, int, int, int, int], tuple[list[float], list[float]]] = {key: ([], []) for key in self.products}

    @torch.inference_mode()
    def measure(self) -> None:
        """One more round."""
        self.updates.append(seconds(self.update, 200))
        for key, kernels in self.products.items():
            for times, kernel in zip(self.times[key], kernels, strict=True):
                times.append(seconds(kernel, 50))

    def report(self, path: Path) -> None:
        """Print the sums, and write the CSV."""
        rows = [(*key, *(1e6 * median(times) for times in both)) for key, both in self.times.items()]
        operations = sum(2 * copies * n * i * o * count for _, copies, n, i, o, count, _, _ in rows)
        whole = 1e3 * median(self.updates)
        plain = 1e-3 * sum(count * default for *_, count, default, _ in rows)
        best = 1e-3 * sum(count * min(default, onednn) for *_, count, default, onednn in rows)
        print(
            f"an update of {operations / 1e9:.2f} GFLOP: {whole:.2f} ms; its products alone: {plain:.2f} ms by torch's default, {best:.2f} ms "
            f"by the quicker of it and oneDNN, which is {best / whole:.2f} of the update; the update takes {whole / plain:.2f} of the former"
        )
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("pass", "copies", "n", "i", "o", "times_an_update", "default_us", "onednn_us"))
            writer.writerows((*row[:-2], f"{row[-2]:.1f}", f"{row[-1]:.1f}") for row in rows)
            writer.writerow(("update", "", "", "", "", 1, f"{1e3 * whole:.1f}", ""))


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

    arithmetic = Arithmetic()
    rival = peer(options.steps)
    sides = (ours(options.reward, options.steps), rival, quickly(rival))
    rows = []
    for number in range(options.rounds):
        mine, theirs, quickened = (timed(turn, options.steps) for turn in sides)
        arithmetic.measure()
        rows.append((number, mine, theirs, quickened, mine / theirs, mine / quickened))
        print(
            f"round {number}: ours {mine:6.1f}/s   sb3 {theirs:6.1f}/s   ratio {mine / theirs:.2f}   "
            f"sb3 with our products {quickened:6.1f}/s   ratio {mine / quickened:.2f}",
            flush=True,
        )
    _, mine, theirs, quickened, ratio, close = (median(column) for column in zip(*rows, strict=True))
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    print(
        f"median: ours {mine:.1f}/s, sb3 {theirs:.1f}/s, ratio {ratio:.2f}; sb3 with our products {quickened:.1f}/s, ratio {close:.2f} ({machine})"
    )

    options.out.mkdir(parents=True, exist_ok=True)
    arithmetic.report(options.out / "sac_products.csv")
    with (options.out / f"sac_vs_sb3_{options.reward}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("round", "ours_steps_per_second", "sb3_steps_per_second", "sb3_with_our_products", "ratio", "ratio_with_our_products")
        )
        writer.writerows((number, *(f"{rate:.2f}" for rate in row[:3]), *(f"{ratio:.3f}" for ratio in row[3:])) for number, *row in rows)


if __name__ == "__main__":
    main()
