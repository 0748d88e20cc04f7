"""The benchmark on one Atari game: at its smallest, stopped and gone on with."""

from __future__ import annotations

import csv
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from bilevel_gym.agents.making import make_agent
from bilevel_gym.errors import UnsupportedProblem

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it finds its neighbour as a script does."""
    for package in ("ale_py", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("atari")
    for name, few in (("POLICIES", 2), ("UPDATES", 4)):
        monkeypatch.setattr(module, name, few)
    return module


def options(tmp_path: Path, **others: Any) -> dict[str, Any]:
    """Some seconds of Breakout."""
    small = {"agent": ["drlhf"], "game": "Breakout", "preset": "tiny", "seconds": None, "pairs": 6, "seed": 0, "device": "cpu"}
    return {**small, "graph": False, "threads": 1, "runs": tmp_path / "runs", "output": tmp_path / "out", **others}


def test_goes_on_and_reports(script: Any, tmp_path: Path) -> None:
    """Without it a study of an hour could end in an error in its report, or do its steps again when it is called once more."""
    for steps in (1, 2):
        script.main(**options(tmp_path), steps=steps)
    with (tmp_path / "out" / "Breakout-drlhf.csv").open(newline="") as file:
        curve = list(csv.DictReader(file))
    assert [row["upper_step"] for row in curve] == ["1", "2"]
    assert float(curve[0]["seconds"]) < float(curve[1]["seconds"])
    with (tmp_path / "out" / "Breakout-summary.csv").open(newline="") as file:
        (summary,) = csv.DictReader(file)
    assert summary["pairs_decided"] == "6"
    assert float(summary["env_steps_per_second"]) > 0
    assert (tmp_path / "out" / "Breakout.png").stat().st_size > 1000
    script.main(**options(tmp_path, pairs=0, output=tmp_path / "short"), steps=2)
    assert sorted(path.name for path in (tmp_path / "short").iterdir()) == ["Breakout-drlhf.csv", "Breakout.png"]


def test_what_is_lean_is_what_a_user_gets_but_for_sizes(script: Any) -> None:
    """Without it ``--lean`` could end in an error after half an hour, or change τ, r_x or the teacher and not say so."""
    made = [gym.make("bilevel/AtariPreference-v0", game="Breakout", objective=sizes) for sizes in (None, script.LEAN["objective"])]
    theirs, lean = (env.unwrapped for env in made)
    assert replace(theirs.problem.objective, **script.LEAN["objective"]) == lean.problem.objective
    assert theirs.problem.regularizer == lean.problem.regularizer
    assert theirs.problem.reward.network == lean.problem.reward.network
    agent = make_agent("sobirl", made[1], script.LEAN["agent"])
    assert replace(make_agent("sobirl", made[0], {}).estimator, **script.LEAN["agent"]) == agent.estimator
    assert replace(lean.solver, **script.LEAN["solver"]).hidden == theirs.solver.hidden
    for env in made:
        env.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("graph", [False, True])
def test_runs_on_a_gpu(script: Any, tmp_path: Path, graph: bool) -> None:
    """Without it the one command for a GPU could mix devices, or capture what cannot be captured."""
    script.main(**options(tmp_path, device="cuda", graph=graph), steps=2)
    assert (tmp_path / "out" / "Breakout-summary.csv").exists()


def test_graphs_need_a_gpu(script: Any, tmp_path: Path) -> None:
    """Without it ``--graph`` would do nothing on a CPU, and timings would be taken for those of graphs."""
    with pytest.raises(UnsupportedProblem, match="graph_updates"):
        script.main(**options(tmp_path, graph=True), steps=1)


def test_counts_what_is_ranked_right(script: Any) -> None:
    """Without it ties, skipped pairs or the wrong sign could make a signal out of nothing, or hide one."""
    pairs = type("Pairs", (), {"outcome": torch.tensor([1.0, 0.0, 0.5, float("nan"), 1.0])})
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    objective = type("Objective", (), {"logits": staticmethod(lambda *_: logits)})
    bilevel = type("Bilevel", (), {"problem": type("Problem", (), {"objective": objective})})
    assert script.right(bilevel, None, pairs) == (2, 3)
    low, high = script.interval(2 / 3, 3)
    assert (round(low, 3), round(high, 3)) == (0.208, 0.939)  # Wilson's
