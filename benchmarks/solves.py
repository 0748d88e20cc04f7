"""What exact solves cost on gridworlds: one x, a thousand of them, and ten thousand states.

    python benchmarks/solves.py                      # prints the table, writes benchmarks/results/solves.csv

float64, residual 1e-9, cold starts, every row in a process of its own, so that peak memory (above that of the imported packages) is its own:

* four rooms (104 states, two goals, so two systems an x; γ=.99): the best response and its exact gradient at one x, where the leader
  looks at 200 steps, as published, and where it looks at all of them;
* the same at 1,024 x's in one batch, without the gradient: block elimination, and torch's batched LU for the same systems;
* an open gridworld of 100 × 100 states (γ=.99): the best response and its gradient, at τ=.1 and τ=.01;
* its linear system alone: block elimination, SciPy's SuperLU, and BiCGSTAB to 1e-9.
"""

from __future__ import annotations

import csv
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.sparse import coo_matrix, eye_array
from scipy.sparse.linalg import LinearOperator, bicgstab, splu

import bilevel_gym
from bilevel_gym import BilevelProblem, numerics, transitions
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.hypergradients import Exact
from bilevel_gym.objectives import QuadraticObjective, ReturnObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import IncentiveReward
from bilevel_gym.solvers import SoftPolicyIteration, policy_iteration
from bilevel_gym.types import Evaluation
from bilevel_gym.worlds import open_grid

RESULTS = Path(__file__).parent / "results" / "solves.csv"
SOLVER = SoftPolicyIteration(tolerance=1e-9)
NOTHING_SEEN = Evaluation(torch.zeros(()))
"""The exact gradient reads none of the evaluation."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    seconds: float
    """Median."""
    factor_share: float
    """Of the time, spent in factorizing I − γP_π."""
    newton_steps: int
    memory: float
    """MB, peak, above that of the imported packages."""


def four_rooms_problem(horizon: int | None = 200) -> BilevelProblem:
    """The problem of the published four rooms, or that without a horizon."""
    problem: BilevelProblem = gym.make("bilevel/FourRoomsIncentive-v0", solve_on_reset=False).unwrapped.problem  # type: ignore[attr-defined]
    return replace(problem, objective=ReturnObjective(problem.objective.cost, horizon=horizon))


def open_problem(side: int, temperature: float) -> BilevelProblem:
    """An incentive on every cell of an open grid."""
    world = open_grid(side)
    reward = IncentiveReward(world.true_reward, amount=-0.2)
    return BilevelProblem(world, reward, Shannon(temperature), QuadraticObjective())


def points(problem: BilevelProblem, count: int) -> torch.Tensor:
    """Standard normal logits."""
    return torch.randn(count, problem.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def timed(what: str, call: Callable[[int], int], repeats: int) -> Row:
    """The median time of ``call``, which returns its Newton steps, and the share of the factorizations."""
    inside = [0.0]
    plain = numerics.factorize

    def factorize(*args: Any) -> Any:
        began = time.perf_counter()
        found = plain(*args)
        inside[0] += time.perf_counter() - began
        return found

    policy_iteration.factorize = factorize  # type: ignore[attr-defined]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, steps = [], 0
    if repeats > 1:
        call(0)
    for turn in range(repeats):
        inside[0] *= turn > 0
        began = time.perf_counter()
        steps = call(turn)
        times.append(time.perf_counter() - began)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Row(what, median(times), inside[0] / sum(times), steps, memory)


def respond(problem: BilevelProblem, xs: torch.Tensor, turn: int) -> int:
    """A best response and its gradient at one x."""
    x = xs[turn % len(xs)]
    response = SOLVER.solve(problem, x)
    assert response.converged
    Exact()(ProblemOracle(problem, SOLVER, torch.Generator()), x, response, NOTHING_SEEN, None)
    return response.steps


def batch(problem: BilevelProblem, xs: torch.Tensor, _: int) -> int:
    """All best responses at once."""
    response = SOLVER.solve(problem, xs)
    assert response.converged
    return response.steps


def one(horizon: int | None, repeats: int) -> Row:
    """Four rooms, one x."""
    problem = four_rooms_problem(horizon)
    name = f"four rooms, 1 x, with the gradient of {'all' if horizon is None else horizon} steps"
    return timed(name, partial(respond, problem, points(problem, 64)), repeats)


def many(count: int, *, blocks: bool, repeats: int) -> Row:
    """Four rooms, a batch."""
    transitions.DENSE_WORK = 0 if blocks else 10**15
    problem = four_rooms_problem()
    name = f"four rooms, {count:,} x's, {'block elimination' if blocks else 'batched dense LU'}"
    return timed(name, partial(batch, problem, points(problem, count)), repeats)


def wide(side: int, temperature: float, repeats: int) -> Row:
    """An open grid."""
    problem = open_problem(side, temperature)
    return timed(
        f"open grid, {side * side:,} states, τ={temperature}, with gradient", partial(respond, problem, points(problem, 4)), repeats
    )


def system(side: int, method: str, repeats: int) -> Row:
    """One factorization (or none) and one solution of (I − γP_π)v = b at the solution of an open grid."""
    problem = open_problem(side, 0.01)
    x = points(problem, 1)[0]
    mdp, response = problem.at(x), SOLVER.solve(problem, x)
    right = torch.ones_like(mdp.start)
    transition = problem.world.transition  # type: ignore[attr-defined]
    begin = np.repeat(np.arange(side * side), transition.successors.shape[1])
    entries = transition.under(response.policy).flatten().numpy()
    matrix = eye_array(side * side) - 0.99 * coo_matrix((entries, (begin, transition.successors.flatten().numpy())), (side * side,) * 2)
    matrix = matrix.tocsc()

    def blocks(_: int) -> int:
        numerics.factorize(mdp, response.policy).solve(right, transposed=False)
        return 1

    def superlu(_: int) -> int:
        splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}).solve(right.numpy())
        return 1

    def krylov(_: int) -> int:
        rows = matrix.tocsr()
        taken = [0]
        operator = LinearOperator(rows.shape, matvec=lambda v: rows @ v, dtype=np.float64)
        _, info = bicgstab(operator, right.numpy(), rtol=1e-11, callback=lambda _: taken.__setitem__(0, taken[0] + 1))
        assert info == 0
        return taken[0]

    call = {"block elimination": blocks, "SuperLU": superlu, "BiCGSTAB": krylov}[method]
    return timed(f"open grid, {side * side:,} states, one linear system: {method}", call, repeats)


def main(
    threads: Annotated[int, typer.Option(help="torch's threads; more than idle cores make it slower")] = 1,
    count: Annotated[int, typer.Option(help="x's in the batch")] = 1024,
    side: Annotated[int, typer.Option(help="of the open grid")] = 100,
    output: Annotated[Path, typer.Option(help="CSV")] = RESULTS,
) -> None:
    """Measure, print and write."""
    jobs = [
        partial(one, 200, 100),
        partial(one, None, 100),
        partial(many, count, blocks=True, repeats=3),
        partial(many, count, blocks=False, repeats=1),
        partial(wide, side, 0.1, 3),
        partial(wide, side, 0.01, 3),
        *(partial(system, side, method, 5) for method in ("block elimination", "SuperLU", "BiCGSTAB")),
    ]
    table = Table("", "median s", "factorizing", "steps", "peak MB", title=f"{threads} threads, torch {torch.__version__}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "median_s", "factor_share", "steps", "peak_mb", "threads", "torch", "version"])
        for job in jobs:
            # A process for each row; a peak never goes down again.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
                row = pool.submit(job).result()
            table.add_row(row.what, f"{row.seconds:.4g}", f"{row.factor_share:.0%}", str(row.newton_steps), f"{row.memory:.0f}")
            writer.writerow(
                [
                    row.what,
                    f"{row.seconds:.5f}",
                    f"{row.factor_share:.3f}",
                    row.newton_steps,
                    f"{row.memory:.0f}",
                    threads,
                    torch.__version__,
                    bilevel_gym.__version__,
                ]
            )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
