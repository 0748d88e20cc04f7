"""What looks at a training from beside it: measurements, the best state, budgets, and Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, checkpoint
from bilevel_gym.agents import (
    BestKeeper,
    Checkpointer,
    Evaluator,
    Run,
    RunSpec,
    StopOnBudget,
    WandbLogger,
    exact,
    m_sobirl,
    random_search,
    together,
    zero_order,
)
from bilevel_gym.agents.evaluation import evaluate_env, evaluate_policy
from bilevel_gym.agents.plotting import read_metrics
from bilevel_gym.errors import CheckpointError, InvalidProblem, MissingExtra, UnknownName, UnsupportedProblem
from bilevel_gym.numerics import dense
from bilevel_gym.solvers import SoftPolicyIteration
from tests import problems
from tests.test_cli import equal, refused, run_cli

ID, DEEP = "bilevel/RandomMDP-v0", "bilevel/PendulumPreference-v0"
SMALL = {"states": 4, "actions": 2, "dimension": 5}


def small(**more: Any) -> gym.Env[Any, Any]:
    """A small table, reset."""
    env = gym.make(ID, **{**SMALL, **more})
    env.reset(seed=0)
    return env


def collected(agent: Any, steps: int, *callbacks: Any) -> list[dict[str, float]]:
    """What a logger after these callbacks sees."""
    rows: list[dict[str, float]] = []
    agent.learn(steps, together(*callbacks, lambda _, metrics: rows.append(dict(metrics))))
    return rows


# ---------------------------------------------------------------------------------------------- evaluations


def test_an_evaluation_on_a_table_is_exact() -> None:
    """Without it the value under r_x could be one with entropy, or of the solved policy instead of the follower's own."""
    env = small(sweeps=1)
    rows = collected(m_sobirl(env), 1, Evaluator(5))
    bilevel: Any = env.unwrapped
    mdp, policy = bilevel.problem.at(bilevel.x), bilevel.response.policy
    value, total = torch.zeros(4, dtype=torch.float64), 0.0
    for _ in range(200):
        value = (policy * (mdp.reward + mdp.discount * mdp.transition @ value)).sum(-1)
    total = float(mdp.start @ value)
    assert rows[0]["eval_learned_value"] == pytest.approx(total, rel=1e-9)
    assert "eval_true_value" not in rows[0]
    assert rows[0]["eval_objective"] != rows[0]["objective"]
    after = gym.make(ID, solver="policy_iteration", **SMALL)
    after.reset(seed=0)
    _, reward, *_ = after.step(bilevel.x.numpy())
    assert rows[0]["eval_objective"] == pytest.approx(-float(reward), rel=1e-9)


def test_the_true_value_is_of_the_true_reward() -> None:
    """Without it a comparison of reward learning could report the learned reward twice."""
    env: Any = gym.make("bilevel/TabularPreference-v0").unwrapped
    env.reset(seed=0)
    found = {line.metric: line.value for line in evaluate_env(env)}
    env.step(env.problem.world.true_reward.flatten().clip(-10, 10).numpy())
    there = {line.metric: line.value for line in evaluate_env(env)}
    assert found["true_value"] != pytest.approx(found["learned_value"])
    assert there["true_value"] == pytest.approx(there["learned_value"], rel=1e-9)
    assert there["true_value"] > found["true_value"]


def test_an_evaluation_of_followers_is_their_weighted_mean() -> None:
    """Without it the values of several followers could be added up, or only the first one's be seen."""
    env = BilevelEnv(problems.corridor(), SoftPolicyIteration())
    env.reset(seed=0)
    found = {line.metric: line.value for line in evaluate_env(env)}
    mdp, policy = env.problem.at(env.x), env.response.policy
    moved = torch.einsum("csa,csat->cst", policy, dense(mdp.transition))
    value = torch.linalg.solve(torch.eye(moved.shape[-1], dtype=torch.float64) - mdp.discount * moved, (policy * mdp.reward).sum(-1))
    expected = float((mdp.start * value).sum(-1) @ torch.tensor([0.3, 0.7], dtype=torch.float64))
    assert found["learned_value"] == pytest.approx(expected, rel=1e-8)


def test_an_evaluation_on_a_simulator_leaves_the_training_as_it_was() -> None:
    """Without it a run that is watched would learn something else than one that is not."""
    runs = []
    for watch in ((), (Evaluator(2, episodes=3),)):
        env = gym.make(DEEP, preset="tiny")
        env.reset(seed=0)
        rows = collected(random_search(env), 4, *watch)
        runs.append((rows, env.unwrapped.get_state()))
    (plain, first), (watched, second) = runs
    assert equal(first, second)
    names = {"eval_true_return", "eval_learned_return"}
    assert [names <= set(row) for row in watched] == [True, True, False, True]
    assert [{name: value for name, value in row.items() if name not in names} for row in watched] == plain


def test_evaluated_returns_are_those_of_the_policy() -> None:
    """Without it the learned return could be played by another policy, or be the true one."""
    env: Any = gym.make(DEEP, preset="tiny").unwrapped
    env.reset(seed=0)
    env.step(env.action_space.sample() * 0.1)
    found = {line.metric: line.value for line in evaluate_env(env, episodes=4, seed=5) if line.metric}
    world = env.problem.world
    trajectory = world.rollout(env.response.policy, trajectories=4, steps=50, generator=torch.Generator().manual_seed(5))
    learned = env.problem.reward.along(env.x, trajectory.states, trajectory.actions)
    assert found["true_return"] == pytest.approx(float(trajectory.rewards.sum(-1).mean()))
    assert found["learned_return"] == pytest.approx(float(learned.sum(-1).mean()))
    mean, _ = evaluate_policy(world, env.response.policy, episodes=4, generator=torch.Generator().manual_seed(5))
    assert mean == pytest.approx(found["true_return"])


def test_an_evaluator_refuses_what_it_cannot_measure() -> None:
    """Without it an agent on something else would be answered with an AttributeError from inside."""
    with pytest.raises(InvalidProblem, match="every is 0"):
        Evaluator(0)
    other: Any = types.SimpleNamespace(bilevel=gym.make("Pendulum-v1").unwrapped)
    with pytest.raises(UnsupportedProblem, match="PendulumEnv"):
        Evaluator(1)(other, {"upper_step": 1.0})


def test_an_evaluator_measures_a_batch() -> None:
    """Without it a thousand seeds would have no evaluations on the side; what is logged is the mean over them."""
    envs = gym.make_vec(ID, num_envs=2, **SMALL)
    envs.reset(seed=0)
    rows = collected(m_sobirl(envs), 1, Evaluator(1))
    alone = []
    for seed in (0, 1):
        env = gym.make(ID, **SMALL)
        env.reset(seed=seed)
        alone.append(collected(m_sobirl(env), 1, Evaluator(1)))
    measured = [name for name in rows[0] if name.startswith("eval_")]
    assert "eval_norm_hypergradient" in measured
    for name in measured:
        assert rows[0][name] == pytest.approx(np.mean([each[0][name] for each in alone]), rel=1e-9), name


# ---------------------------------------------------------------------------------------------- together


def test_what_a_callback_returns_reaches_those_after_it() -> None:
    """Without it an evaluation would be made and never be logged; and an end asked for by an early one must not be lost."""
    seen: list[dict[str, float]] = []
    inner = together(lambda *_: {"first": 1.0}, lambda *_: {"second": 2.0})
    outer = together(lambda _, metrics: seen.append(dict(metrics)), inner, lambda _, metrics: seen.append(dict(metrics)))
    assert outer(None, {"a": 0.0}) == {"first": 1.0, "second": 2.0}  # type: ignore[arg-type]
    assert seen == [{"a": 0.0}, {"a": 0.0, "first": 1.0, "second": 2.0}]
    assert together(lambda *_: False, lambda *_: {"b": 1.0})(None, {}) is False  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the best state


def test_the_best_state_is_kept(tmp_path: Path) -> None:
    """Without it the file could hold the last state, or be written when the metric got worse."""
    env, keeper, rows = small(), BestKeeper(tmp_path / "best.pt"), []
    agent = random_search(env, step_size=0.3)
    agent.learn(30, together(keeper, lambda _, metrics: rows.append(metrics["objective"])))
    saved = checkpoint.load(tmp_path / "best.pt")
    best = int(np.argmin(rows))
    assert best < 29, "the last step is the best: the test would see nothing"
    assert (saved["step"], checkpoint.unpack(saved["run"])["best"]["value"]) == (best + 1, rows[best])
    env.unwrapped.set_state(saved["env"])  # type: ignore[attr-defined]
    assert float(env.unwrapped.evaluation.value) == rows[best]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("metric", "kept"), [("objective", 1.0), ("eval_true_return", 3.0), ("accuracy_held_out", 3.0), ("test_r2", 3.0)])
def test_which_way_is_better(metric: str, kept: float, tmp_path: Path) -> None:
    """Without it the worst reward model could be kept as the best one."""
    keeper, agent = BestKeeper(tmp_path / "best.pt", metric), m_sobirl(small())
    for value in (2.0, float("nan"), 3.0, 1.0):
        keeper(agent, {metric: value})
    assert keeper.value == kept
    assert BestKeeper(tmp_path / "best.pt", metric, larger_is_better=kept == 1.0).larger_is_better is (kept == 1.0)


def test_a_best_state_is_gone_on_with(tmp_path: Path) -> None:
    """Without it the first step after a resume would overwrite a better state from before."""
    agent = exact(small(solver="policy_iteration"))
    first = BestKeeper(tmp_path / "best.pt")
    agent.learn(3, first)
    again = BestKeeper(tmp_path / "best.pt")
    assert again.value == first.value
    again(agent, {"objective": float(first.value or 0.0) + 1.0, "upper_step": 9})
    again(agent, {"gap": 1.0})
    again(agent.learn(1), {"objective": float("nan"), "upper_step": 10})
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 3
    with pytest.raises(CheckpointError, match="best by objective, and gap was asked for"):
        BestKeeper(tmp_path / "best.pt", "gap")
    with pytest.raises(UnknownName, match="unknown metric 'nothing'"):
        BestKeeper(tmp_path / "other.pt", "nothing")(agent, {"objective": 1.0})
    checkpoint.save(tmp_path / "foreign.pt", {"run": {}})
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        BestKeeper(tmp_path / "foreign.pt")


# ---------------------------------------------------------------------------------------------- budgets


def test_a_budget_ends_the_training() -> None:
    """Without it two agents could not be compared at equal cost; the oracle's solves count, too."""
    budget, env = StopOnBudget(lower_step=100), small(solver="policy_iteration")
    rows = collected(zero_order(env, directions=2), 1000, budget)
    assert budget.spent == "lower_step"
    assert rows[-2]["lower_step"] < 100 <= rows[-1]["lower_step"]
    assert env.unwrapped.counters.lower_step == rows[-1]["lower_step"]  # type: ignore[attr-defined]


def test_a_budget_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a job could not end itself before its queue does."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = StopOnBudget(seconds=5, comparisons=1e9)
    assert budget(None, {"comparisons": 3})  # type: ignore[arg-type]
    now[0] = 5.0
    assert not budget(None, {"comparisons": 3})  # type: ignore[arg-type]
    assert budget.spent == "seconds"


def test_budgets_that_mean_nothing() -> None:
    """Without it a misspelt or negative budget would never end anything, or everything at once."""
    with pytest.raises(InvalidProblem, match="give one at least"):
        StopOnBudget()
    with pytest.raises(InvalidProblem, match="each above 0"):
        StopOnBudget(env_steps=-1)
    with pytest.raises(UnknownName, match="unknown counter 'comparisons'"):
        StopOnBudget(comparisons=3)(None, {"env_steps": 1.0})  # type: ignore[arg-type]
    with pytest.raises(InvalidProblem, match="asks for no comparisons"):
        StopOnBudget(comparisons=3)(None, {"comparisons": 0.0})  # type: ignore[arg-type]
    with pytest.raises(InvalidProblem, match="env_steps is 'many': it must be a number"):
        StopOnBudget(env_steps="many")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Evaluator("a"), "every is 'a': it must be a whole number"),
        (lambda: Evaluator(1.5), "every is 1.5"),
        (lambda: Evaluator(1, episodes="a"), "episodes is 'a'"),
        (lambda: Checkpointer("a.pt", every=0), "every is 0 .*save every 1 step at least"),
        (lambda: Checkpointer("a.pt", every="a"), "every is 'a'"),
        (lambda: Checkpointer("a.pt", large=-1), "large -1"),
        (lambda: Checkpointer("a.pt", large="a"), "large is 'a'"),
        (lambda: RunSpec(ID, "exact", seed="a"), "seed is 'a'"),
        (lambda: RunSpec(ID, "exact", num_envs=1.5), "num_envs is 1.5"),
        (lambda: RunSpec(ID, "exact", env_kwargs=[1]), "env_kwargs is .1.: it must be a mapping"),
        (lambda: RunSpec(ID, "exact", env_kwargs={"solver": SoftPolicyIteration()}), "env_kwargs must be JSON.*SoftPolicyIteration"),
        (lambda: RunSpec(ID, "exact", agent_kwargs={"initial": torch.zeros(3)}), "agent_kwargs must be JSON.*Tensor"),
    ],
)
def test_what_no_training_can_use_is_refused_when_it_is_made(make: Any, words: str) -> None:
    """Hours later it would end in a TypeError, or in a run that nothing can resume: an object in its arguments is not kept."""
    with pytest.raises(InvalidProblem, match=words):
        make()


def test_lengths_of_a_training_that_are_none(tmp_path: Path) -> None:
    """The same of what a run is told, with nothing written."""
    run = Run.create(RunSpec(ID, "exact", env_kwargs=SMALL), tmp_path / "run")
    for options, words in (
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": 3, "checkpoint_every": -1}, "every is -1"),
        ({"steps": 3, "checkpoint_every": "a"}, "checkpoint_every is 'a'"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            run.train(**options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidProblem, match="total_steps is 'a'"):
        run.agent.learn("a")
    run.train(1)
    with pytest.raises(UnknownName, match="unknown field of a run 'step'; choose one of: agent"):
        Run.load(tmp_path / "run", step=1)


@pytest.mark.parametrize("make", [m_sobirl, random_search])
def test_agents_need_an_environment(make: Any) -> None:
    """An id in its place is the first thing that people try."""
    with pytest.raises(InvalidProblem, match=r"'bilevel/RandomMDP-v0' is none: give gym\.make\('bilevel/RandomMDP-v0'\)"):
        make(ID)


def test_an_evaluation_takes_wrappers_too() -> None:
    """``gym.make`` wraps, and what it returns is what people have."""
    env = gym.make(ID, **SMALL)
    env.reset(seed=0)
    assert evaluate_env(env) == evaluate_env(env.unwrapped)
    with pytest.raises(InvalidProblem, match="CartPoleEnv is not a bilevel environment"):
        evaluate_env(gym.make("CartPole-v1"))


# ---------------------------------------------------------------------------------------------- Weights & Biases


class FakeRun:
    """Takes what a run of wandb takes."""

    def __init__(self) -> None:
        self.id, self.rows, self.finished = "abc", [], False

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Keep a row."""
        self.rows.append((step, metrics))

    def finish(self) -> None:
        """End."""
        self.finished = True


def test_weights_and_biases_by_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the arguments that the service gets, the order of calls and the resumed id could be anything."""
    began: list[dict[str, Any]] = []
    made = FakeRun()

    class Refused(Exception):
        """What the service says."""

    def init(**options: Any) -> FakeRun:
        began.append(options)
        if options["project"] == "closed":
            raise Refused("no key")
        return made

    module = types.ModuleType("wandb")
    module.init, module.errors = init, types.SimpleNamespace(Error=Refused)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    with WandbLogger("project", folder=tmp_path / "run", name="first", config={"seed": 3}) as logger:
        m_sobirl(small()).learn(2, logger)
    assert began == [{"project": "project", "dir": str(tmp_path / "run"), "name": "first", "config": {"seed": 3}}]
    assert [step for step, _ in made.rows] == [1, 2]
    assert set(made.rows[0][1]) >= {"objective", "norm_hypergradient"}
    assert made.finished
    with WandbLogger("project", folder=tmp_path / "run", resume=True):
        assert began[-1] == {"project": "project", "dir": str(tmp_path / "run"), "name": None, "config": {}, "id": "abc", "resume": "allow"}
    with pytest.raises(ConnectionError, match="wandb login"), WandbLogger("closed", folder=tmp_path):
        pass


def test_without_wandb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a flag would end in an ImportError after the run has begun; nothing may be left behind."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install bilevel-gym\[wandb\]"):
        WandbLogger("project", folder=tmp_path / "run")
    message = refused(run_cli("train", ID, "--output", tmp_path / "run", "--wandb", "project", "--quiet"))
    assert "pip install bilevel-gym[wandb]" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra 'wandb'")
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the real package could refuse what the stand-in takes; it runs in a process of its own, for it starts a service."""
    code = (
        "import gymnasium as gym, bilevel_gym\n"
        "from bilevel_gym.agents import WandbLogger, m_sobirl\n"
        f"env = gym.make({ID!r}, states=4)\n"
        "env.reset(seed=0)\n"
        "with WandbLogger('project', folder='run', config={'seed': 0}) as logger:\n"
        "    m_sobirl(env).learn(3, logger)\n"
        "with WandbLogger('project', folder='run', resume=True) as logger:\n"
        "    m_sobirl(env).learn(1, logger)\n"
    )
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONPATH": str(Path(__file__).parents[1])}.items():
        monkeypatch.setenv(name, value)
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, timeout=120)
    logs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    run_id = (tmp_path / "run" / "wandb_id").read_text()
    assert logs
    assert all(run_id in log.name for log in logs)
    assert b"norm_hypergradient" in b"".join(log.read_bytes() for log in logs)


# ---------------------------------------------------------------------------------------------- the command line


def test_the_flags_of_train(tmp_path: Path) -> None:
    """Without it the flags could be read and do nothing: an evaluation, the best state and a budget, in one run that is resumed."""
    folder = tmp_path / "run"
    words = ("train", ID, "--set", "states=4", "--output", folder, "--quiet", "--eval-every", 2, "--best", "eval_objective")
    result = run_cli(*words, "--steps", 40, "--budget", "lower_step=45")
    assert result.exit_code == 0, result.output
    assert "stopped at step 4 of 40: the budget of lower_step is spent" in result.output
    result = run_cli(*words, "--steps", 6, "--resume")
    assert result.exit_code == 0, result.output
    rows = read_metrics(folder)
    assert np.isfinite(rows["eval_objective"]).tolist() == [True, True, False, True, False, True]
    assert checkpoint.load(folder / "best.pt")["step"] == 1 + int(np.nanargmin(rows["eval_objective"]))
    assert Run.load(folder, file="best.pt").bilevel.counters.upper_step == checkpoint.load(folder / "best.pt")["step"]
    assert "objective, solved exactly" in run_cli("evaluate", folder, "--best").output
    straight = tmp_path / "straight"
    run_cli(*words[:5], straight, *words[6:], "--steps", 6)
    assert (straight / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "steps=5"), "unknown counter 'steps'; choose one of: comparisons, env_steps, lower_step, seconds"),
        (("--budget", "seconds=soon"), "write a number"),
        (("--best", "eval_true_return"), "say --eval-every K"),
        (("--budget", "seconds=true"), "seconds is True: it must be a number"),
        (("--budget", "comparisons=5"), "asks for no comparisons"),
    ],
)
def test_mistakes_in_the_flags(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Without it a training would begin whose flags mean nothing."""
    assert message in refused(run_cli("train", ID, "--output", tmp_path / "run", *words))
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_is_resumed_with_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the command that is printed after Ctrl-C would go on without the evaluations, or round otherwise on other threads."""
    from bilevel_gym.agents import callbacks

    class Stopped(callbacks.StopOnSignal):
        """A signal has come."""

        def __call__(self, agent: Any, metrics: Any) -> bool:
            """Stop."""
            self.received = 2
            return False

    monkeypatch.setattr(callbacks, "StopOnSignal", Stopped)
    words = ("train", ID, "--set", "states=4", "--output", tmp_path / "run", "--quiet", "--steps", 9, "--eval-every", 3)
    more = ("--checkpoint-every", 5, "--threads", 2, "--eval-episodes", 4)
    threads = torch.get_num_threads()
    try:
        result = run_cli(*words, *more, "--budget", "seconds=100", "--budget", "lower_step=1e6")
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 130
    flags = "--checkpoint-every 5 --threads 2 --eval-every 3 --eval-episodes 4 --budget seconds=100 --budget lower_step=1e6"
    assert flags in result.stderr
    plain = run_cli(*words[:4], "--output", tmp_path / "plain", "--quiet", "--steps", 9)
    assert "--set states=4 --output" in plain.stderr


def test_metrics_that_come_late_have_a_column(tmp_path: Path) -> None:
    """Without it a flag that is given on resume would measure and log nothing."""
    spec = RunSpec(ID, "m_sobirl", env_kwargs=SMALL)
    run = Run.create(spec, tmp_path / "run")
    run.train(2)
    before = read_metrics(run.folder)
    run = Run.load(run.folder)
    run.train(4, callbacks=[Evaluator(2)])
    after = read_metrics(run.folder)
    assert np.isnan(after["eval_objective"]).tolist() == [True, True, True, False]
    assert all(np.array_equal(after[name][:2], before[name]) for name in before)
    assert json.loads((run.folder / "run.json").read_text())["steps"] == 4
