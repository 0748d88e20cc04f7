"""The command line, the run folder, and what happens when a run is cut short."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import bilevel_gym
from bilevel_gym import checkpoint
from bilevel_gym.agents import CSVLogger, StopOnSignal, m_sobirl, together
from bilevel_gym.agents.evaluation import evaluate_env, evaluate_policy
from bilevel_gym.agents.making import RECIPES, make_env
from bilevel_gym.agents.plotting import plot_runs, read_metrics, smooth
from bilevel_gym.agents.runs import Run, RunSpec
from bilevel_gym.cli import app
from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import CheckpointError, InvalidProblem, OutputExists, UnsupportedProblem
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.worlds import TabularWorld
from tests import problems

ID = "bilevel/RandomMDP-v0"
PNG = b"\x89PNG\r\n\x1a\n"
ROOT = Path(__file__).resolve().parents[1]

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the extra 'plot'")
needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra 'logging'")


def run_cli(*words: object) -> Result:
    """The command in this process, on a wide terminal so that nothing is folded."""
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


def train(folder: Path, steps: int, *more: object) -> Result:
    """A quiet, small training; it must succeed."""
    result = run_cli("train", ID, "--steps", steps, "--output", folder, "--quiet", *more)
    assert result.exit_code == 0, result.output
    return result


def equal(first: Any, second: Any) -> bool:
    """Bit for bit, through packed data."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


def refused(result: Result) -> str:
    """The message of a command that failed on purpose: one line, no traceback, code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# ---------------------------------------------------------------------------------------------- the run folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    train(folder, 40, "--seed", 3)
    return folder


def test_a_resumed_run_equals_one_that_never_stopped(finished: Path, tmp_path: Path) -> None:
    """Without it a checkpoint could forget a part (w_k of M-SoBiRL, an optimizer, a generator) and nobody would notice."""
    folder = tmp_path / "halves"
    train(folder, 20, "--seed", 3)
    train(folder, 40, "--resume")
    straight, halves = (checkpoint.load(path / "checkpoint.pt") for path in (finished, folder))
    assert straight["step"] == 40
    assert equal(straight, halves)
    assert (folder / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


def test_rows_beyond_the_checkpoint_are_dropped_on_resume(finished: Path, tmp_path: Path) -> None:
    """Without it a run that was killed after its last checkpoint would have steps twice, or half a row."""
    folder = tmp_path / "killed"
    train(folder, 20, "--seed", 3)
    with (folder / "metrics.csv").open("a") as file:
        file.write((finished / "metrics.csv").read_text().splitlines(keepends=True)[21] + "22,0.12")
    train(folder, 40, "--resume")
    assert (folder / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


def test_the_folder_describes_the_run(finished: Path) -> None:
    """Without it a folder that is found a year later could not be made again."""
    described = json.loads((finished / "run.json").read_text())
    assert (described["id"], described["agent"], described["seed"], described["steps"]) == (ID, "m_sobirl", 3, 40)
    assert described["env_spec"]["id"] == ID
    assert described["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [int(row["upper_step"]) for row in rows] == list(range(1, 41))
    assert float(rows[-1]["objective"]) == float(Run.load(finished).bilevel.evaluation.value)


@needs_matplotlib
def test_a_finished_run_has_a_learning_curve(finished: Path) -> None:
    """Without it the picture that the documentation promises could be missing or empty."""
    assert (finished / "learning_curve.png").read_bytes().startswith(PNG)


@needs_tensorboard
def test_a_run_has_tensorboard_events(finished: Path) -> None:
    """Without it the extra 'logging' could do nothing at all."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("objective")] == list(range(1, 41))


def test_a_run_is_complete_without_the_optional_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it hours of training could end in an ImportError because of a picture."""
    for module in ("matplotlib", "tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    result = train(tmp_path / "run", 2)
    assert "pip install bilevel-gym[plot]" in result.output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "metrics.csv", "run.json"]
    assert "pip install bilevel-gym[plot]" in refused(run_cli("plot", tmp_path / "run", "--output", tmp_path / "a.png"))


def test_nothing_is_overwritten(finished: Path) -> None:
    """Without it the same command given twice would destroy the first run."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "--resume" in refused(run_cli("train", ID, "--output", finished))
    with pytest.raises(OutputExists):
        CSVLogger(finished / "metrics.csv")
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_resume_refuses_other_arguments(finished: Path) -> None:
    """Without it a folder could hold half a run of one agent and half of another."""
    resume = ("train", ID, "--resume", "--output", finished, "--steps", 50)
    assert "agent = 'm_sobirl', and 'exact' was asked for" in refused(run_cli(*resume, "--agent", "exact"))
    assert "seed = 3, and 4" in refused(run_cli(*resume, "--seed", 4))
    assert "env_kwargs = {}, and {'states': 4}" in refused(run_cli(*resume, "--set", "states=4"))
    assert "step 40 already" in run_cli("train", ID, "--resume", "--output", finished).output


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """Without it a cut-off file would end in a traceback from inside of torch."""
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04")
    assert "damaged" in refused(run_cli("train", ID, "--resume", "--output", tmp_path))
    assert "damaged" in refused(run_cli("evaluate", tmp_path))
    assert "no checkpoint at" in refused(run_cli("evaluate", tmp_path / "nowhere"))
    checkpoint.save(tmp_path / "checkpoint.pt", {"something": "else"})
    with pytest.raises(CheckpointError, match="was not written by a run"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "bilevel/Nothing-v0"), f"unknown id 'bilevel/Nothing-v0'; choose one of: .*{ID}"),
        (("train", "nowhere:bilevel/Nothing-v0"), "the module of nowhere:bilevel/Nothing-v0 cannot be imported .*PYTHONPATH"),
        (("train", ID, "--set", "states=4", "--set", "states=5"), "--set states=5: states is set to 4 already"),
        (("train", ID, "--set", "states=100000000"), "states=100000000|cannot be made with .*allocate"),
        (("train", ID, "--output", "/dev/null/run"), "cannot be written to /dev/null/run .*choose another folder"),
        (("evaluate", "nowhere"), "no checkpoint at nowhere/checkpoint.pt: give the folder of a run"),
        (("evaluate", "nowhere", "--best"), "nowhere has no best.pt: train with --best METRIC"),
        (("train", "CartPole-v1"), "unknown bilevel id 'CartPole-v1'"),
        (("train", ID, "--agent", "nobody"), "unknown agent 'nobody'; choose one of: .*exact, hpgd, m_sobirl"),
        (("train", ID, "--set", "statez=4"), "unknown argument of bilevel/RandomMDP-v0 'statez'; choose one of: .*states"),
        (("train", ID, "--preset", "small"), "'preset'; choose one of"),
        (("train", ID, "--set", "states"), "write --set key=value"),
        (("train", ID, "--set", "states=many"), "states is 'many': it must be a whole number"),
        (("train", ID, "--set", "solver=magic"), "unknown solver 'magic'"),
        (("train", ID, "--agent-set", "rate=1"), "unknown argument of the agent m_sobirl 'rate'; choose one of: .*learning_rate"),
        (("train", ID, "--agent-set", "learning_rate=-1"), "the learning rate is -1"),
        (("check", "bilevel/Nothing-v0"), "unknown id"),
        (("plot", "nowhere"), "nowhere holds no metrics.csv"),
    ],
)
def test_mistakes_are_answered_in_one_line(words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a typing error would be answered with a traceback, or leave an empty run behind."""
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refused(run_cli(*words)))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- signals


def start(folder: Path, steps: int) -> "subprocess.Popen[str]":
    """A training in a process of its own, and the first rows of its metrics."""
    words = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "bilevel_gym.cli",
        "train",
        ID,
        "--steps",
        str(steps),
        "--output",
        str(folder),
        "--set",
        "states=6",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    process = subprocess.Popen(words, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not (folder / "metrics.csv").exists() or (folder / "metrics.csv").read_text().count("\n") < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no rows after a minute"
        time.sleep(0.005)
    return process


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path: Path) -> None:
    """Without it an interrupt would cost the steps since the last checkpoint, or leave a person to guess how to go on."""
    folder = tmp_path / "run"
    steps = 1200
    process = start(folder, steps)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    stopped = checkpoint.load(folder / "checkpoint.pt")["step"]
    assert 4 <= stopped < steps
    assert f"stopped and saved at step {stopped} of {steps}" in said
    assert len(read_metrics(folder)["upper_step"]) == stopped
    words = shlex.split(said.strip().splitlines()[-1])
    assert words[:4] == ["python", "-m", "bilevel_gym.cli", "train"]
    result = run_cli(*words[3:])
    assert result.exit_code == 0, result.output
    assert read_metrics(folder)["upper_step"].tolist() == list(range(1, steps + 1))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_metrics_survive_a_kill(tmp_path: Path) -> None:
    """Without it rows could sit in a buffer, and a run that was killed would have an empty file."""
    folder = tmp_path / "run"
    process = start(folder, 1_000_000)
    process.kill()
    process.communicate()
    steps = read_metrics(folder)["upper_step"]
    assert steps.tolist() == list(range(1, len(steps) + 1))
    assert len(steps) >= 4
    train(folder, 3, "--resume")  # from step 0, where the only checkpoint is
    assert read_metrics(folder)["upper_step"].tolist() == [1, 2, 3]


def test_the_second_signal_aborts_and_the_handlers_come_back() -> None:
    """Without it a step of an hour could not be left, or Ctrl-C would stay broken after the training."""
    before = signal.getsignal(signal.SIGINT)
    announced: list[int] = []
    stop = StopOnSignal(signal.SIGINT, announce=announced.append)
    with stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert announced == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_abort_leaves_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a script around the command could not tell an abort from a success."""

    def interrupt(*_: Any, **__: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "train", interrupt)
    result = run_cli("train", ID, "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert "aborted" in result.stderr


# ---------------------------------------------------------------------------------------------- the other commands


def test_list_shows_every_id_and_agent() -> None:
    """Without it a problem that is registered could not be found."""
    listed = run_cli("list")
    assert listed.exit_code == 0
    assert all(name in listed.output for name in bilevel_gym.registration.CATALOGUE)
    agents = run_cli("list", "--agents")
    assert all(f"  {name} " in agents.output for name in RECIPES)


def test_every_catalogued_agent_exists() -> None:
    """Without it ``train`` without ``--agent`` could fail on an id for a name that nobody wrote."""
    assert {name for entry in bilevel_gym.registration.CATALOGUE.values() for name in entry.agents} <= set(RECIPES)


@pytest.mark.parametrize("command", [(), ("list",), ("train",), ("evaluate",), ("check",), ("plot",)], ids=str)
def test_help_holds_an_example(command: tuple[str, ...]) -> None:
    """Without it the help would list options and not say what to type."""
    result = run_cli(*command, "--help")
    assert result.exit_code == 0
    assert f"bilevel-gym {' '.join(command)}" in result.output


def test_help_needs_no_torch() -> None:
    """Without it every ``--help`` would take the seconds that torch needs to load."""
    code = "import sys, bilevel_gym.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == 0


def test_evaluate_solves_tables_exactly(finished: Path) -> None:
    """Without it the numbers of an evaluation could be those of the unconverged lower level."""
    result = run_cli("evaluate", finished)
    assert result.exit_code == 0, result.output
    run = Run.load(finished)
    before = run.bilevel.get_state()
    found = {line.name: line.value for line in evaluate_env(run.bilevel)}
    assert equal(before, run.bilevel.get_state())
    exact = gym.make(ID, solver="policy_iteration")
    exact.reset(seed=3)
    assert run.bilevel.x is not None
    _, reward, *_ = exact.step(run.bilevel.x.numpy())
    assert found["objective, solved exactly"] == pytest.approx(-float(reward), rel=1e-9)
    agent = RECIPES["exact"](exact)
    agent.act()
    assert agent.hypergradient is not None
    assert found["exact gradient norm"] == pytest.approx(float(agent.hypergradient.value.norm()), rel=1e-9)
    assert all(name in result.output for name in found)


def test_what_cannot_be_solved_exactly_is_left_out() -> None:
    """Without it `bilevel-gym evaluate` would end in a refusal where fragments are cut anywhere, instead of printing what it has."""
    env = BilevelEnv(problems.preference_variant(0, cut="anywhere"), SoftPolicyIteration())
    env.reset(seed=0)
    names = [line.name for line in evaluate_env(env)]
    assert "objective" in names
    assert "exact gradient norm" not in names


def test_evaluate_policy_has_the_right_standard_error() -> None:
    """Without it a comparison of policies could claim a significance that is not there."""
    world = TabularWorld(np.ones((1, 2, 1)), [1.0], 0.9, true_reward=np.array([[0.0, 1.0]]))
    policy = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    mean, error = evaluate_policy(world, policy, episodes=4000, generator=torch.Generator().manual_seed(0), steps=10)
    assert error == pytest.approx((10 * 0.75 * 0.25 / 4000) ** 0.5, rel=0.05)
    assert mean == pytest.approx(7.5, abs=4 * error)
    played = world.rollout(policy, trajectories=2, steps=10, generator=torch.Generator().manual_seed(5))
    assert played.rewards is not None
    first, second = played.rewards.sum(-1).tolist()
    assert first != second
    few = evaluate_policy(world, policy, episodes=2, generator=torch.Generator().manual_seed(5), steps=10)
    assert few == pytest.approx((0.5 * (first + second), 0.5 * abs(first - second)))
    assert np.isnan(evaluate_policy(world, policy, episodes=1, generator=torch.Generator(), steps=10)[1])
    ending = TabularWorld([[[0.5]]], [1.0], 0.9, [[0.5]], true_reward=[[1.0]])
    whole = ending.rollout(torch.ones(1, 1, dtype=torch.float64), trajectories=50, steps=8, generator=torch.Generator().manual_seed(5))
    paid = SimpleNamespace(rollout=lambda *_, **__: replace(whole, rewards=torch.ones(50, 8)))  # a learned reward goes on past the end
    assert evaluate_policy(paid, None, episodes=50, generator=torch.Generator(), steps=8)[0] == float(whole.alive.sum()) / 50 < 4.0  # type: ignore[arg-type]
    with pytest.raises(UnsupportedProblem, match="no horizon"):
        evaluate_policy(world, policy, episodes=2, generator=torch.Generator())


@pytest.mark.parametrize("method", ["reset", "step"])
def test_check_reports_both_contracts(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it ``check`` could pass an environment whose runs cannot be repeated."""
    passed = run_cli("check", ID, "--no-render")
    assert passed.exit_code == 0, passed.output
    assert passed.output.count("passed") == 2
    inner = type(make_env(ID).unwrapped)
    original: Callable[..., Any] = getattr(inner, method)
    monkeypatch.setattr(inner, method, lambda self, *args, **kwargs: _restless(original(self, *args, **kwargs)))
    failed = run_cli("check", ID, "--no-render")
    assert failed.exit_code == 1, failed.output
    assert "failed" in failed.output


def _restless(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    answer[-1]["clock"] = time.perf_counter()
    return answer


@needs_matplotlib
def test_plot_lays_runs_over_each_other(finished: Path, tmp_path: Path) -> None:
    """Without it the command could write an empty picture, or one run only."""
    other = tmp_path / "other"
    train(other, 5, "--agent", "exact")
    result = run_cli("plot", finished, other, "--output", tmp_path / "new" / "curves.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(PNG)
    figure = plot_runs([finished, other], metrics=["objective", "gap", "norm_x"], over="lower_step")
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2]
    assert figure.axes[1].get_yscale() == "log"
    assert figure.axes[0].get_xlabel() == "lower steps"
    assert "unknown metric 'fun'; choose one of" in refused(run_cli("plot", finished, "--metrics", "objective,fun"))
    assert not (tmp_path / "curves.png").exists()


@needs_matplotlib
def test_a_picture_lies_beside_the_runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder where somebody happens to stand it would be lost, or be that of other runs."""
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "runs" / name for name in ("one", "two")]
    for folder in runs:
        shutil.copytree(finished, folder)
    assert "wrote runs/one/curves.png" in run_cli("plot", "runs/one").output
    assert run_cli("plot", "runs/one", runs[1]).exit_code == 0
    assert [path.parent for path in sorted(tmp_path.rglob("curves.png"))] == [tmp_path / "runs", runs[0]]
    assert "cannot be written" in refused(run_cli("plot", "runs/one", "--output", "/dev/null/a.png"))


def test_a_module_in_this_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes an environment beside the shell must be able to train on it, and be told of a mistake in it as such."""
    lines = [
        "import gymnasium as gym",
        "from bilevel_gym.envs import random_mdp",
        "gym.register('me/Own-v0', random_mdp, max_episode_steps=9)",
    ]
    (tmp_path / "own_module_of_a_test.py").write_text("\n".join(lines))
    (tmp_path / "broken_module_of_a_test.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    result = run_cli("train", "own_module_of_a_test:me/Own-v0", "--set", "states=3", "--steps", 1, "--output", "run", "--quiet")
    assert result.exit_code == 0, result.output
    assert "objective" in run_cli("evaluate", "run").output
    assert json.loads(Path("run/run.json").read_text())["env_spec"] is None
    assert "No module named 'nothing_of_this_name'" in refused(run_cli("check", "broken_module_of_a_test:me/Own-v0"))
    gym.registry.pop("me/Own-v0")


def test_only_noisy_curves_are_smoothed() -> None:
    """Without it a running mean would blur the exact curves, or noise would hide the trend."""
    assert smooth(np.exp(-np.arange(100.0))) is None
    noise = np.random.default_rng(0).standard_normal(200)
    mean = smooth(noise)
    assert mean is not None
    assert mean.std() < 0.4 * noise.std()
    assert np.allclose(smooth(np.tile([1.0, 3.0], 50))[10:-10], 2.0, atol=0.1)  # type: ignore[index]


# ---------------------------------------------------------------------------------------------- from Python


def test_callbacks_work_without_the_command_line(tmp_path: Path) -> None:
    """Without it a person who trains from Python would have to write their own logger."""
    env = gym.make(ID)
    env.reset(seed=0)
    with CSVLogger(tmp_path / "metrics.csv") as log:
        agent = m_sobirl(env)
        agent.learn(10, together(log, lambda agent, metrics: metrics["upper_step"] < 3))
        log(agent, {"upper_step": 4, "surprise": 1.0})
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["upper_step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[3]["objective"] == ""
    assert [row["surprise"] for row in rows] == ["", "", "", "1"]
    assert np.isnan(read_metrics(tmp_path)["objective"][3])


def test_a_run_from_python(tmp_path: Path) -> None:
    """Without it the run folder would be a privilege of the command line."""
    run = Run.create(RunSpec(ID, "exact", env_kwargs={"states": 4, "solver": "policy_iteration"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert run.train(3)
    assert Run.load(tmp_path / "run").step == 3


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    """Somebody's picture or notes must not be overwritten or mixed with a run; a file is no folder."""
    (tmp_path / "learning_curve.png").write_text("mine")
    assert "not empty" in refused(run_cli("train", ID, "--output", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["learning_curve.png"]
    assert (tmp_path / "learning_curve.png").read_text() == "mine"
    assert "is a file" in refused(run_cli("train", ID, "--output", tmp_path / "learning_curve.png"))


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    """A file from another release, or an edited one, must give a line that says so, not a KeyError."""
    train(tmp_path / "run", 2)
    whole = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    for part, key in (("env", "counters"), ("agent", "optimizer"), ("env", "sizes")):
        broken = {**whole, part: {name: value for name, value in whole[part].items() if name != key}}
        checkpoint.save(tmp_path / "run" / "checkpoint.pt", broken)
        assert "another release" in refused(run_cli("train", ID, "--steps", 4, "--output", tmp_path / "run", "--resume"))
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", {**whole, "step": 3})
    with pytest.raises(CheckpointError, match=r"says step 3, its environment says 2"):
        Run.load(tmp_path / "run")
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", whole)
    assert (Run.load(tmp_path / "run").step, Run.load(tmp_path / "run").planned) == (2, 2)


def test_garbage_in_the_metrics_is_refused(tmp_path: Path) -> None:
    """A metrics.csv that is not a table must not end in a decoding error after the training has begun."""
    train(tmp_path / "run", 2)
    (tmp_path / "run" / "metrics.csv").write_bytes(b"upper_step\nfirst\n")
    assert "not a table of metrics" in refused(run_cli("train", ID, "--steps", 4, "--output", tmp_path / "run", "--resume"))


@needs_matplotlib
def test_one_run_and_one_metric_may_be_named_as_they_are(finished: Path, tmp_path: Path) -> None:
    """A name in the place of a list of one would be taken letter by letter; nothing, and garbage, are named."""
    figure = plot_runs(str(finished), metrics="gap")
    assert [len(axes.lines) for axes in figure.axes] == [1]
    with pytest.raises(InvalidProblem, match="no folder of a run"):
        plot_runs([])
    for content in (b"upper_step,gap\n1,many\n", b"\x89PNG\xff\n"):
        (tmp_path / "metrics.csv").write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a table of metrics"):
            plot_runs(tmp_path)


@needs_matplotlib
def test_a_picture_needs_a_suffix(tmp_path: Path) -> None:
    """`-o curves` must not write another file than the one that was named."""
    train(tmp_path / "run", 2)
    assert "suffix" in refused(run_cli("plot", tmp_path / "run", "-o", tmp_path / "curves"))


def test_a_picture_replaces_pictures_alone(finished: Path, tmp_path: Path) -> None:
    """Without it a slip of the keyboard would cost a file that is something else; an old curve may be drawn anew."""
    for suffix in (".png", ".pdf", ".svg"):
        path = tmp_path / f"curves{suffix}"
        path.write_text("notes of a year")
        with pytest.raises(OutputExists, match=r"holds no .* picture"):
            plot_runs([finished], path)
        assert path.read_text() == "notes of a year"
        path.unlink()
        for _ in range(2):
            plot_runs([finished], path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputExists, match="is a folder"):
        plot_runs([finished], tmp_path / "folder.png")


# ---------------------------------------------------------------------------------------------- many seeds


def test_seeds_as_one_batch(tmp_path: Path) -> None:
    """Without it a thousand seeds would be a thousand runs: metrics are the means of the runs of each seed, and a resumed batch is the same one."""
    alone = [train(tmp_path / f"seed{seed}", 4, "--seed", seed) and Run.load(tmp_path / f"seed{seed}") for seed in (5, 6, 7)]
    train(tmp_path / "all", 4, "--seed", 5, "--num-envs", 3)
    together = Run.load(tmp_path / "all")
    np.testing.assert_allclose(together.bilevel.x, torch.stack([run.bilevel.x for run in alone]), rtol=0, atol=1e-10)
    tables = [read_metrics(run.folder) for run in (*alone, together)]
    for name in ("objective", "gap", "norm_hypergradient", "upper_step", "lower_step"):
        np.testing.assert_allclose(tables[-1][name], np.mean([table[name] for table in tables[:-1]], axis=0), rtol=1e-9, err_msg=name)
    train(tmp_path / "halves", 2, "--seed", 5, "--num-envs", 3)
    train(tmp_path / "halves", 4, "--resume")
    straight, halves = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("all", "halves"))
    for saved in (straight, halves):
        saved["env"].pop("elapsed")  # a resumed run begins a new episode
    assert equal(straight, halves)
    result = run_cli("evaluate", tmp_path / "all")
    assert "seeds 5-7 · step 4" in result.output
    lines = {line.name: line for line in evaluate_env(together.bilevel)}
    values = [float({line.name: line.value for line in evaluate_env(run.bilevel)}["exact gradient norm"]) for run in alone]
    assert lines["exact gradient norm"].value == pytest.approx(np.mean(values), rel=1e-9)
    assert lines["exact gradient norm"].standard_error == pytest.approx(np.std(values, ddof=1) / 3**0.5, rel=1e-9)


def test_a_batch_of_samples_has_its_metrics(tmp_path: Path) -> None:
    """Without it accuracies of a batch would be missing from what `evaluate` prints, and evaluations on the side refused."""
    folder = tmp_path / "run"
    words = ("train", "bilevel/TabularPreference-v0", "--num-envs", 2, "--steps", 2, "--eval-every", 1, "--output", folder, "--quiet")
    assert run_cli(*words).exit_code == 0
    run = Run.load(folder)
    means = {line.name: line.value for line in evaluate_env(run.bilevel)}
    seen = [member.evaluation.metrics["accuracy_fresh"] for member in run.bilevel.members()]
    assert means["accuracy_fresh"] == pytest.approx(np.mean(seen))
    assert "eval_norm_hypergradient" in read_metrics(folder)


def test_batches_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a simulator would be stepped N times in turn as if it were a batch, or a search be fed a vector."""
    monkeypatch.chdir(tmp_path)
    assert "is not solved as a batch" in refused(run_cli("train", "bilevel/SoftLQR-v0", "--num-envs", 2))
    assert "give it a single one" in refused(run_cli("train", ID, "--agent", "cma_es", "--num-envs", 2))
    assert "unknown argument" in refused(run_cli("train", ID, "--num-envs", 2, "--set", "statez=4"))
    assert list(tmp_path.iterdir()) == []
    train(tmp_path / "run", 1, "--num-envs", 2)
    assert "num_envs = 2, and 3 was asked for" in refused(run_cli("train", ID, "--resume", "--output", tmp_path / "run", "--num-envs", 3))
