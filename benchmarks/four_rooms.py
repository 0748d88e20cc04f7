"""HPGD's four-rooms table: what each algorithm makes of the leader's objective, beside the published numbers.

    python benchmarks/four_rooms.py                          # everything; hours, and it may be stopped and started again
    python benchmarks/four_rooms.py --method exact --steps 200

Nine settings (τ, λ) of ``bilevel/FourRoomsIncentive-v0``; x starts where each seed puts it; the number is −φ(x) at the last x, with the
follower solved to 1e-13, whatever the algorithm itself has seen of it. As in the paper all descend by SGD with the gradient's norm
clipped, and the learning rate is the best of {.5, .1, .05, .01}: best on average over the first ``--tuning-seeds``, and then run for
all seeds. The paper takes 10,000 upper steps and clips at 1; here ``--steps`` of them share the same distance: each rate is multiplied
by 10,000/steps and the clip divided by it, so that no step is longer than in the paper.

The followers slip with probability .44 (``--slip``): that is the released transition matrix, in which the paper's followers are solved
and its numbers are counted, while the released simulator, and the id by default, have .33.

Each finished run is a line of ``results/four_rooms.csv`` for each seed, and lines that are there are not run again; the table goes to
``results/four_rooms.md``.
"""

from __future__ import annotations

import csv
import time
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import torch
import typer
from rich.console import Console

import bilevel_gym
from bilevel_gym.agents import HypergradientAgent
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.hypergradients import AdvantageWeighted, Exact, Implicit, ZeroOrder
from bilevel_gym.testing import phi

RESULTS = Path(__file__).parent / "results" / "four_rooms.csv"
SETTINGS = [(temperature, penalty) for temperature in (0.001, 0.003, 0.005) for penalty in (1, 3, 5)]
RATES = (0.5, 0.1, 0.05, 0.01)
PUBLISHED_STEPS = 10_000
SLIP = 0.44

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "exact": (Exact(), {}),
    "hpgd-oracle": (AdvantageWeighted("oracle"), {}),
    "hpgd": (AdvantageWeighted("sampled", trajectories=50, draws=4), {}),
    "m-sobirl": (Implicit(adjoint_steps=10), {"solver": "value_iteration", "sweeps": 10}),
    "zero-order": (ZeroOrder("two_point", radius=0.1, directions=1), {}),
}
"""Each estimator, and how the follower learns where that is not to convergence."""

PUBLISHED = {
    "HPGD": (0.91, 0.51, 0.46, 0.95, 0.73, 0.29, 1.17, 1.01, 0.87),
    "AMD": (0.58, 0.51, 0.46, 1.00, 0.39, 0.32, 1.28, 1.13, 0.97),
    "zero order": (0.59, 0.50, 0.46, 0.91, 0.40, 0.32, 1.15, 1.02, 0.79),
}
"""Thoma et al. (NeurIPS 2024), in the order of ``SETTINGS``; counted without the horizon. AMD has the model-based gradient of one follower, drawn anew in each step."""


class Run(NamedTuple):
    """One seed of one algorithm at one setting."""

    method: str
    temperature: float
    penalty: float
    slip: float
    rate: float
    seed: int
    steps: int
    objective: float
    seconds: float
    version: str


def learn(method: str, temperature: float, penalty: float, slip: float, rate: float, seeds: list[int], steps: int) -> list[Run]:
    """All seeds as one batch of environments."""
    estimator, options = METHODS[method]
    setting = {"temperature": temperature, "penalty": penalty, "slip": slip}
    envs: Any = gym.make_vec("bilevel/FourRoomsIncentive-v0", num_envs=len(seeds), **setting, **options)
    envs.reset(seed=seeds)
    scale = PUBLISHED_STEPS / steps
    descent = partial(GradientDescent, lr=rate * scale, max_norm=1.0 / scale)
    began = time.perf_counter()
    HypergradientAgent(envs, estimator, descent).learn(steps)
    seconds = (time.perf_counter() - began) / len(seeds)
    values = (-phi(envs.unwrapped.problem, envs.unwrapped.x)).tolist()
    return [
        Run(method, temperature, penalty, slip, rate, seed, steps, value, seconds, bilevel_gym.__version__)
        for seed, value in zip(seeds, values, strict=True)
    ]


def load(path: Path) -> list[Run]:
    """The runs that are there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Run(*(kind(row[name]) for name, kind in _kinds().items())) for row in csv.DictReader(file)]


def append(path: Path, runs: list[Run]) -> None:
    """Write finished runs at once, so that a stop loses none of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(Run._fields)
        writer.writerows([*run] for run in runs)


def best_rate(runs: list[Run], seeds: range) -> float:
    """The rate with the highest mean objective over the seeds."""
    tried = {run.rate for run in runs if run.seed in seeds}
    return max(tried, key=lambda rate: mean(run.objective for run in runs if run.rate == rate and run.seed in seeds))


def table(runs: list[Run], slip: float, tuning: range) -> str:
    """Markdown: a row for each algorithm and number of steps, a column for each setting; the seeds of the best rate count."""
    heads = [f"τ={temperature} λ={penalty}" for temperature, penalty in SETTINGS]
    lines = ["| −φ, higher is better | " + " | ".join(heads) + " |", "|---" * (len(SETTINGS) + 1) + "|"]
    rows = [(method, steps) for method in METHODS for steps in sorted({run.steps for run in runs if run.method == method})]
    for method, steps in rows:
        cells = []
        for setting in SETTINGS:
            here = [run for run in runs if run[:4] == (method, *setting, slip) and run.steps == steps]
            final = [run.objective for run in here if run.rate == best_rate(here, tuning)]
            spread = f" ± {stdev(final):.2f}" if len(final) > 1 else ""
            cells.append(f"{mean(final):.2f}{spread} (n={len(final)})" if final else "–")
        lines.append(f"| {method}, {steps} steps | " + " | ".join(cells) + " |")
    lines += [f"| {name}, published | " + " | ".join(f"{value:.2f}" for value in values) + " |" for name, values in PUBLISHED.items()]
    return "\n".join(lines) + "\n\n± is the standard deviation over n seeds.\n"


def main(
    method: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(METHODS)}; all by default, may be repeated")] = None,
    steps: Annotated[int, typer.Option(help="upper steps")] = 1000,
    seeds: Annotated[int, typer.Option(help="seeds at the best rate")] = 10,
    tuning_seeds: Annotated[int, typer.Option(help="seeds at each rate")] = 3,
    settings: Annotated[int, typer.Option(help="how many of the nine settings, from the first")] = 9,
    rate: Annotated[list[float] | None, typer.Option(help=f"learning rates to choose from; {RATES} by default, may be repeated")] = None,
    slip: Annotated[float, typer.Option(help="probability of another direction than the chosen one")] = SLIP,
    output: Annotated[Path, typer.Option(help="CSV")] = RESULTS,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 1,
) -> None:
    """Run what is missing, and write the table."""
    torch.set_num_threads(threads)
    console, methods = Console(), method or list(METHODS)
    runs = load(output)

    def complete(name: str, setting: tuple[float, float], rate: float, wanted: range) -> None:
        there = {run.seed for run in runs if run[:5] == (name, *setting, slip, rate) and run.steps == steps}
        if missing := [seed for seed in wanted if seed not in there]:
            found = learn(name, *setting, slip, rate, missing, steps)
            append(output, found)
            runs.extend(found)
            value = mean(run.objective for run in found)
            console.print(f"{name} τ={setting[0]} λ={setting[1]} rate {rate}: {value:.3f} ({found[0].seconds:.0f} s a seed)")

    for name in methods:
        for setting in SETTINGS[:settings]:
            for tried in rate or RATES:
                complete(name, setting, tried, range(tuning_seeds))
            here = [run for run in runs if run[:4] == (name, *setting, slip) and run.steps == steps]
            complete(name, setting, best_rate(here, range(tuning_seeds)), range(seeds))
            output.with_suffix(".md").write_text(table(runs, slip, range(tuning_seeds)))
    print(table(runs, slip, range(tuning_seeds)))


def _kinds() -> dict[str, Any]:
    return dict(zip(Run._fields, (str, float, float, float, float, int, int, float, float, str), strict=True))


if __name__ == "__main__":
    typer.run(main)
