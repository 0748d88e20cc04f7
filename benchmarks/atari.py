"""One Atari game from pixels, end to end: does the learned reward rank pairs that nothing has trained on, and how quick is it?

    python benchmarks/atari.py                                    # SpaceInvaders, drlhf and then sobirl; an hour on one thread
    python benchmarks/atari.py --preset tiny --steps 2            # half a minute, learns nothing: to see that everything runs
    python benchmarks/atari.py --preset default --lean            # what a user gets, with a follower that a CPU can train beside it
    python benchmarks/atari.py --preset default --game BeamRider --steps 400 --device cuda --graph

Each agent is a ``Run`` in a folder of ``--runs`` with a checkpoint, so the same command goes on where it was stopped. Every upper step has
an accuracy on the task's fixed held-out pairs. They are cut out of 64 trajectories, so they are no independent draws; after the last step
the first and the last x are therefore tested on further pairs, the same for all agents: both fragments of each from a trajectory of its
own, played by sixteen random policies. Ties say nothing about an order and are left out. The hypothesis of the binomial test is that
r_x tosses a coin on the others.

``--lean`` shortens evaluations and the follower's part of an upper step, and makes batches smaller (``LEAN``); all else is as it is.
``--graph`` makes the follower's updates CUDA graphs; it needs ``--device cuda``.

Into ``--output`` go a CSV with a row an upper step of each agent, ``<game>-summary.csv`` and a picture.
"""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Annotated, Any, cast

import matplotlib as mpl
import numpy as np
import torch
import typer
from preference import commit  # beside this file
from scipy.stats import binomtest

from bilevel_gym import checkpoint
from bilevel_gym.agents import Agent, HypergradientAgent, Run, RunSpec, StopOnSignal
from bilevel_gym.agents.callbacks import StopOnBudget
from bilevel_gym.agents.plotting import COLOURS, smooth
from bilevel_gym.agents.runs import CHECKPOINT, METRICS
from bilevel_gym.frames import concatenate_states
from bilevel_gym.numerics import rewards_of
from bilevel_gym.preferences import draw_fragments
from bilevel_gym.types import Fragments, Trajectory

RESULTS = Path(__file__).parent / "results" / "atari"
SHOWN = ("upper_step", "env_steps", "lower_step", "x_updates", "comparisons", "seconds", "objective", "accuracy_fresh", "accuracy_held_out")
AFTER = ("correlation_held_out", "true_return", "learned_return", "reward_saturated")
PARTS = ("norm_direct", "norm_implicit", "norm_implicit_unclipped")
SHARES = (0.05, 0.5, 0.95)
QUANTILES = tuple(f"reward_p{100 * share:.0f}" for share in SHARES)
PANELS = {
    "accuracy_held_out": "accuracy on held-out pairs",
    "accuracy_fresh": "accuracy on fresh pairs",
    "true_return": "true return of an evaluation (points)",
    "reward_saturated": "share of steps with r_x at its bound",
}
LINES = ("sobirl", "sobirl, clip 1", "drlhf")
"""In the colours of the study's pictures."""
POLICIES, FURTHEST, UPDATES = 16, 150, 128

AGENTS: dict[str, dict[str, Any]] = {
    "demo": {"batch": 16, "updates_per_step": 25, "warmup_updates": 50, "learning_rate": 1e-3},
    "tiny": {"batch": 4, "updates_per_step": 2, "warmup_updates": 2},
}
"""Arguments of the agents by preset: on a CPU an update of x, which goes through 800 stacks of frames in ``demo``, is dear."""
LEAN: dict[str, dict[str, Any]] = {
    "solver": {"steps": 1000, "learning_starts": 1000, "updates_per_step": 0.03125},
    "objective": {"trajectories": 4, "steps": 250},
    "agent": {"batch": 8},
}
"""An upper step of ``default`` takes 2,500 updates of the follower and fifty of x, each through 3,200 and sobirl's through 4,000 further
stacks of frames: six minutes on a core, its first one eight. Of these it takes 31, 400 and 1,000."""


def spread(agent: Agent, _: Mapping[str, float]) -> dict[str, float]:
    """A callback that logs quantiles of r_x over the steps of the fresh trajectories."""
    bilevel = agent.bilevel
    with torch.no_grad():
        rewards = rewards_of(bilevel.problem.reward, bilevel.x, bilevel.evaluation.fresh.trajectories)
    return dict(zip(QUANTILES, rewards.quantile(rewards.new_tensor(SHARES)).tolist(), strict=True))


class Clock:
    """A callback that logs ``seconds`` since the cold reset, those of earlier parts of the run included."""

    def __init__(self, before: float) -> None:
        self.began = time.perf_counter() - before

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> dict[str, float]:
        """Now."""
        return {"seconds": time.perf_counter() - self.began}


def train(spec: RunSpec, folder: Path, steps: int, budget: float | None, changes: Mapping[str, Any]) -> Run:
    """Begin a run or go on with it; the first x is kept beside its folder."""
    begun = (folder / CHECKPOINT).exists()
    started = time.perf_counter()
    run = Run.load(folder, id=spec.id, agent=spec.agent, seed=spec.seed, env_kwargs=spec.env_kwargs) if begun else Run.create(spec, folder)
    if not begun:
        folder.parent.mkdir(parents=True, exist_ok=True)
        np.save(folder.with_suffix(".npy"), run.bilevel.x.cpu().numpy())
    bilevel: Any = run.bilevel
    if changes:
        bilevel.solver = replace(bilevel.solver, **changes)
    before = (rows_of(folder) or [{"seconds": 0.0}])[-1]["seconds"] if begun else time.perf_counter() - started
    stops, signal = [] if budget is None else [StopOnBudget(seconds=budget)], StopOnSignal()
    if run.step < steps:
        run.train(steps, checkpoint_every=5, callbacks=[Clock(before), spread, *stops], stop=signal)
    if signal.received is not None:
        raise typer.Exit(128 + signal.received)
    return run


def further_pairs(bilevel: Any, count: int, path: Path) -> Fragments:
    """Labelled pairs, every fragment of a trajectory of its own; played once."""
    if not path.exists():
        world, objective = bilevel.problem.world, bilevel.problem.objective
        generator = torch.Generator(device=bilevel.problem.reward.device).manual_seed(4321)
        share, steps = -(-2 * count // POLICIES), min(FURTHEST, world.horizon)
        played = [
            world.rollout(world.exploratory(generator), trajectories=share, steps=steps, generator=generator) for _ in range(POLICIES)
        ]
        order = torch.randperm(POLICIES * share, generator=generator, device=generator.device)
        names = ("states", "actions", "alive", "rewards")
        mixed = Trajectory(**{name: concatenate_states([getattr(one, name) for one in played])[order] for name in names})
        drawn, rewards = draw_fragments(mixed, count, 2, objective.length, "anywhere", generator)
        pairs = replace(drawn.fragments, outcome=objective.teacher.label(rewards, generator))
        checkpoint.save(path, {"pairs": checkpoint.pack(pairs)})
    found: Fragments = checkpoint.unpack(checkpoint.load(path)["pairs"])
    return found


@torch.no_grad()
def right(bilevel: Any, x: torch.Tensor, pairs: Fragments) -> tuple[int, int]:
    """How many of the decided pairs r_x ranks as their labels do, and how many are decided."""
    logits = bilevel.problem.objective.logits(bilevel.problem, x, pairs).mean(0)
    decided = (pairs.outcome != 0.5) & ~pairs.outcome.isnan()
    return int(((logits > 0) == (pairs.outcome > 0.5))[decided].sum()), int(decided.sum())


def speeds(run: Run) -> tuple[float, float]:
    """Updates a second of the follower's networks and of x, where the run stands; what is learnt on the way is thrown away."""
    bilevel: Any = run.bilevel
    solver, agent = bilevel.solver, cast(HypergradientAgent, run.agent)
    steps = max(1, UPDATES // 4) * solver.num_envs * solver.update_every

    def solve(rate: float) -> float:
        timed = replace(solver, steps=steps, updates_per_step=rate, learning_starts=0)
        warm = replace(bilevel.response, state=bilevel.response.state.fork())
        return clocked(lambda: timed.solve(bilevel.problem, bilevel.x, warm=warm, generator=bilevel.oracle.generator), bilevel.x.device)

    playing, learning = solve(0.0), solve(UPDATES / steps)
    before, seconds = agent.x_updates, clocked(agent.act, bilevel.x.device)
    return UPDATES / max(learning - playing, 1e-9), (agent.x_updates - before) / seconds


def clocked(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run."""
    with (folder / METRICS).open(newline="") as file:
        return [{name: float(cell) if cell else nan for name, cell in row.items()} for row in csv.DictReader(file)]


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's of 95 %."""
    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{cell:.6g}" if isinstance(cell, float) else cell for name, cell in row.items()} for row in rows)


def draw(curves: Mapping[str, list[dict[str, Any]]], path: Path, game: str) -> None:
    """Accuracies, returns and saturation over environment steps: thin as they are, and thick their running means."""
    mpl.use("agg")
    from matplotlib import pyplot

    panels = {
        name: label for name, label in PANELS.items() if any(np.isfinite(row[name]).any() for rows in curves.values() for row in rows)
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.8), layout="constrained")
    for axis, (metric, label) in zip(axes, panels.items(), strict=True):
        for name, rows in curves.items():
            over, values = (np.array([row[key] for row in rows]) for key in ("env_steps", metric))
            colour, mean = COLOURS[LINES.index(name)] if name in LINES else COLOURS[-1], smooth(values)
            if mean is not None:
                axis.plot(over / 1000, values, color=colour, linewidth=0.7, alpha=0.4)
            axis.plot(over / 1000, values if mean is None else mean, color=colour, linewidth=1.8, label=name)
            if metric == "accuracy_held_out":
                low, high = (np.array([row[end] for row in rows]) for end in ("low", "high"))
                axis.fill_between(over / 1000, low, high, color=colour, alpha=0.13, linewidth=0)
        if metric.startswith("accuracy"):
            axis.axhline(0.5, color="grey", linewidth=0.8, linestyle="--", zorder=0)
        axis.set_xlabel("thousand environment steps")
        axis.set_title(label, loc="left", fontsize=10)
        axis.grid(linewidth=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{game}: thick, running means; shaded, 95 % of each step's held-out pairs (Wilson); dashed, guessing", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(
    agent: Annotated[list[str] | None, typer.Option(help="drlhf and sobirl by default; may be repeated")] = None,
    game: Annotated[str, typer.Option(help="any that bilevel/AtariPreference-v0 knows")] = "SpaceInvaders",
    preset: Annotated[str, typer.Option(help="demo | tiny | default | aistats2025")] = "demo",
    steps: Annotated[int, typer.Option(help="upper steps in all")] = 60,
    seconds: Annotated[float | None, typer.Option(help="end each run after the upper step in which so much time is spent")] = None,
    pairs: Annotated[int, typer.Option(help="further pairs of the test at the end; 0 leaves it out, and the summary")] = 300,
    seed: Annotated[int, typer.Option(help="of everything")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    graph: Annotated[bool, typer.Option(help="the follower's updates as CUDA graphs")] = False,
    clip: Annotated[float | None, typer.Option(help="of sobirl's implicit part; the recipe's by default")] = None,
    lean: Annotated[bool, typer.Option(help="a smaller follower and shorter evaluations, for the default preset on a CPU")] = False,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    runs: Annotated[Path, typer.Option(help="folders of the runs")] = Path("runs") / "atari",
    output: Annotated[Path, typer.Option(help="CSV and picture")] = RESULTS,
) -> None:
    """Train what is missing, test it, and write the results."""
    torch.set_num_threads(threads)
    curves, summary = {}, []
    solver = {**({"graph_updates": 1} if graph else {}), **(LEAN["solver"] if lean else {})}
    label = f"{game}-{preset}{'-lean' if lean else ''}{f'-clip{clip:g}' if clip else ''}"
    for name in agent or ["drlhf", "sobirl"]:
        kwargs = {"game": game, "preset": preset, "device": device, **({"objective": LEAN["objective"]} if lean else {})}
        options = {**AGENTS.get(preset, {}), **(LEAN["agent"] if lean else {}), **({"clip": clip} if clip and name == "sobirl" else {})}
        spec = RunSpec("bilevel/AtariPreference-v0", name, seed, kwargs, options)
        folder = runs / f"{label}-{name}-{seed}"
        run = train(spec, folder, steps, seconds, solver)
        bilevel: Any = run.bilevel
        decided = int((bilevel._memory.held_out.outcome != 0.5).sum()) if bilevel._memory.held_out is not None else 0
        arm = f"{name}, clip {clip:g}" if clip and name == "sobirl" else name
        curves[arm] = rows = []
        for row in rows_of(folder):
            low, high = interval(row["accuracy_held_out"], decided) if decided else (nan, nan)
            rows.append(
                {key: row.get(key, nan) for key in SHOWN}
                | {"low": low, "high": high}
                | {key: row.get(key, nan) for key in (*AFTER, *QUANTILES, *PARTS)}
            )
        write(output / f"{game}-{arm.replace(', ', '-').replace(' ', '')}.csv", rows)
        draw(curves, output / f"{game}.png", game)
        if not pairs:
            continue
        last, further = rows[-1], further_pairs(bilevel, pairs, runs / f"{game}-{preset}-{device}-pairs.pt")
        first = torch.as_tensor(np.load(folder.with_suffix(".npy"))).to(bilevel.x)
        (at_first, _), (at_last, tested) = right(bilevel, first, further), right(bilevel, bilevel.x, further)
        low, high = interval(at_last / tested, tested) if tested else (nan, nan)
        follower, leader = speeds(run)
        summary.append(
            {
                "agent": name,
                "game": game,
                "preset": preset,
                "seed": seed,
                "device": device,
                "graph": graph,
                "lean": lean,
                "clip": getattr(cast(HypergradientAgent, run.agent).estimator, "clip", None),
                "threads": threads,
                **{key: last[key] for key in ("upper_step", "env_steps", "lower_step", "x_updates", "comparisons", "seconds")},
                "env_steps_per_second": last["env_steps"] / last["seconds"],
                "follower_updates_per_second": follower,
                "x_updates_per_second": leader,
                "pairs_decided": tested,
                "right_at_first": at_first,
                "right_at_last": at_last,
                "low": low,
                "high": high,
                "p_above_chance": float(binomtest(at_last, tested, alternative="greater").pvalue) if tested else nan,
                "commit": commit(),
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
        )
        print(*(f"{key}: {value}" for key, value in summary[-1].items()), sep="\n", end="\n\n", flush=True)
        write(output / f"{game}-summary.csv", summary)
        run.env.close()
    if device == "cpu":
        print("On a CPU. No graph was captured; --device cuda --graph is the same run on a GPU.")


if __name__ == "__main__":
    typer.run(main)
