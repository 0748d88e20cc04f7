"""What the runs of ``preference.py`` say: one CSV a task, curves, and tables with 95 % intervals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite, log, nan
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter
from rliable import library, metrics
from scipy import stats

from bilevel_gym.agents.plotting import COLOURS
from bilevel_gym.agents.runs import METRICS

ABOUT = ("agent", "seed", "commit")
MEASURED = {
    "true_return": "eval_true_return",
    "accuracy_fresh": "eval_accuracy_fresh",
    "decided_fresh": "eval_decided_fresh",
    "accuracy_held_out": "eval_accuracy_held_out",
    "correlation_held_out": "eval_correlation_held_out",
    "objective": "eval_objective",
    "learned_return": "eval_learned_return",
}
"""Names in the CSV and in ``metrics.csv``."""
COUNTED = ("upper_step", "env_steps", "lower_step", "comparisons", "x_updates")
PARTS = ("norm_direct", "norm_implicit_unclipped", "norm_implicit")
"""Lengths of the two parts of a hyper-gradient, the second before its clip too."""
SHOWN = {
    "true_return": "true return",
    "accuracy_fresh": "accuracy, fresh pairs",
    "accuracy_held_out": "accuracy, held-out pairs",
    "objective": "f, fresh pairs",
}
"""What is drawn and tabulated."""
LAST = 0.2
"""Share of a run's looks, the last ones, whose mean is its result."""
FEWEST = 0.05
"""Share of fresh pairs that must be no ties for their accuracy to count."""
REPETITIONS, ALONG = 5000, 200
"""Resamples behind an interval of the tables, and of the curves."""

Row = dict[str, Any]
Interval = tuple[float, float, float]
"""Middle, lower and upper end."""


class Finals(NamedTuple):
    """One arm's results on a task, a number for each seed."""

    seeds: list[int]
    values: dict[str, np.ndarray]
    env_steps: int


def collect(runs: Path, task: str, there: Path) -> list[Row]:
    """All looks of a task's finished runs: those of the folders, and of the CSV those runs whose folders are not here."""
    found: dict[tuple[str, int], list[Row]] = {}
    if there.exists():
        with there.open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["agent"], int(row["seed"])), []).append(row)
    for about in sorted((runs / task).glob("*.json")):
        one = json.loads(about.read_text())
        if one.get("done"):
            with (about.with_suffix("") / METRICS).open(newline="") as file:
                looks = [row for row in csv.DictReader(file) if row.get("eval_true_return")]
            found[one["agent"], one["seed"]] = [
                {
                    **{name: one[name] for name in ABOUT},
                    **{name: row.get(name) or "0" for name in COUNTED},  # an agent that leaves x alone reports no updates
                    **{name: f"{float(row[column]):.5g}" for name, column in MEASURED.items()},
                }
                for row in looks
            ]
    return [row for key in sorted(found) for row in found[key]]


def write(rows: Sequence[Row], path: Path) -> None:
    """The raw numbers of a task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*ABOUT, *COUNTED, *MEASURED])
        writer.writeheader()
        writer.writerows(rows)


def write_parts(runs: Path, tasks: Sequence[str], path: Path) -> None:
    """``PARTS`` after each upper step, of the arms that have an implicit part; what is in the file stays where a run's folder is gone."""
    keys = ("task", "agent", "seed")
    found: dict[tuple[str, ...], list[Row]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(tuple(row[name] for name in keys), []).append(row)
    for task in tasks:
        for about in sorted((runs / task).glob("*.json")):
            one = json.loads(about.read_text())
            with (about.with_suffix("") / METRICS).open(newline="") as file:
                steps = list(csv.DictReader(file))
            if one.get("done") and any(row.get(PARTS[1]) for row in steps):
                key = tuple(str(one[name]) for name in keys)
                lengths = [{name: f"{float(row.get(name) or 0):.5g}" for name in PARTS} for row in steps]  # none is none yet
                found[key] = [
                    {**dict(zip(keys, key, strict=True)), "upper_step": row["upper_step"], **part}
                    for row, part in zip(steps, lengths, strict=True)
                ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*keys, "upper_step", *PARTS])
        writer.writeheader()
        writer.writerows(row for key in sorted(found, key=lambda key: (tasks.index(key[0]), key)) for row in found[key])


def curves_of(rows: Sequence[Row], agent: str) -> list[list[Row]]:
    """The looks of each seed of an arm."""
    seeds = sorted({int(row["seed"]) for row in rows if row["agent"] == agent})
    return [[row for row in rows if row["agent"] == agent and int(row["seed"]) == seed] for seed in seeds]


def along(rows: Sequence[Row], agent: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One quantity of one arm at the looks that all its seeds have: [looks, seeds], and the mean environment steps [looks]."""
    looks = list(zip(*curves_of(rows, agent), strict=False))
    return np.array([[_value(row, name) for row in look] for look in looks]), np.array([_mean(look, "env_steps") for look in looks])


def finals(rows: Sequence[Row], agent: str) -> Finals:
    """The mean over each seed's last looks; NaN where none of them had fresh pairs to decide."""
    seeds = sorted({int(row["seed"]) for row in rows if row["agent"] == agent})
    last = [curve[-ceil(LAST * len(curve)) :] for curve in curves_of(rows, agent)]
    values = {name: np.array([_mean(looks, name) for looks in last]) for name in SHOWN}
    return Finals(seeds, values, round(_mean([looks[-1] for looks in last], "env_steps")))


def interquartile(values: np.ndarray, repetitions: int | None = None) -> Interval:
    """The interquartile mean over seeds and its bootstrap interval."""
    return _bootstrap({"": values[:, None]}, lambda table: np.array([metrics.aggregate_iqm(table)]), repetitions)


def differences(one: Finals, other: Finals, name: str) -> np.ndarray:
    """Seed by seed, for seeds that both have: looks with equal seeds play from equal starts, which on Pendulum decide most of a return."""
    common = [seed for seed in one.seeds if seed in other.seeds]
    values = np.array([one.values[name][one.seeds.index(seed)] - other.values[name][other.seeds.index(seed)] for seed in common])
    return values[np.isfinite(values)]


def mean_interval(values: np.ndarray) -> Interval:
    """The mean and its 95 % interval by Student's t, which is wider than a bootstrap of a handful of seeds, and more honest."""
    mean, half = float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def _bootstrap(scores: dict[str, Any], statistic: Callable[..., np.ndarray], repetitions: int | None = None) -> Interval:
    # rliable 1.2 draws from NumPy's global generator whatever it is given: the last digits of an interval differ from run to run
    points, ends = library.get_interval_estimates(scores, statistic, reps=repetitions or REPETITIONS)
    return float(points[""][0]), float(ends[""][0, 0]), float(ends[""][1, 0])


def _mean(rows: Sequence[Row], name: str) -> float:
    known = [value for value in (_value(row, name) for row in rows) if isfinite(value)]
    return float(np.mean(known)) if known else nan


def _value(row: Row, name: str) -> float:
    if name == "accuracy_fresh" and float(row["decided_fresh"]) < FEWEST:
        return nan
    return float(row[name])


def result_table(task: str, rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Markdown: a row for each arm, interquartile means with their intervals."""
    lines = [f"| {task} | seeds | environment steps | " + " | ".join(SHOWN.values()) + " |", "|---" * (3 + len(SHOWN)) + "|"]
    for agent in arms:
        found = finals(rows, agent)
        cells = [_cell(values[np.isfinite(values)], name) for name, values in found.values.items()]
        lines.append(f"| {agent} | {len(found.values['true_return'])} | {found.env_steps:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference_table(task: str, rows: Sequence[Row], arms: Sequence[str], of: str) -> str:
    """Markdown: one arm less each other, mean differences of equal seeds with their intervals."""
    lines = [f"| {task}: {of} less | " + " | ".join(SHOWN.values()) + " |", "|---" * (1 + len(SHOWN)) + "|"]
    mine = finals(rows, of)
    for agent in arms:
        if agent != of:
            found = {name: differences(mine, finals(rows, agent), name) for name in SHOWN}
            cells = [_text(mean_interval(values), name) if len(values) > 1 else "–" for name, values in found.items()]
            lines.append(f"| {agent} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def equal_steps_table(tables: Mapping[str, Sequence[Row]], arms: Sequence[str], of: str) -> str:
    """Markdown: one arm less each that had fewer upper steps, as if it had been stopped at that one's last.

    There the two followers that are looked at have made equally many updates. Empty where no arm had fewer.
    """
    lines = [f"| at equal upper steps: {of} less | upper steps | " + " | ".join(SHOWN.values()) + " |", "|---" * (2 + len(SHOWN)) + "|"]
    for task, rows in tables.items():
        mine = [row for row in rows if row["agent"] == of]
        for agent in _present(rows, arms):
            ends = {int(curve[-1]["seed"]): int(curve[-1]["upper_step"]) for curve in curves_of(rows, agent)}
            begun = [row for row in mine if int(row["upper_step"]) <= ends.get(int(row["seed"]), 0)]
            if max(ends.values()) < max(int(row["upper_step"]) for row in mine):
                found = {name: differences(finals(begun, of), finals(rows, agent), name) for name in SHOWN}
                cells = [_text(mean_interval(values), name) if len(values) > 1 else "–" for name, values in found.items()]
                lines.append(f"| {agent}, {task} | {max(ends.values())} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def overall_table(rows: Mapping[str, Sequence[Row]], random: Mapping[str, float], arms: Sequence[str]) -> str:
    """Markdown: returns on all tasks together, 0 being uniform actions and 1 the mean of ``sac``; the arms that each task has."""
    lines = ["| all tasks | seeds of each | return, 0 = uniform actions, 1 = sac |", "|---|---|---|"]
    found = {task: {agent: finals(table, agent).values["true_return"] for agent in _present(table, arms)} for task, table in rows.items()}
    for agent in arms:
        if all({agent, "sac"} <= set(table) for table in found.values()):
            count = min(len(table[agent]) for table in found.values())
            scores = [(table[agent][:count] - random[task]) / (table["sac"].mean() - random[task]) for task, table in found.items()]
            interval = _bootstrap({"": np.stack(scores, 1)}, lambda table: np.array([metrics.aggregate_iqm(table)]))
            lines.append(f"| {agent} | {count} | {_text(interval, '')} |")
    return "\n".join(lines)


def _present(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    return [agent for agent in arms if any(row["agent"] == agent for row in rows)]


def _cell(values: np.ndarray, name: str) -> str:
    if len(values) == 0:
        return "–"
    return _text(interquartile(values), name) if len(values) > 1 else _number(float(values[0]), name)


def _text(interval: Interval, name: str) -> str:
    middle, low, high = (_number(value, name) for value in interval)
    return f"{middle} [{low}, {high}]"


def _number(value: float, name: str) -> str:
    text = f"{value:.2f}" if "return" not in name or abs(value) < 10.0 else f"{value:.1f}" if abs(value) < 100.0 else f"{value:.0f}"
    return text.replace("-", "−")


def draw(task: str, rows: Sequence[Row], arms: Sequence[str], path: Path) -> None:
    """A panel each: interquartile means over the seeds along environment steps, with their bootstrap intervals."""
    mpl.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(10.0, 6.8), layout="constrained")
    for axis, (name, label) in zip(axes.flat, SHOWN.items(), strict=True):
        for colour, agent in zip(COLOURS, arms, strict=False):
            values, env_steps = along(rows, agent, name)
            known = np.isfinite(values).any(1)
            ends = np.array([interquartile(look[np.isfinite(look)], ALONG) for look in values[known]]).reshape(-1, 3)
            steps = env_steps[known] / 1000
            axis.plot(steps, ends[:, 0], color=colour, label=agent, linewidth=1.6)
            axis.fill_between(steps, ends[:, 1], ends[:, 2], color=colour, alpha=0.13, linewidth=0)
        axis.set_title(label, loc="left")
        axis.set_xlabel("thousand environment steps")
        if name.startswith("accuracy"):
            axis.axhline(0.5, color="grey", linewidth=0.8, linestyle="--", zorder=0)  # what guessing reaches
        if name == "objective":
            axis.set_yscale("log")
            axis.axhline(log(2.0), color="grey", linewidth=0.8, linestyle="--", zorder=0)  # a reward that knows nothing
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(linewidth=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{task}: interquartile means over the seeds, 95 % bootstrap intervals; dashed: guessing")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(runs: Path, output: Path, random: Mapping[str, float], arms: Sequence[str]) -> str:
    """CSV, curves, ``tables.md`` and ``implicit.csv`` of all runs that are there; the text of the tables.

    Args:
        runs: the folder of the runs.
        output: what is in its CSV files stays where the runs are gone.
        random: the tasks, and the return of uniform actions on each.
        arms: in the order of the rows.
    """
    found = {task: rows for task in random if (rows := collect(runs, task, output / f"{task}.csv"))}
    parts = []
    for task, rows in found.items():
        write(rows, output / f"{task}.csv")
        present = _present(rows, arms)
        draw(task, rows, present, output / f"{task}.png")
        parts += [result_table(task, rows, present), *([difference_table(task, rows, present, "sobirl")] if "sobirl" in present else [])]
    parts.append(overall_table(found, random, arms))
    if all("sobirl" in _present(rows, arms) for rows in found.values()):
        parts.append(equal_steps_table(found, arms, "sobirl"))
    text = "\n\n".join(part for part in parts if part) + "\n"
    (output / "tables.md").write_text(text)
    write_parts(runs, list(random), output / "implicit.csv")
    return text
