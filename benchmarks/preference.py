"""SoBiRL against DRLHF, PBRL, HPGD and a soft actor-critic that is told the truth, on the same preference tasks.

    python benchmarks/preference.py run --task CartPole --agent sobirl --seed 0     # one curve; goes on where it was stopped
    python benchmarks/preference.py all --processes 2                               # the whole plan; hours
    python benchmarks/preference.py report                                          # raw CSV, curves and tables out of what is there

All arms have the same follower, reward network and teacher, and the same budget of environment steps, comparisons and updates of x. Two
are special. PBRL has a second follower, its own actor, and so half as many upper steps with twice as many of each. HPGD plays some
thousand steps of continuations in each upper step, and ends after a few of them, since no run gets more than ``MOST`` environment steps.
``sac`` asks for the same labels and learns nothing from them.

Every few upper steps the follower is looked at apart from its training: ``EPISODES`` episodes of it, a hundred labelled pairs cut out of
them (fresh ones, which nothing trains on), and a fixed held-out set of the task, the same for all arms and seeds, half of it played by
policies of random quality, half by soft actor-critics on the true reward from poor to good. None of this counts in the budget.

A run is a folder of ``Run`` with a checkpoint, written at each such look; the JSON file beside it says what made it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bilevel_gym import checkpoint
from bilevel_gym.agents import Agent, Run, RunSpec, StopOnSignal
from bilevel_gym.agents.making import make_env
from bilevel_gym.agents.runs import CHECKPOINT
from bilevel_gym.objectives import PreferenceMemory, PreferenceObjective
from bilevel_gym.preferences import PreferenceBuffer
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import EnvironmentReward

RESULTS = Path(__file__).parent / "results" / "preference"
RUNS = Path("runs") / "preference"
HELD_OUT = "held_out.pt"
EPISODES, PAIRS, HELD_OUT_PAIRS, STAGES = 10, 100, 512, 4
MOST = 100_000
"""Environment steps of a run: the upper step that exceeds them is its last."""


@dataclass(frozen=True)
class Task:
    """A task and its budget."""

    steps: int
    """Upper steps."""
    every: int
    """Upper steps from one look to the next."""
    seeds: int
    random: float
    """The true return of uniform actions, the mean of 200 episodes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``gymnasium.make`` beside the preset."""
    true_temperature: float = 0.2
    """τ of the held-out set's experts, in units of the true reward of a step."""

    def arguments(self, preset: str) -> dict[str, Any]:
        """All arguments of ``gymnasium.make``."""
        return {"preset": preset, **self.options}


TASKS = {
    # falls are whole numbers: two fragments with as many are equal, one more is seen in 993 of 1000 cases
    "CartPole": Task(25, 1, 5, -11.0, {"rationality": 5.0, "teacher": {"equal_within": 0.5}}, true_temperature=0.05),
    "Pendulum": Task(25, 1, 5, -1213.0),
    "HalfCheetah": Task(50, 2, 5, -70.0),
}


@dataclass(frozen=True)
class Arm:
    """A recipe, and how it is put on a par with the others."""

    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    followers: int = 1
    """How many learn and are compared in an upper step; so many fewer are the upper steps."""

    def steps(self, task: str) -> int:
        """Upper steps of a run."""
        return ceil(TASKS[task].steps / self.followers)


ARMS = {
    "sobirl": Arm("sobirl", {"sensitivity": "critic"}),
    "sobirl-tight-clip": Arm("sobirl", {"sensitivity": "critic", "clip": 0.1}),
    "sobirl-one-step": Arm("sobirl", {"sensitivity": "one_step"}),
    "drlhf": Arm("drlhf"),
    "hpgd": Arm("hpgd"),
    "sac": Arm("sac"),
    # the second follower is its own actor, which plays and is asked about as the environment's is; x moves as often as the others'
    "pbrl": Arm("pbrl", {"updates_per_step": 100}, followers=2),
}

app = typer.Typer(add_completion=False, help="The study of preference tasks.")

TaskName = Annotated[str, typer.Option(help=" | ".join(TASKS))]
Folder = Annotated[Path, typer.Option(help="where the folders of the runs are")]
Preset = Annotated[str, typer.Option(help="sizes; tiny is for checks")]


class Look:
    """A callback that measures the follower apart from the training, at equal seeds each time, and always after the last step."""

    def __init__(self, every: int, last: int, objective: PreferenceObjective, memory: PreferenceMemory, seed: int) -> None:
        self.every, self.last, self.objective, self.memory, self.seed = every, last, objective, memory, seed

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """``eval_objective``, the mean loss of the fresh pairs, the share of them that are no ties, and the objective's own metrics.

        None where it is not due. Where all pairs are ties, as on CartPole without falls, ``eval_accuracy_fresh`` is ½ and means nothing.
        """
        step = int(metrics["upper_step"])
        if step % self.every and step < self.last and metrics["env_steps"] < MOST:
            return None
        bilevel = agent.bilevel
        generator = torch.Generator().manual_seed(self.seed)
        evaluation, _ = self.objective.evaluate(bilevel.problem, bilevel.x, bilevel.response, self.memory, generator)
        decided = (evaluation.fresh.fragments.outcome != 0.5).float().mean()
        found = {"objective": float(evaluation.value), "decided_fresh": float(decided), **evaluation.metrics}
        return {f"eval_{name}": value for name, value in found.items()}


def looking(objective: PreferenceObjective) -> PreferenceObjective:
    """The objective as a measuring device: more pairs, and nothing is kept."""
    return replace(
        objective, pairs=PAIRS, initial_pairs=None, trajectories=EPISODES, capacity=0, held_out_pairs=HELD_OUT_PAIRS, comparisons=None
    )


def held_out(task: str, preset: str, folder: Path) -> PreferenceMemory:
    """The fixed pairs of a task; played once, by all that learn ``STAGES`` times a quarter of the task's budget from the true reward."""
    path = folder / task / HELD_OUT
    if not path.exists():
        bilevel: Any = make_env(f"bilevel/{task}Preference-v0", TASKS[task].arguments(preset)).unwrapped
        generator = torch.Generator().manual_seed(12345)
        told = replace(bilevel.problem, reward=EnvironmentReward(), regularizer=Shannon(TASKS[task].true_temperature))
        solver = replace(bilevel.solver, steps=bilevel.solver.steps * max(1, TASKS[task].steps // STAGES) if preset != "tiny" else 50)
        x, response, experts = told.reward.initial(generator), bilevel.solver.start(told), []
        for _ in range(STAGES):
            response = solver.solve(told, x, warm=response, generator=generator)
            experts.append(response.policy)
        objective = replace(looking(told.objective), experts=experts)
        _, memory = objective.evaluate(told, x, response, objective.start(), generator)
        bilevel.close()
        checkpoint.save(path, {"pairs": checkpoint.pack(memory.held_out), "returns": checkpoint.pack(memory.held_out_returns)})
    saved = checkpoint.load(path)
    return PreferenceMemory(PreferenceBuffer(0), checkpoint.unpack(saved["pairs"]), checkpoint.unpack(saved["returns"]), evaluations=1)


def spent(_: Agent, metrics: Mapping[str, float]) -> bool:
    """A callback that ends a run that has had its environment steps."""
    return metrics["env_steps"] < MOST


@app.command()
def run(
    task: TaskName,
    agent: Annotated[str, typer.Option(help=" | ".join(ARMS))],
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    runs: Folder = RUNS,
    preset: Preset = "study",
    steps: Annotated[int | None, typer.Option(help="upper steps; the plan's by default")] = None,
) -> None:
    """One curve: begin it, or go on with it."""
    torch.set_num_threads(1)  # the networks are small: two threads would mostly wait for each other
    plan, folder = TASKS[task], folder_of(runs, task, agent, seed)
    arm = ARMS[agent]
    total = steps or arm.steps(task)
    about = {"task": task, "agent": agent, "seed": seed, "steps": total}
    if done(folder, total):
        typer.echo(f"{folder} is done")
        return
    memory = held_out(task, preset, runs)
    spec = RunSpec(f"bilevel/{task}Preference-v0", arm.recipe, seed, plan.arguments(preset), arm.options)
    one = Run.load(folder) if (folder / CHECKPOINT).exists() else Run.create(spec, folder)
    look = Look(plan.every, total, looking(one.bilevel.problem.objective), memory, seed)
    described = {"commit": commit(), **read(folder), **about}
    about_of(folder).write_text(json.dumps(described) + "\n")
    finished = one.train(total, checkpoint_every=plan.every, callbacks=[look, spent], stop=StopOnSignal())
    steps_played = one.bilevel.counters.env_steps
    if finished or steps_played >= MOST:
        about_of(folder).write_text(json.dumps({**described, "done": True}) + "\n")
    typer.echo(f"{folder}: {one.step} of {total} upper steps, {steps_played} environment steps")


@app.command(name="all")
def everything(
    task: Annotated[list[str] | None, typer.Option(help="only these tasks; may be repeated")] = None,
    agent: Annotated[list[str] | None, typer.Option(help="only these arms; may be repeated")] = None,
    processes: Annotated[int, typer.Option(help="runs at a time, each on one thread")] = 2,
    runs: Folder = RUNS,
    preset: Preset = "study",
) -> None:
    """All that is missing of the plan, first the first seed of every task and arm; a stop loses what came after the last look."""
    tasks, arms = task or list(TASKS), agent or list(ARMS)
    wanted = [(name, arm, seed) for seed in range(max(TASKS[name].seeds for name in tasks)) for name in tasks for arm in arms]
    wanted = [
        (name, arm, seed)
        for name, arm, seed in wanted
        if seed < TASKS[name].seeds and not done(folder_of(runs, name, arm, seed), ARMS[arm].steps(name))
    ]
    for name in tasks:
        held_out(name, preset, runs)

    def go(one: tuple[str, str, int]) -> int:
        name, arm, seed = one
        command = [sys.executable, __file__, "run", "--task", name, "--agent", arm, "--seed", str(seed), "--runs", str(runs)]
        return subprocess.run([*command, "--preset", preset], env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}).returncode

    with ThreadPoolExecutor(processes) as pool:
        failed = [one for one, code in zip(wanted, pool.map(go, wanted), strict=True) if code]
    if failed:
        raise typer.Exit(f"these runs failed: {failed}")


@app.command()
def report(
    runs: Folder = RUNS,
    output: Annotated[Path, typer.Option(help="folder of raw CSV, curves and tables; runs that are gone stay")] = RESULTS,
) -> None:
    """Raw CSV, curves and tables of all finished runs."""
    from preference_report import write_report  # beside this file; it needs the extra "benchmarks"

    output.mkdir(parents=True, exist_ok=True)
    typer.echo(write_report(runs, output, {name: plan.random for name, plan in TASKS.items()}, list(ARMS)))


def folder_of(runs: Path, task: str, agent: str, seed: int) -> Path:
    """Where a run is kept."""
    return runs / task / f"{agent}-{seed}"


def about_of(folder: Path) -> Path:
    """What made a run, and whether it is done: a file beside its folder."""
    return folder.with_suffix(".json")


def read(folder: Path) -> dict[str, Any]:
    """What is known about a run; nothing where it has not begun."""
    path = about_of(folder)
    return json.loads(path.read_text()) if path.exists() else {}


def done(folder: Path, steps: int) -> bool:
    """Whether a run of so many upper steps has come to its end."""
    about = read(folder)
    return about.get("steps") == steps and about.get("done", False)


def commit() -> str:
    """The commit of the working tree, short."""
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    app()
