"""Bias and noise of each sensitivity of SoBiRL, at equal environment steps, against the exact gradient.

    OMP_NUM_THREADS=1 python benchmarks/estimators.py                  # under ten minutes; table, CSV and picture in benchmarks/results
    python benchmarks/estimators.py --estimates 10 --points 1 --output /tmp/try

Three preference problems, small enough that φ and ∇φ are exact by enumeration (at most 4,096 fragments):

* chain: 15 states in a row, start in the middle, γ = .9, τ = .5;
* four rooms: 104 cells, one start and one goal, γ = .95, τ = .2, slip .33. The teacher's reward is a hill whose top is the goal, since
  fragments near the start never see the goal itself;
* random: ``bilevel/TabularPreference-v0`` with S=5, A=3, γ = .8, τ = .5.

x is the whole reward table, normal with deviation .7, as it may be early in training; fragments have 3 steps.

Each estimate has the same budget of environment steps, continuations and tails included, so that a sensitivity that plays more for each pair
gets fewer pairs. The critic is fitted on 512 further pairs of the same policy, which are not counted: in training they are those of earlier
steps. At each of several random x the error of ``estimates`` independent estimates is taken relative to ‖∇φ(x)‖:

    bias² = ‖mean − ∇φ‖² − tr(Cov)/n (without the noise of the mean),   noise² = tr(Cov),   error² = bias² + noise²

and averaged over the x; intervals are 95 %, by the delta method. A mean over k such estimates has bias² + noise²/k.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bilevel_gym import BilevelProblem
from bilevel_gym.agents.plotting import COLOURS
from bilevel_gym.envs import ProblemOracle, tabular_preference
from bilevel_gym.hypergradients import Exact, GivenCritic, ScoreFunction, ScoreState
from bilevel_gym.numerics import draw_horizons, draw_seed
from bilevel_gym.objectives import PreferenceObjective, fragments_of
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import enumerated_critic
from bilevel_gym.types import Places, Response, Trajectory
from bilevel_gym.worlds import GridWorld, TabularWorld
from bilevel_gym.worlds.gridworlds import FOUR_ROOMS

SOLVER = SoftPolicyIteration(tolerance=1e-13)
LENGTH = 3
console = Console()


# ---------------------------------------------------------------------------------------------- problems


def preferences(world: TabularWorld, temperature: float) -> BilevelProblem:
    """Preferences of a world, x the reward table."""
    cells = world.states * world.actions
    table = LinearReward(np.eye(cells).reshape(world.states, world.actions, cells))
    return BilevelProblem(world, table, Shannon(temperature), PreferenceObjective(length=LENGTH, pairs=1))


def chain() -> BilevelProblem:
    """What is done in the middle pays at the ends."""
    states = 15
    grid = GridWorld(["." * states], 0.9, slip=0.1, start=None, goals="", directions=((0, -1), (0, 1)))
    true = np.zeros((states, 2))
    true[0], true[-1] = 0.9, 3.0
    start = np.zeros(states)
    start[6:9] = 1 / 3
    return preferences(TabularWorld(grid.transition, start, 0.9, true_reward=true), 0.5)


def four_rooms() -> BilevelProblem:
    """A hill of true reward whose top is the goal: 3 there, falling linearly with the number of steps to it, 0 farthest off."""
    world = GridWorld(FOUR_ROOMS, 0.95, slip=0.33, goals="1")
    distance = np.where(world.grid.marked("1"), 0.0, np.inf)
    for _ in range(world.states):
        distance = np.minimum(distance, 1.0 + distance[world.grid.moves].min(-1))
    hill = 3.0 * (1.0 - distance / distance.max())
    true = hill[:, None].repeat(world.actions, 1)
    return preferences(TabularWorld(world.transition, world.start, 0.95, world.termination, true_reward=true), 0.2)


def random() -> BilevelProblem:
    """All of P and of the reward unstructured."""
    return tabular_preference(states=5, actions=3, length=LENGTH, temperature=0.5, exact=False, capacity=0).problem


PROBLEMS: dict[str, Callable[[], BilevelProblem]] = {"chain": chain, "four rooms": four_rooms, "random": random}


# ---------------------------------------------------------------------------------------------- estimators


@dataclass(frozen=True)
class Row:
    """One sensitivity."""

    estimator: ScoreFunction
    tail: bool = False
    """Whether trajectories go on past the fragment, until γ^t < .01."""
    history: int = 0
    """Earlier pairs."""
    given: bool = False
    """Whether the critic is told the true L."""
    apart: bool = False
    """Whether ξ and ζ are drawn independently of each other, as on the paper's slides."""


ROWS = {
    "exact": Row(ScoreFunction("exact")),
    "rollout, ξ and ζ apart": Row(ScoreFunction("rollout"), apart=True),
    "rollout": Row(ScoreFunction("rollout")),
    "rollout, every step": Row(ScoreFunction("rollout", branches=None)),
    "critic, true L": Row(ScoreFunction("critic"), tail=True, given=True),
    "critic": Row(ScoreFunction("critic"), tail=True, history=512),
    "one_step": Row(ScoreFunction("one_step")),
    "none (DRLHF)": Row(ScoreFunction(None)),
}


class Apart(ProblemOracle):
    """Continuations without a first action have lengths and random numbers of their own."""

    def branch(self, policy: Any, places: Places, *, steps: Tensor, given: bool = False) -> Trajectory:
        """As ``ProblemOracle.branch``, the one kind apart from the other."""
        if given:
            return super().branch(policy, places, steps=steps, given=True)
        state = self.generator.get_state()
        self.generator.manual_seed(draw_seed(self.generator))
        steps = draw_horizons(len(steps), self.problem.world.discount, self.generator)
        played = super().branch(policy, places, steps=steps)
        self.generator.set_state(state)
        torch.rand(played.states.numel(), generator=self.generator)  # past what both have used
        return played


def with_pairs(problem: BilevelProblem, pairs: int, *, tail: bool) -> BilevelProblem:
    """The same problem, another number of pairs."""
    objective: Any = problem.objective
    return replace(problem, objective=replace(objective, pairs=pairs, held_out_pairs=0, steps=None if tail else LENGTH))


def estimates(
    problem: BilevelProblem, row: Row, x: Tensor, response: Response, budget: int, count: int, seed: int
) -> tuple[np.ndarray, int]:
    """Independent estimates [n, D], each of about so many environment steps, and the pairs that these are enough for."""
    generator = torch.Generator().manual_seed(seed)
    estimator = row.estimator
    if row.given:
        estimator = replace(estimator, critic=GivenCritic(enumerated_critic(problem, x, response.policy)))
    earlier = ProblemOracle(with_pairs(problem, max(row.history, 1), tail=False), SOLVER, generator)

    def estimate(oracle: ProblemOracle) -> np.ndarray:
        state = ScoreState()
        if row.estimator.sensitivity == "critic":
            seen = earlier.evaluate(x, response).fresh
            assert seen is not None
            state = ScoreState(history=seen.fragments)
        value: np.ndarray = estimator(oracle, x, response, oracle.evaluate(x, response), state)[0].value.numpy()
        return value

    kind = Apart if row.apart else ProblemOracle
    trial = kind(with_pairs(problem, 512, tail=row.tail), SOLVER, generator)
    estimate(trial)
    pairs = max(2, round(512 * budget / trial.counters.env_steps))
    oracle = kind(with_pairs(problem, pairs, tail=row.tail), SOLVER, generator)
    return np.stack([estimate(oracle) for _ in range(count)]), pairs


@dataclass(frozen=True)
class Error:
    """Relative to ‖∇φ‖, at one x."""

    bias: float
    """Of the mean, squared, without bias; may be negative."""
    bias_variance: float
    noise: float
    """tr(Cov)."""
    noise_variance: float
    cosine: float
    """Between the mean and the truth."""


def error(truth: np.ndarray, values: np.ndarray) -> Error:
    """Estimates [n, D] against the truth [D]."""
    count, scale = len(values), float(truth @ truth)
    mean, covariance = values.mean(0), np.atleast_2d(np.cov(values.T))
    off, noise = mean - truth, float(np.trace(covariance))
    spread = np.square(values - mean).sum(-1)
    return Error(
        (float(off @ off) - noise / count) / scale,
        (4 * float(off @ covariance @ off) / count + 2 * float((covariance**2).sum()) / count**2) / scale**2,
        noise / scale,
        float(spread.var(ddof=1)) / count / scale**2,
        float(mean @ truth) / float(np.linalg.norm(mean)) / scale**0.5,
    )


def interval(values: list[float], variances: list[float]) -> tuple[float, float, float]:
    """The root of a mean over the x's, and the ends of its 95 % interval."""
    middle, width = float(np.mean(values)), 1.96 * float(np.sum(variances)) ** 0.5 / len(values)
    middle, low, high = (max(value, 0.0) ** 0.5 for value in (middle, middle - width, middle + width))
    return middle, low, high


# ---------------------------------------------------------------------------------------------- study

COLUMNS = ["problem", "sensitivity", "pairs", "bias", "bias_low", "bias_high", "noise", "noise_low", "noise_high", "error", "cosine", "ms"]


def measure(name: str, budget: int, count: int, points: int) -> list[dict[str, Any]]:
    """All rows of one problem."""
    problem = PROBLEMS[name]()
    start = torch.zeros(problem.dimension, dtype=torch.float64)
    every = fragments_of(problem.world, start, LENGTH)
    console.print(f"{name}: {len(every.states)} fragments of {len(every.counts)} kinds")
    where = []
    for seed in range(points):
        x = 0.7 * torch.as_tensor(np.random.default_rng(seed).standard_normal(problem.dimension))
        response = SOLVER.solve(problem, x)
        exact, _ = Exact()(ProblemOracle(problem, SOLVER, torch.Generator()), x, response, None, None)  # type: ignore[arg-type]  # it reads no evaluation
        where.append((x, response, exact.value.numpy()))
    found = []
    for label, row in track(ROWS.items(), description=name, console=console, transient=True):
        errors, pairs, began = [], 0, perf_counter()
        for seed, (x, response, truth) in enumerate(where):
            values, pairs = estimates(problem, row, x, response, budget, count, seed)
            errors.append(error(truth, values))
        ms = (perf_counter() - began) * 1e3 / (count + 1) / points
        bias = interval([one.bias for one in errors], [one.bias_variance for one in errors])
        noise = interval([one.noise for one in errors], [one.noise_variance for one in errors])
        total = max(float(np.mean([one.bias + one.noise for one in errors])), 0.0) ** 0.5
        numbers = (pairs, *bias, *noise, total, float(np.mean([one.cosine for one in errors])), ms)
        found.append(dict(zip(COLUMNS, (name, label, *numbers), strict=True)))
    return found


def draw(rows: list[dict[str, Any]], output: Path) -> None:
    """One panel a problem: bias and noise of each sensitivity, with their intervals; a bias that may be zero is a line from the edge."""
    mpl.use("Agg")
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.8), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    least = 0.01
    for axis, name in zip(axes[0], names, strict=True):
        chosen = [row for row in rows if row["problem"] == name][::-1]
        places = np.arange(len(chosen))
        for part, offset, colour in (("noise", -0.12, COLOURS[0]), ("bias", 0.12, COLOURS[1])):
            low, middle, high = (np.array([row[f"{part}{end}"] for row in chosen]) for end in ("_low", "", "_high"))
            found = low > 0.0
            ends = np.abs(np.stack([low, high]) - middle)[:, found]
            axis.errorbar(middle[found], (places + offset)[found], xerr=ends, fmt="o", markersize=4, color=colour, label=part)
            bound = np.maximum(high[~found], 2 * least)
            reach = np.stack([bound - least, np.zeros_like(bound)])
            label = f"{part}, at most: its interval contains zero"
            axis.errorbar(bound, (places + offset)[~found], xerr=reach, fmt="|", markersize=6, color=colour, label=label)
        axis.set(title=name, xlabel="relative to ‖∇φ‖", xscale="log", xlim=(least, 200.0))
        axis.set_yticks(places, [row["sensitivity"] for row in chosen])
        axis.grid(axis="x", linewidth=0.3)
    named = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = ["noise", "bias", "bias, at most: its interval contains zero"]
    figure.legend([named[label] for label in shown], shown, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(output / "estimators.png", dpi=130)
    plt.close(figure)


def main(
    budget: Annotated[int, typer.Option(help="environment steps of each estimate")] = 4096,
    estimates: Annotated[int, typer.Option(help="independent estimates at each x")] = 200,
    points: Annotated[int, typer.Option(help="random x's")] = 3,
    output: Annotated[Path, typer.Option(help="folder of table and picture")] = Path(__file__).parent / "results",
) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    rows = [row for name in PROBLEMS for row in measure(name, budget, estimates, points)]
    output.mkdir(parents=True, exist_ok=True)
    with (output / "estimators.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows)
    draw(rows, output)
    table = Table(
        "problem", "sensitivity", "pairs", "bias", "noise", "error", "cosine", "ms", title=f"{budget} environment steps an estimate"
    )
    for row in rows:
        bias, noise = (f"{row[part]:.2f} [{row[f'{part}_low']:.2f}, {row[f'{part}_high']:.2f}]" for part in ("bias", "noise"))
        numbers = (f"{row['error']:.2f}", f"{row['cosine']:.3f}", f"{row['ms']:.0f}")
        table.add_row(row["problem"], row["sensitivity"], str(row["pairs"]), bias, noise, *numbers)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
