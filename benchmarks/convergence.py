"""How fast ‖∇φ(x_k)‖² falls, for each algorithm of the comparison, and what a lower level solved to ε costs.

    OMP_NUM_THREADS=2 python benchmarks/convergence.py                       # all tasks, 100 seeds; interrupted, it goes on where it was
    python benchmarks/convergence.py --task RandomMDP --seeds 5 --steps 50 --output runs/try

All seeds of an algorithm are one run on ``gym.make_vec``. After each upper step the *exact* gradient is taken at each x_k, with a lower level
solved to 1e-11 on the side, whatever the algorithm itself knows. Reported for K = 1, 2, 5, 10, …: the running mean (1/K) Σ_{k<K} ‖∇φ(x_k)‖²,
the running minimum and the last value; mean and 95 % interval over the seeds (of the mean), and medians. The slope of the running mean is
fitted in log-log over the last decade of K. The published rates are upper bounds, O(K^-1) or O(K^-1/2): an algorithm falls short of its own
only where its slope is shallower.

Algorithms whose theory wants an accurate follower solve it by sweeps, warm-started, until ‖π_k − π*‖² ≤ ε is certified from the residual;
M-SoBiRL takes N = 10 sweeps whatever happens. A batch sweeps until its slowest member is certified: the sweeps are those of that member.

Written to a folder for each task in ``--output`` (default ``benchmarks/results/convergence``): ``curves.csv``, ``costs.csv``, ``curves.png``;
each finished run is kept as ``.npz`` under ``runs/convergence``, and not made again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table

import bilevel_gym  # noqa: F401 - registers the ids
from bilevel_gym import agents
from bilevel_gym.hypergradients import Exact
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration

ACCURACY = 1e-6
"""ε of the follower's policy, where the theory wants it small."""
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)
"""ε of the upper level in the table of costs, relative to ‖∇φ(x_0)‖²."""
JUDGE = SoftPolicyIteration(tolerance=1e-11)
console = Console()


@dataclass(frozen=True)
class Algorithm:
    """One row of the comparison."""

    recipe: str
    """A name in ``bilevel_gym.agents``."""
    rate: float
    """The published exponent of K in the bound of the running mean: −1 is O(K^-1)."""
    published: str
    """Outer iterations, inner iterations and oracle, as the slides' table has them."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the recipe."""
    sweeps: int | None = None
    """Sweeps of the lower level in each upper step; None sweeps to ``ACCURACY``."""
    steps: int | None = None
    """Upper steps, where they are fewer than those of the task."""


RANDOM_MDP = {
    "exact": Algorithm("exact", -1.0, "-", {"learning_rate": 8e-3}),
    "M-SoBiRL": Algorithm("m_sobirl", -1.0, "1/ε · O(1) · 1st", {"learning_rate": 8e-3, "step_size": 0.5}, sweeps=10),
    "PARL": Algorithm("parl", -1.0, "1/ε · log 1/ε · 1st+2nd", {"learning_rate": 8e-3}),
    "PBRL": Algorithm("pbrl", -1.0, "λ/ε · log λ²/ε · 1st", {"learning_rate": 8e-3}),
}
FOUR_ROOMS = {
    "exact": Algorithm("exact", -1.0, "-", {"learning_rate": 20.0}),
    "M-SoBiRL": Algorithm("m_sobirl", -1.0, "1/ε · O(1) · 1st", {"learning_rate": 20.0}, sweeps=10),
    "HPGD": Algorithm("hpgd", -0.5, "1/ε² · log 1/ε · 1st", {"learning_rate": 5.0}),
    "PARL": Algorithm("parl", -1.0, "1/ε · log 1/ε · 1st+2nd", {"learning_rate": 20.0}),
    "PBRL": Algorithm("pbrl", -1.0, "λ/ε · log λ²/ε · 1st", {"learning_rate": 2.0}),
    "zero order": Algorithm("zero_order", -0.5, "-", {"learning_rate": 2.0}, steps=40),
}
"""Rates near the largest that are stable: gradients are about .06 long here."""

SOBIRL = {"learning_rate": 0.02, "window": "reset", "batch": None, "clip": None, "updates_per_step": 1, "warmup_updates": 0}
"""One unclipped estimate a step on the fresh pairs, as on the slides."""
PREFERENCE = {
    "exact": Algorithm("exact", -1.0, "-", {"learning_rate": 1.0}),
    "SoBiRL": Algorithm("sobirl", -1.0, "1/ε · log 1/ε · 1st", SOBIRL),
    "HPGD": Algorithm("hpgd", -0.5, "1/ε² · log 1/ε · 1st", {"learning_rate": 0.02, "updates_per_step": 1, "warmup_updates": 0}),
    "Stoc-SoBiRL": Algorithm("stoc_sobirl", -2 / 3, "ε^-1.5 · log 1/ε · 1st", {}),
}
TASKS: dict[str, dict[str, Algorithm]] = {
    "RandomMDP": RANDOM_MDP,
    "FourRoomsIncentive": FOUR_ROOMS,
    "TabularPreference": PREFERENCE,
}
STEPS = {"RandomMDP": 3000, "FourRoomsIncentive": 300, "TabularPreference": 300}


def run(task: str, algorithm: Algorithm, seeds: int, steps: int) -> dict[str, np.ndarray]:
    """One algorithm on all seeds: ‖∇φ(x_k)‖² and f [K, N], and the follower's sweeps [K] of each upper step."""
    fixed = algorithm.sweeps is not None
    solver = SoftValueIteration(sweeps=algorithm.sweeps) if fixed else SoftValueIteration(policy_tolerance=ACCURACY)
    envs = gym.make_vec(f"bilevel/{task}-v0", num_envs=seeds, max_episode_steps=10 * steps, solver=solver)
    envs.reset(seed=0)
    agent = getattr(agents, algorithm.recipe)(envs, **algorithm.arguments)
    bilevel: Any = envs.unwrapped
    judge = judged(bilevel)
    squares, objectives, sweeps, began = [judge()], [bilevel.evaluation.value.numpy()], [0], perf_counter()
    for _ in track(range(steps), description=f"{task}: {algorithm.recipe}", console=console, transient=True):
        before = bilevel.counters[0].lower_step
        agent.learn(1)
        squares.append(judge())
        objectives.append(bilevel.evaluation.value.numpy())
        sweeps.append(bilevel.counters[0].lower_step - before)
    seconds = np.array(perf_counter() - began)
    return {"squares": np.array(squares), "objectives": np.array(objectives), "sweeps": np.array(sweeps), "seconds": seconds}


def judged(bilevel: Any) -> Callable[[], np.ndarray]:
    """A function that takes the exact ‖∇φ‖² [N] where the environments stand; it asks no oracle, so nothing is counted or drawn."""
    warm = None

    def squares() -> np.ndarray:
        nonlocal warm
        problem, x = bilevel.problem, bilevel.x
        warm = JUDGE.solve(problem, x, warm=warm)
        found: np.ndarray = exact_gradient(problem, x, warm).square().sum(-1).numpy()
        return found

    return squares


def exact_gradient(problem: Any, x: torch.Tensor, response: Any) -> torch.Tensor:
    """∇φ(x): [N, D]."""
    oracle: Any = type("Problem", (), {"problem": problem})()
    return Exact()(oracle, x, response, None, None)[0].value  # type: ignore[arg-type]  # Exact reads nothing of an evaluation


def decades(steps: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to ``steps``."""
    return sorted({k for power in range(6) for k in (10**power, 2 * 10**power, 5 * 10**power) if k <= steps} | {steps})


def slope(mean: np.ndarray) -> float:
    """Of log(running mean) against log K, over the last decade: mean [K]."""
    last = np.arange(max(len(mean) // 10, 1), len(mean)) + 1
    return float(np.polyfit(np.log(last), np.log(mean[last - 1]), 1)[0])


def summarise(results: dict[tuple[str, str], dict[str, np.ndarray]], output: Path) -> Table:
    """Write the two tables and the picture; the table of costs comes back."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["task", "algorithm", "K", "seeds", "mean", "mean_ci95", "mean_median", "min_median", "last_median", "objective_median"]
        )
        for (task, name), result in results.items():
            squares = result["squares"][:-1]
            means = squares.cumsum(0) / np.arange(1, len(squares) + 1)[:, None]
            lowest = np.minimum.accumulate(squares)
            for k in decades(len(squares)):
                row = means[k - 1]
                interval = 1.96 * row.std(ddof=1) / len(row) ** 0.5 if len(row) > 1 else float("nan")
                medians = (np.median(values[k - 1]) for values in (means, lowest, squares, result["objectives"]))
                writer.writerow([task, name, k, len(row), *(f"{value:.4e}" for value in (row.mean(), interval, *medians))])
    table = costs(results, output)
    draw(results, output)
    return table


def costs(results: dict[tuple[str, str], dict[str, np.ndarray]], output: Path) -> Table:
    """Upper steps, and sweeps for each, until the median running mean is below ε; beside the published columns."""
    header = [
        "task",
        "algorithm",
        "published (outer · inner · oracle)",
        "bound's slope",
        "slope",
        *(f"K(ε={level:g})" for level in LEVELS),
        "sweeps/step",
        "seconds",
    ]
    table = Table(*header[:2], *header[3:])
    with (output / "costs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for (task, name), result in results.items():
            algorithm, squares = TASKS[task][name], result["squares"][:-1]
            mean = np.median(squares.cumsum(0) / np.arange(1, len(squares) + 1)[:, None], 1)
            reached = [str(int(np.argmax(mean <= level * mean[0])) + 1) if (mean <= level * mean[0]).any() else "-" for level in LEVELS]
            sweeps = f"{result['sweeps'][1:].mean():.1f}"
            row = [
                task,
                name,
                algorithm.published,
                f"{algorithm.rate:.2f}",
                f"{slope(mean):.2f}",
                *reached,
                sweeps,
                f"{float(result['seconds']):.0f}",
            ]
            writer.writerow(row)
            table.add_row(*row[:2], *row[3:])
    return table


def draw(results: dict[tuple[str, str], dict[str, np.ndarray]], output: Path) -> None:
    """One panel a task: the median running mean over K, its interquartile range, and the slopes −1 and −1/2."""
    mpl.use("Agg")
    tasks = list(dict.fromkeys(task for task, _ in results))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for (of, name), result in results.items():
            if of == task:
                squares = result["squares"][:-1]
                k = np.arange(1, len(squares) + 1)
                low, middle, high = np.quantile(squares.cumsum(0) / k[:, None], (0.25, 0.5, 0.75), axis=1)
                axis.loglog(k, middle, label=name)
                axis.fill_between(k, low, high, alpha=0.15)
        top = axis.get_ylim()[1]
        for power, style in ((-1.0, ":"), (-0.5, "--")):
            axis.loglog(k, top * k**power, style, color="grey", linewidth=0.8, label=f"slope {power:g}")
        axis.set(title=task, xlabel="upper steps K", ylabel="mean of ‖∇φ(x_k)‖², k < K")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output / "curves.png", dpi=130)
    plt.close(figure)


def main(
    task: Annotated[list[str] | None, typer.Option(help="which tasks, all by default")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(help="which algorithms, all by default")] = None,
    seeds: Annotated[int, typer.Option(help="seeds of each, as one batch")] = 100,
    steps: Annotated[int | None, typer.Option(help="upper steps; by default what each task needs")] = None,
    kept: Annotated[Path, typer.Option(help="folder of finished runs")] = Path("runs/convergence"),
    output: Annotated[Path, typer.Option(help="folder of tables and picture")] = Path(__file__).parent / "results" / "convergence",
) -> None:
    """Run what has not been run, then write tables and picture of all that has."""
    kept.mkdir(parents=True, exist_ok=True)
    for of in task or list(TASKS):
        results = {}
        for name, chosen in TASKS[of].items():
            if algorithm and name not in algorithm:
                continue
            count = steps or chosen.steps or STEPS[of]
            path = kept / f"{of}-{name.replace(' ', '_')}-{seeds}-{count}.npz"
            if not path.exists():
                found = run(of, chosen, seeds, count)
                beside = path.with_suffix(".part.npz")
                np.savez(beside, **found)
                beside.replace(path)
            with np.load(path) as file:
                results[of, name] = dict(file)
            table = summarise(results, output / of)  # after each, so that an interrupted study leaves what it found
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
