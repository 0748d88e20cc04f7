"""Runs that are killed with ``kill -9`` and resumed: bit for bit the runs that nobody killed, and said where they are not."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bilevel_gym import checkpoint
from bilevel_gym.agents.runs import Run, RunSpec
from bilevel_gym.errors import InvalidAction, InvalidProblem
from bilevel_gym.solvers import sac
from bilevel_gym.worlds import VectorWorld
from tests.small import FEW
from tests.test_cli import equal

KILLED = """
import json, os, signal, sys
import torch
from bilevel_gym.agents.runs import Run, RunSpec
torch.set_num_threads(1)
spec, folder, half = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def kill(agent, metrics):
    if metrics["upper_step"] > half:
        os.kill(os.getpid(), signal.SIGKILL)
Run.create(RunSpec(**spec), folder).train(2 * half, checkpoint_every=half, callbacks=[kill])
"""
"""A run that dies in the step after its checkpoint."""

TABLE = RunSpec("bilevel/RandomMDP-v0", "m_sobirl", seed=3)
MUJOCO = RunSpec("bilevel/HalfCheetahPreference-v0", "sobirl", 3, {"preset": "tiny", "horizon": 40}, FEW)
ATARI = RunSpec("bilevel/PongPreference-v0", "sobirl", 3, {"preset": "tiny", "native": False}, FEW)
"""Solves of the last two end in the middle of an episode."""


@pytest.mark.parametrize(("spec", "half"), [(TABLE, 10), (MUJOCO, 2), (ATARI, 2)], ids=["table", "mujoco", "atari"])
def test_a_killed_run_is_resumed_bit_for_bit(spec: RunSpec, half: int, tmp_path: Path) -> None:
    """Without it a run that is interrupted would be another run: the follower's episodes, a generator or an optimizer would start anew."""
    if spec is not TABLE:
        pytest.importorskip("mujoco" if spec is MUJOCO else "ale_py")
    died = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(asdict(spec)), str(tmp_path / "killed"), str(half)], capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    Run.create(spec, tmp_path / "straight").train(2 * half, checkpoint_every=half)
    resumed = Run.load(tmp_path / "killed")
    assert resumed.step == half
    resumed.train(2 * half, checkpoint_every=half)
    straight, killed = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("straight", "killed"))
    assert equal(straight, killed)
    assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "straight" / "metrics.csv").read_text()


def test_what_is_not_exact_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without it somebody would take a resumed run for the one that never stopped, where the simulator keeps no moments."""
    pytest.importorskip("ale_py")
    spec = RunSpec("bilevel/PongPreference-v0", "sobirl", 3, {"preset": "tiny"}, FEW)
    Run.create(spec, tmp_path / "run").train(1)
    with caplog.at_level(logging.WARNING):
        resumed = Run.load(tmp_path / "run")
    assert "not bit for bit" in caplog.text
    assert "AtariWorld cannot be kept" in caplog.text
    resumed.train(2)
    assert resumed.step == 2


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_copies_give_and_take_their_moments(vectorization: Any) -> None:
    """Without it episodes in other processes could not be resumed, or copies would go on in each other's place."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=7, vectorization=vectorization)
    simulation, other = world.open(3, seed=0), world.open(3, seed=1)
    actions = world.uniform()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        simulation.step(actions.sample(simulation.observations, generator))
    other.go_to(checkpoint.unpack(checkpoint.pack(simulation.moment)))
    for _ in range(8):  # over the horizon, where copies start anew from their own generators
        drawn = actions.sample(simulation.observations, generator)
        assert torch.equal(simulation.step(drawn).following, other.step(drawn).following)
    assert torch.equal(simulation.observations, other.observations)
    simulation.close()
    other.close()


PENDULUM = RunSpec("bilevel/PendulumPreference-v0", "sobirl", 3, {"preset": "tiny"}, FEW)


@pytest.mark.parametrize("broken", ["loss of the follower", "objective", "hyper-gradient"])
def test_a_number_that_is_not_finite_ends_the_run_in_good_order(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a NaN would be trained on, or end the run without saying where, and with the steps since the last checkpoint lost."""
    run = Run.create(PENDULUM, tmp_path / "run")
    states: list[Any] = []
    agents: list[Any] = []

    def breaks(agent: Any, metrics: Any) -> None:
        states.append(agent.bilevel.get_state())
        agents.append(agent.get_state())
        if len(states) < 2:
            return
        nan = torch.tensor(float("nan"))
        if broken == "loss of the follower":
            monkeypatch.setattr(sac, "score", lambda reward, x, batch: nan.expand(len(batch.states)))
        elif broken == "objective":
            monkeypatch.setattr(type(agent.bilevel.problem.objective), "logits", lambda self, _, x, f: nan.expand(1, len(f.outcome)))
        else:
            estimate = type(agent.estimator)._estimate

            calls: list[Any] = []

            def spoiled(*arguments: Any) -> Any:
                found = estimate(*arguments)
                calls.append(found)
                return found if len(calls) == 1 else replace(found, value=found.value * nan)

            monkeypatch.setattr(type(agent.estimator), "_estimate", spoiled)

    quantity = {"loss of the follower": "actions|TD error", "objective": "objective|hyper-gradient"}.get(broken, "hyper-gradient")
    with pytest.raises(
        (InvalidProblem, InvalidAction), match=rf"upper step 3: the .*({quantity}).*not finite|upper step 3: .*nan"
    ) as caught:
        run.train(10, checkpoint_every=10, callbacks=[breaks])
    assert "checkpoint.pt" in str(caught.value)
    monkeypatch.undo()
    again = Run.load(tmp_path / "run")
    assert again.step == 2
    saved, before = again.bilevel.get_state(), states[1]
    moved = {"response": 0, "counters": 0, "aside": 0}  # the replay, what the estimator asked for, and its draws
    assert equal({**saved, **moved}, {**before, **moved})
    assert equal(saved["response"]["fields"]["policy"], before["response"]["fields"]["policy"])
    assert equal(again.agent.get_state(), agents[1]), "the agent must not have made updates of a step that was none"
    assert again.train(3)
