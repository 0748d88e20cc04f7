"""Learning curves from run folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel_gym.agents.runs import DESCRIPTION, METRICS
from bilevel_gym.errors import CheckpointError, InvalidProblem, OutputExists, UnknownName, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "plot_runs", "read_metrics", "smooth"]

_TITLES = {
    "objective": "objective f(x, π)",
    "best_objective": "lowest objective so far",
    "norm_hypergradient": "norm of the hyper-gradient",
    "gap": "gap of the lower level",
    "true_return": "true return of the learned policy",
    "learned_return": "return under the learned reward",
    "accuracy_fresh": "accuracy on fresh pairs",
    "accuracy_held_out": "accuracy on held-out pairs",
    "correlation_held_out": "correlation of learned and true returns",
    "comparisons_left": "labels left of the budget",
    "distance": "distance of x from the optimum",
    "test_r2": "variance explained on the test set",
    "test_accuracy": "accuracy on the test set",
    "separation": "right labels above wrong ones",
}
_AXES = {"upper_step": "upper steps", "lower_step": "lower steps", "env_steps": "environment steps", "comparisons": "comparisons"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's: told apart by everybody."""
_GREY = "#444444"
_PICTURES = {".png": (b"\x89PNG",), ".pdf": (b"%PDF",), ".svg": (b"<?xml", b"<svg")}
"""How a file of each suffix begins."""


def read_metrics(folder: str | Path) -> dict[str, np.ndarray]:
    """The columns of a run's ``metrics.csv``, NaN where a field is empty.

    Args:
        folder: of the run.

    Returns:
        name → [steps]. A last row that a kill cut short is left out.

    Raises:
        CheckpointError: the folder holds no metrics, or no table of numbers.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {METRICS}: give the folder of a run, such as the --output of a training")
    try:
        columns, *rows = list(csv.reader(line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))) or [[]]
        table = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows if len(row) == len(columns)], dtype=np.float64)
    except ValueError as error:  # text where a number belongs, or no text at all
        raise CheckpointError(f"{path} is not a table of metrics ({error}): give the folder of a run") from error
    if not table.size:
        raise CheckpointError(f"{path} has no rows yet: train at least one step")
    return dict(zip(columns, table.T, strict=True))


def plot_runs(
    folders: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    metrics: str | Iterable[str] | None = None,
    over: str = "upper_step",
) -> Figure:
    """Curves of metrics, one panel a metric, all runs in each.

    A noisy metric is drawn thin, with its running mean on top.

    Args:
        folders: of the runs, or of one.
        output: where to write the picture (the suffix says how: ``.png``, ``.pdf``, ``.svg``); None writes nothing.
        metrics: columns of ``metrics.csv``, or one; by default the objective, and the gradient norm (of a search the lowest objective) or, where it was
            measured, the true return and the accuracies; what tasks with test sets or a known optimum report comes with the gradient norm.
        over: the horizontal axis: ``"upper_step"``, ``"env_steps"`` or another counter.

    Returns:
        a matplotlib figure, which belongs to no window and no global state.

    Raises:
        MissingExtra: matplotlib is not installed.
        CheckpointError: a folder without metrics.
        UnknownName: a metric that none of the runs has.
        InvalidProblem: there is no folder; ``output`` has another suffix, or cannot be written.
        OutputExists: there is something else than a picture in its place.
    """
    if output is not None:
        _check_output(Path(output))
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    if not folders:
        raise InvalidProblem("there is no folder of a run to draw: give one at least")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    runs = [read_metrics(folder) for folder in folders]
    known = sorted({name for run in runs for name in run})
    chosen = _default_metrics(known) if metrics is None else list(metrics)
    for name in [*chosen, over]:
        if name not in known:
            raise UnknownName("metric", name, known)
    labels, heading = _names(folders)
    across = min(len(chosen), 2 if len(chosen) in (2, 4) else 3)
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(4.6 * across, 3.3 * down + 0.4), dpi=150, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, name in zip(panels, chosen, strict=False):
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            if name in run and over in run:
                _draw(panel, run[over], run[name], COLOURS[index % len(COLOURS)], label)
        _dress(panel, name, over, [run[name] for run in runs if name in run])
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    if len(runs) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(runs), 3), frameon=False, fontsize=9)
    figure.suptitle(heading, fontsize=11, color=_GREY)
    if output is not None:
        path = Path(output)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except OSError as error:
            raise InvalidProblem(f"{path} cannot be written ({error.strerror}): name another file") from error
    return figure


def smooth(values: np.ndarray) -> np.ndarray | None:
    """A centred running mean over a tenth of the curve, or None where the curve is not noisy.

    Noisy means that it turns round at more than a fifth of its points; a smooth descent turns nowhere, white noise at two thirds.

    Args:
        values: [n].

    Returns:
        [n]; near the ends the mean is over what is there.
    """
    if len(values) < 10 or not np.isfinite(values).all():
        return None
    moves = np.diff(values)
    if np.mean(moves[1:] * moves[:-1] < 0) <= 0.2:
        return None
    window = np.ones(2 * (len(values) // 20) + 3)
    mean: np.ndarray = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    return mean


def _check_output(path: Path) -> None:
    if path.suffix not in _PICTURES:
        raise InvalidProblem(f"{path} has no suffix that says how to draw it: end it with {', '.join(_PICTURES)}")
    if path.is_dir():
        raise OutputExists(f"{path} is a folder: name a file")
    if path.exists():
        with path.open("rb") as file:
            begin = file.read(512).lstrip()
        if begin and not begin.startswith(_PICTURES[path.suffix]):
            raise OutputExists(f"{path} is there, and holds no {path.suffix[1:]} picture: name another file, so that it is not overwritten")


def _default_metrics(known: list[str]) -> list[str]:
    usual = (
        ["objective", "true_return", "accuracy_fresh", "accuracy_held_out"]
        if "true_return" in known
        else ["objective", "norm_hypergradient", "best_objective", "distance", "test_r2", "test_accuracy", "separation"]
    )
    return [name for name in usual if name in known]


def _draw(panel: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    mean = smooth(values)
    if mean is not None:
        panel.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    panel.plot(steps, values if mean is None else mean, color=colour, linewidth=1.6, label=label, marker="o" if len(steps) == 1 else "")


def _dress(panel: Axes, name: str, over: str, curves: list[np.ndarray]) -> None:
    panel.set_title(_TITLES.get(name, name.replace("_", " ")), fontsize=10, loc="left")
    panel.set_xlabel(_AXES.get(over, over.replace("_", " ")), fontsize=9, color=_GREY)
    panel.set_ylabel(name, fontsize=9, color=_GREY)
    values = np.concatenate(curves)
    if (name.startswith("norm_") or name in ("gap", "distance")) and bool((values[np.isfinite(values)] > 0).all()):
        panel.set_yscale("log")
    if name.startswith("accuracy"):
        panel.axhline(0.5, color=_GREY, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)  # what guessing reaches
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8, colors=_GREY)


def _names(folders: Sequence[str | Path]) -> tuple[list[str], str]:
    """A label for each run, with what tells it from the others, and a heading with what they share."""
    parts = [_description(folder) for folder in folders]
    shared = [key for key in ("id", "agent", "seed") if len({part.get(key) for part in parts}) == 1 and parts[0].get(key) is not None]
    labels = [" · ".join(_word(key, part[key]) for key in ("id", "agent", "seed") if key in part and key not in shared) for part in parts]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    return labels, " · ".join(_word(key, parts[0][key]) for key in shared)


def _word(key: str, value: Any) -> str:
    return f"seed {value}" if key == "seed" else str(value)


def _description(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / DESCRIPTION
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError):  # curves can be drawn without it
        return {}
    return described if isinstance(described, dict) else {}
