"""What a tabular upper step and a tabular solve cost.

    python benchmarks/tabular.py                     # prints the table, writes benchmarks/results/tabular.csv

Three contestants take turns in one process, one thread, float64, S=10, A=5, D=100, N=10 sweeps, so that noise hits all alike:

* ours: one M-SoBiRL upper step with everything around it: agent, torch optimizer, Gymnasium wrappers, ``env.step``, observation, info;
* bare: the same arithmetic in a plain torch loop, no environment, no agent, no checks;
* Jacobian: the bare loop with ∇r as a dense [S, A, D] Jacobian by S·A backward passes, the way the released code of the paper does it.

Then 1,024 upper steps at once, each with an MDP and a matrix M of its own (``gym.make_vec``), on one thread and on two, each in a process
of its own, so that peak memory (above that of the imported packages) is its own; the tables themselves take .1 GB.

Below it, one soft policy iteration to 1e-10 at S=104, A=4, γ=.99 (four rooms' size) against value iteration to the same residual.
"""

from __future__ import annotations

import csv
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated

import gymnasium as gym
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import bilevel_gym
from bilevel_gym import BilevelProblem, agents
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.worlds import TabularWorld

RESULTS = Path(__file__).parent / "results" / "tabular.csv"


def ours() -> Callable[[], None]:
    """One upper step through the whole package."""
    env = gym.make("bilevel/RandomMDP-v0")
    env.reset(seed=0)
    agent = agents.m_sobirl(env, step_size=0.5)
    agent.learn(1)

    def step() -> None:
        _, _, _, truncated, _ = env.step(agent.act())
        if truncated:
            env.reset(options={"x": env.unwrapped.x, "keep": True})

    return step


def bare(*, jacobian: bool) -> Callable[[], None]:
    """The arithmetic alone (mathematics: M-SoBiRL, one outer iteration)."""
    env = gym.make("bilevel/RandomMDP-v0").unwrapped
    env.reset(seed=0)
    problem = env.problem
    transition = problem.world.transition.flatten(0, 1)
    coefficients, matrix = problem.reward.coefficients, problem.reward.matrix
    states, actions, gamma, beta, xi = 10, 5, 0.5, 8e-3, 0.5
    x, w = env.x.clone(), torch.zeros(states, dtype=torch.float64)
    q = env.response.q
    symmetric, eye = matrix + matrix.T, torch.eye(states, dtype=torch.float64)

    def dense(at: torch.Tensor) -> torch.Tensor:
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            table = (coefficients * (leaf @ matrix @ leaf)).flatten()
            rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in table]
        return torch.stack(rows)

    def pull(at: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if jacobian:
            return dense(at).T @ z.flatten()
        return (coefficients * z).sum() * (symmetric @ at)

    @torch.no_grad()
    def step() -> None:
        nonlocal x, w, q
        policy, value = torch.softmax(q, -1), torch.logsumexp(q, -1)
        weighted = policy * policy
        a = (eye - gamma * torch.einsum("sa,sat->st", policy, transition.view(states, actions, states))).T
        b = weighted.sum(-1) - gamma * (weighted.flatten() @ transition)
        w = w - xi * (a.T @ (a @ w - b))
        r = coefficients * (x @ matrix @ x)
        weights = torch.softmax(r + gamma * (transition @ value).view(states, actions), -1)
        x = x - beta * (x + pull(x, weighted - weights * w[:, None]))
        r = coefficients * (x @ matrix @ x)
        for _ in range(10):
            q = r + gamma * (transition @ torch.logsumexp(q, -1)).view(states, actions)

    return step


def solve(solver: SoftPolicyIteration | SoftValueIteration) -> Callable[[], None]:
    """A cold solve of four rooms' size, another reward each time."""
    rng = np.random.default_rng(0)
    states, actions = 104, 4
    transition = np.zeros((states, actions, states))
    for row in transition.reshape(-1, states):
        row[rng.choice(states, 4, replace=False)] = rng.dirichlet(np.ones(4))
    world = TabularWorld(transition, np.full(states, 1 / states), 0.99)
    problem = BilevelProblem(world, LinearReward(rng.standard_normal((states, actions, 8))), Shannon(0.05), QuadraticObjective())
    points = torch.as_tensor(rng.standard_normal((64, 8)))
    turn = 0

    def once() -> None:
        nonlocal turn
        turn += 1
        response = solver.solve(problem, points[turn % 64])
        assert response.converged

    return once


def batch(count: int, rounds: int) -> tuple[list[float], float]:
    """Milliseconds of each of ``rounds`` upper steps of a batch, and peak memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=count, max_episode_steps=10_000)
    envs.reset(seed=0)
    agent, times = agents.m_sobirl(envs, step_size=0.5), []
    for _ in range(rounds + 5):
        began = time.perf_counter()
        envs.step(agent.act())
        times.append((time.perf_counter() - began) * 1e3)
    return times[5:], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def interleaved(contestants: dict[str, Callable[[], None]], repeats: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a call: one block of each in turn, ``rounds`` times."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        for name, call in contestants.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - began) / repeats[name] * 1e3)
    return times


def main(
    rounds: Annotated[int, typer.Option(help="blocks of each contestant")] = 15,
    count: Annotated[int, typer.Option(help="problems in the batch")] = 1024,
    output: Annotated[Path, typer.Option(help="CSV")] = RESULTS,
) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    contestants = {
        "M-SoBiRL upper step, ours": ours(),
        "M-SoBiRL upper step, bare loop": bare(jacobian=False),
        "M-SoBiRL upper step, dense Jacobian": bare(jacobian=True),
        "soft policy iteration, S=104, to 1e-10": solve(SoftPolicyIteration(tolerance=1e-10)),
        "soft value iteration, S=104, to 1e-10": solve(SoftValueIteration(tolerance=1e-10)),
    }
    names = list(contestants)
    repeats = dict(zip(names, (200, 200, 20, 20, 2), strict=True))
    times = interleaved(contestants, repeats, rounds)
    medians = {name: median(values) for name, values in times.items()}
    table = Table(
        "",
        "median ms",
        "fastest ms",
        "ratio",
        title=f"{rounds} interleaved blocks, one thread, {platform.machine()}, torch {torch.__version__}",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "median_ms", "fastest_ms", "ratio_to", "ratio", "rounds", "torch", "version", "threads", "peak_mb"])
        for name in names:
            to = names[0] if "upper" in name else names[3]
            ratio = medians[name] / medians[to]
            table.add_row(
                name,
                f"{medians[name]:.3f}",
                f"{min(times[name]):.3f}",
                f"{ratio:.2f}× {to.split(',')[-1].strip() if 'upper' in name else 'policy iteration'}",
            )
            writer.writerow(
                [
                    name,
                    f"{medians[name]:.4f}",
                    f"{min(times[name]):.4f}",
                    to,
                    f"{ratio:.3f}",
                    rounds,
                    torch.__version__,
                    bilevel_gym.__version__,
                    1,
                    "",
                ]
            )
        for threads in (1, 2):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
                many, memory = pool.submit(batch, count, 4 * rounds).result()
            what, ratio = f"{count:,} M-SoBiRL upper steps as one batch, {threads} threads", median(many) / medians[names[0]]
            table.add_row(what, f"{median(many):.3f}", f"{min(many):.3f}", f"{ratio:.1f}× ours, {memory:.0f} MB")
            numbers = (f"{median(many):.4f}", f"{min(many):.4f}", names[0], f"{ratio:.3f}")
            writer.writerow([what, *numbers, 4 * rounds, torch.__version__, bilevel_gym.__version__, threads, f"{memory:.0f}"])
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
