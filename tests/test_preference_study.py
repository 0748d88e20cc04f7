"""The study of preference tasks: its runs and its report, at the smallest size."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it finds its neighbour as a script does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("preference")


def test_a_run_goes_on_where_it_was_stopped_and_is_not_done_twice(study: Any, tmp_path: Path) -> None:
    """Without it an interrupted study would lose what it had, or do everything again; with it each upper step is there once."""
    arguments = {"task": "CartPole", "agent": "drlhf", "seed": 3, "runs": tmp_path, "preset": "tiny"}
    folder = study.folder_of(tmp_path, "CartPole", "drlhf", 3)
    study.run(**arguments, steps=1)
    assert study.done(folder, 1)
    assert not study.done(folder, 2)
    study.run(**arguments, steps=2)
    metrics, held_out = folder / "metrics.csv", tmp_path / "CartPole" / study.HELD_OUT
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["upper_step"] for row in rows] == ["1", "2"]
    assert all(0.0 <= float(row["eval_accuracy_held_out"]) <= 1.0 for row in rows)
    assert json.loads(study.about_of(folder).read_text())["done"]
    written = [path.stat().st_mtime_ns for path in (metrics, held_out)]
    study.run(**arguments, steps=2)
    assert [path.stat().st_mtime_ns for path in (metrics, held_out)] == written


def test_a_run_ends_when_its_environment_steps_are_spent(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it an arm that plays for itself would get more environment steps than the others."""
    monkeypatch.setattr(study, "MOST", 300)
    study.run("CartPole", "drlhf", 0, tmp_path, "tiny", 9)
    folder = study.folder_of(tmp_path, "CartPole", "drlhf", 0)
    with (folder / "metrics.csv").open(newline="") as file:
        steps = [int(row["env_steps"]) for row in csv.DictReader(file)]
    assert steps[-1] >= 300
    assert len(steps) == 1 or steps[-2] < 300
    assert study.done(folder, 9)


def test_report_tells_the_arms_apart(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the tables could name the wrong arm, or count an accuracy over no decided pair; runs that are gone stay in the CSV."""
    pytest.importorskip("rliable")
    pytest.importorskip("matplotlib")
    report = importlib.import_module("preference_report")
    monkeypatch.setattr(report, "REPETITIONS", 500)
    rows = [
        {
            **dict.fromkeys((*report.ABOUT, *report.COUNTED, *report.MEASURED), 0),
            "agent": agent,
            "seed": seed,
            "env_steps": 1000 * (look + 1),
            "true_return": level + seed,
            "accuracy_fresh": 0.8,
            "objective": 0.5,
            "decided_fresh": float(agent == "sobirl"),
        }
        for agent, level in (("sobirl", 50.0), ("sac", 90.0))
        for seed in range(4)
        for look in range(2)
    ]
    report.write(rows, tmp_path / "CartPole.csv")
    text = report.write_report(tmp_path / "none", tmp_path, {"CartPole": 10.0}, ["sobirl", "sac"])
    lines = text.splitlines()
    assert any(line.startswith("| sobirl | 4 | 2,000 | 51.5 [") and "| 0.80 [" in line for line in lines)
    assert any(line.startswith("| sac | 4 | 2,000 | 91.5 [") and "| – |" in line for line in lines)
    assert "| sac | −40.0 [−40.0, −40.0] | – | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] |" in lines
    assert any(line.startswith(f"| sobirl | 4 | {41.5 / 81.5:.2f} [") for line in lines)
    assert (tmp_path / "CartPole.png").stat().st_size > 10_000


def test_arms_that_end_early_are_met_there(study: Any) -> None:
    """Without it a follower with a quarter of the training would be called worse than one with all of it; numbers by hand."""
    pytest.importorskip("rliable")
    report = importlib.import_module("preference_report")
    rows = [
        {**dict.fromkeys(report.SHOWN, 0.5), "agent": agent, "seed": seed, "upper_step": step, "env_steps": step, "decided_fresh": 1.0}
        | {"true_return": 100.0 * step + gain * (seed + 1)}
        for agent, last, gain in (("sobirl", 10, 3.0), ("hpgd", 4, 1.0), ("sac", 10, 0.0))
        for seed in range(2)
        for step in range(1, last + 1)
    ]
    lines = report.equal_steps_table({"CartPole": rows}, ["sobirl", "hpgd", "sac"], "sobirl").splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| hpgd, CartPole | 4 | 3.00 [−9.71, 15.7] | 0.00 [0.00, 0.00] |")
    assert report.equal_steps_table({"CartPole": rows}, ["sobirl", "sac"], "sobirl") == ""


def test_differences_are_those_of_equal_seeds(study: Any) -> None:
    """Without it the luck of the starts, which arms share, would count as noise between them; numbers of t by hand."""
    pytest.importorskip("rliable")
    report = importlib.import_module("preference_report")
    one = report.Finals([0, 1, 2, 4], {"true_return": np.array([10.0, 20.0, 30.0, 5.0])}, 1)
    other = report.Finals([1, 2, 3, 4], {"true_return": np.array([19.0, 28.0, 7.0, np.nan])}, 1)
    found = report.differences(one, other, "true_return")
    assert found.tolist() == [1.0, 2.0]
    assert report.mean_interval(found) == pytest.approx((1.5, 1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5), abs=1e-3)


def test_lengths_of_the_parts_are_kept(study: Any, tmp_path: Path) -> None:
    """A new run takes the place of its old rows and of no others'; one that is not done, or has no implicit part, has none."""
    pytest.importorskip("rliable")
    report = importlib.import_module("preference_report")
    header, kept = "task,agent,seed,upper_step,norm_direct,norm_implicit_unclipped,norm_implicit\n", "CartPole,sobirl,0,1,.5,2,.5\n"
    (tmp_path / "implicit.csv").write_text(header + kept + "CartPole,hpgd,1,1,7,7,7\nCartPole,hpgd,1,2,7,7,7\n")
    for agent, done, column in (
        ("hpgd", True, "norm_implicit_unclipped"),
        ("pbrl", False, "norm_implicit_unclipped"),
        ("drlhf", True, "x"),
    ):
        folder = tmp_path / "runs" / "CartPole" / f"{agent}-1"
        folder.mkdir(parents=True)
        folder.with_suffix(".json").write_text(json.dumps({"task": "CartPole", "agent": agent, "seed": 1, "done": done}))
        (folder / "metrics.csv").write_text(f"upper_step,norm_direct,norm_implicit,{column}\n1,.25,0,\n2,.5,.5,123.4567\n")
    report.write_parts(tmp_path / "runs", ["CartPole"], tmp_path / "implicit.csv")
    new = "CartPole,hpgd,1,1,0.25,0,0\nCartPole,hpgd,1,2,0.5,123.46,0.5\n"
    assert (tmp_path / "implicit.csv").read_text().replace("\r", "") == header + new + kept
