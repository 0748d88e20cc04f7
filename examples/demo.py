"""SoBiRL learns a reward from preferences on a real MuJoCo task, in minutes on two cores.

    python examples/demo.py                    # what `make demo` runs
    python examples/demo.py --quick            # some seconds, learns nothing: to see that everything is installed
    python examples/demo.py --agent drlhf      # the same without the implicit term

The leader never sees the true reward of HalfCheetah. It shows a teacher pairs of half-second fragments of what the follower does,
and shapes r_x by the hyper-gradient of how well r_x predicts the answers; the follower, a soft actor-critic, maximises r_x.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bilevel_gym.agents import Run, RunSpec, StopOnSignal, evaluate_policy
from bilevel_gym.agents.plotting import plot_runs
from bilevel_gym.agents.runs import CHECKPOINT, CURVE, METRICS

EPISODES = 20


def main(
    agent: Annotated[str, typer.Option(help="sobirl or drlhf")] = "sobirl",
    env_id: Annotated[str, typer.Option("--id", help="a preference task")] = "bilevel/HalfCheetahPreference-v0",
    steps: Annotated[int, typer.Option(help="upper steps; each is 2,000 follower steps and 16 questions to the teacher")] = 40,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    output: Annotated[Path | None, typer.Option(help="the folder of the run; an existing one is resumed")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a few seconds with tiny networks")] = False,
) -> None:
    """Train, compare with a random policy, and say where the picture is."""
    console = Console()
    torch.set_num_threads(1)  # the networks are small: two threads would mostly wait for each other
    preset, steps = ("tiny", min(steps, 2)) if quick else ("demo", steps)
    folder = output or Path("runs") / f"demo-{agent}-{preset}-seed{seed}"
    spec = RunSpec(env_id, agent, seed, {"preset": preset})
    run = Run.load(folder, id=env_id, agent=agent, seed=seed) if (folder / CHECKPOINT).exists() else Run.create(spec, folder)
    console.print(
        f"[bold]{agent}[/] on [bold]{env_id}[/], {steps} upper steps, from step {run.step}; Ctrl-C is safe, the same command goes on"
    )
    if run.step >= steps:
        console.print(f"it is done already; --seed N trains another one, --steps N goes on, deleting {folder} begins anew")
    began, before = time.perf_counter(), run.bilevel.counters.env_steps
    run.train(steps, progress_bar=True, checkpoint_every=5, stop=StopOnSignal())
    seconds, played = time.perf_counter() - began, run.bilevel.counters.env_steps - before
    plot_runs([folder], folder / CURVE)
    report(console, run, played / seconds if played else None)
    console.print(f"curves: {folder / CURVE}\nnumbers: {folder / METRICS}")


def report(console: Console, run: Run, speed: float | None) -> None:
    """The table at the end: both policies on the same resets, both accuracies, the speed."""
    world, metrics = run.bilevel.problem.world, run.bilevel.evaluation.metrics
    table = Table("", "value", "standard error", title=f"after {run.step} upper steps, {run.bilevel.counters.comparisons} comparisons")
    for name, policy in (("learned policy", run.bilevel.response.policy), ("random policy", world.uniform())):
        mean, error = evaluate_policy(world, policy, episodes=EPISODES, generator=torch.Generator().manual_seed(1))
        table.add_row(f"true return, {name}, {EPISODES} episodes", f"{mean:.1f}", f"{error:.1f}")
    table.add_row("preference accuracy, this step's fresh pairs", f"{metrics['accuracy_fresh']:.2f}")
    table.add_row("preference accuracy, fixed held-out pairs", f"{metrics['accuracy_held_out']:.2f}")
    if speed is not None:
        table.add_row("environment steps per second, training and evaluation", f"{speed:.0f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
