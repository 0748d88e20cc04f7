"""Blocks of updates: the same as one by one, on the CPU without a graph and on a GPU with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.hypergradients import RidgeCritic
from bilevel_gym.hypergradients.charged_reward import ChargedReward
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import DiscreteMLPReward, MLPReward
from bilevel_gym.solvers import SAC, DiscreteSAC, SoftQ, graphs
from bilevel_gym.solvers.graphs import GraphedUpdates
from bilevel_gym.solvers.learner import ActorCritic
from bilevel_gym.types import Fragments
from bilevel_gym.worlds import VectorWorld
from tests.test_discrete_sac import Brightness, ScreenWorld

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
OPTIONS: dict[str, Any] = {"steps": 60, "num_envs": 2, "learning_starts": 20, "batch_size": 16, "hidden": (32, 32), "capacity": 5000}


def pendulum(device: str) -> tuple[SAC, BilevelProblem]:
    """Continuous actions."""
    world = VectorWorld("Pendulum-v1", 0.95, horizon=10, device=device)
    return SAC(**OPTIONS), BilevelProblem(world, MLPReward.for_world(world, hidden=(8,)), Shannon(0.1), None)  # type: ignore[arg-type]


def cartpole(device: str) -> tuple[DiscreteSAC, BilevelProblem]:
    """Finitely many actions."""
    world = VectorWorld("CartPole-v1", 0.95, horizon=10, device=device)
    return DiscreteSAC(**OPTIONS), BilevelProblem(world, DiscreteMLPReward.for_world(world, hidden=(8,)), Shannon(0.1), None)  # type: ignore[arg-type]


def screens(device: str) -> tuple[DiscreteSAC, BilevelProblem]:
    """Pictures."""
    reward = Brightness(torch.zeros(1), device=torch.device(device))
    return DiscreteSAC(**OPTIONS), BilevelProblem(ScreenWorld(torch.device(device)), reward, Shannon(0.1), None)  # type: ignore[arg-type]


def charged(device: str) -> tuple[SAC, BilevelProblem]:
    """The same with what PBRL's own actor is paid, which draws actions for a mean."""
    solver, problem = pendulum(device)
    source, policy = torch.Generator(device=device).manual_seed(3), problem.world.uniform()
    played = problem.world.rollout(policy, trajectories=4, steps=5, generator=torch.Generator(device=device).manual_seed(4))
    shown = (part[:, None] for part in (played.states, played.actions, played.alive))
    fragments = Fragments(*shown, torch.ones(4, device=device))
    fitted = RidgeCritic().fit(problem, fragments, torch.arange(4.0, device=device), torch.Generator(device=device).manual_seed(5))
    return solver, replace(problem, reward=ChargedReward(problem, RidgeCritic(), fitted, policy, 10.0, 2, source))


def soft_q(device: str) -> tuple[SoftQ, BilevelProblem]:
    """Finitely many actions, and no actor."""
    return SoftQ(**OPTIONS), cartpole(device)[1]


TUNED = {"target_entropy": 0.5, "polyak": 1.0, "target_every": 7}
KINDS = [
    *((make, tuned) for make in (pendulum, cartpole, screens, charged) for tuned in ({}, TUNED)),
    (soft_q, {}),
    (soft_q, {"polyak": 1.0, "target_every": 7}),
]


def two_learners(make: Callable[[str], Any], device: str, block: int, **options: Any) -> tuple[list[ActorCritic], list[GraphedUpdates]]:
    """Twice the same networks over the same replay with the same draws: in blocks, and one by one."""
    solver, problem = make(device)
    solver = replace(solver, **options)
    x = problem.reward.initial(torch.Generator().manual_seed(0)).to(device)
    state = replace(solver, steps=200).solve(problem, x, generator=torch.Generator().manual_seed(1)).state
    networks = [state.networks.clone(), state.networks.clone()]
    sides = []
    for copy, size in zip(networks, (block, 10**6), strict=True):
        _, problem = make(device)  # its reward draws from a generator of its own, if from any
        learner = solver._learner(solver._setting(problem), copy, state.updates)
        generator = torch.Generator(device=device).manual_seed(2)
        sides.append(replace(solver, graph_updates=size)._blocks(problem, x, learner, state.replay, generator))
    return networks, sides


def agree(networks: list[ActorCritic], tolerance: float) -> None:
    """Parameters, moments and clocks."""
    for field in fields(ActorCritic):
        torch.testing.assert_close(*(getattr(copy, field.name) for copy in networks), atol=tolerance, rtol=tolerance, msg=field.name)


@cuda
@pytest.mark.parametrize(("make", "tuned"), KINDS)
def test_graphed_and_eager_parameters_agree(make: Callable[[str], Any], tuned: dict[str, Any]) -> None:
    """Without it a graph could replay old draws, read a replay that has moved, or leave out what the host decides in eager updates."""
    networks, (graphed, eager) = two_learners(make, "cuda", 10, learning_rate=1e-3, **tuned)
    before = networks[0].clone()
    for side in (graphed, eager):
        for count in (45, 55):  # blocks of ten, and what is left
            side(count)
    torch.cuda.synchronize()
    assert not torch.equal(before.critic, networks[0].critic)
    assert (make is soft_q) == torch.equal(before.actor, networks[0].actor)
    agree(networks, 1e-5)


@cuda
@pytest.mark.parametrize("make", [pendulum, cartpole, charged, soft_q])
def test_a_solve_with_graphs(make: Callable[[str], Any]) -> None:
    """Without it the graph could be right and the solver never reach it, or break when the replay grows."""
    solver, problem = make("cuda")
    solver = replace(solver, steps=6000, updates_per_step=0.5, update_every=50, graph_updates=10)
    x = problem.reward.initial(torch.Generator().manual_seed(0)).to("cuda")
    response = solver.solve(problem, x, generator=torch.Generator().manual_seed(1))
    assert response.steps == response.state.updates > 2900
    assert float(response.state.networks.clocks[1]) == response.steps
    assert bool(response.gap.isfinite())


# ------------------------------------------------------------------------------------------------ what can be seen on a CPU


def replayed(body: Callable[[], None], state: Any, generators: Any) -> Callable[[], None]:
    """In place of a capture: what a replay does, without a GPU."""
    list(state)
    return body


@pytest.mark.parametrize(("make", "tuned"), KINDS)
def test_blocks_are_updates_one_by_one(make: Callable[[str], Any], tuned: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it blocks and rests would not add up, or the targets be due at other updates on the device than on the host."""
    monkeypatch.setattr(graphs, "capture", replayed)
    networks, (blocks, single) = two_learners(make, "cpu", 4, **tuned)
    blocks(10)
    blocks(1)
    single(11)
    agree(networks, 0.0)
    assert blocks._learner.updates == single._learner.updates == float(networks[0].clocks[1])

    again = single._learner.networks.clone()
    solver, problem = make("cpu")
    solver = replace(solver, **tuned)
    learner = solver._learner(solver._setting(problem), again, single._learner.updates)
    for _ in range(8):
        batch = single._label(single._replay.at(torch.arange(16)))
        learner.update(batch)
        single._learner.update_on_device(batch)
    agree([again, single._learner.networks], 1e-6)


def test_draws_are_uniform_over_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a ring that has wrapped would be drawn from rows that nobody wrote, or in part."""
    monkeypatch.setattr(graphs, "capture", replayed)
    _, (side, _) = two_learners(cartpole, "cpu", 4, capacity=90)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(type(side._replay), "at", lambda self, rows: seen.append(rows))
    side._label = lambda batch: None
    monkeypatch.setattr(type(side._learner), "update_on_device", lambda self, batch: None)
    side(600)
    counts = torch.bincount(torch.cat(seen), minlength=90)
    assert len(counts) == 90
    assert bool(((counts - 9600 / 90).abs() < 5 * (9600 / 90) ** 0.5).all())

    _, (side, _) = two_learners(screens, "cpu", 4, capacity=90)
    monkeypatch.setattr(type(side._replay), "at", lambda self, rows: seen.append(rows))
    monkeypatch.setattr(type(side._learner), "update_on_device", lambda self, batch: None)
    side._label = lambda batch: None
    side._replay.first = side._replay.written - 50  # as where frames were short
    seen.clear()
    side(100)
    wanted = torch.arange(side._replay.first, side._replay.written) % 90
    assert torch.equal(torch.cat(seen).unique(), wanted.sort().values)


def test_a_replay_that_has_moved_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a graph would go on reading memory that was freed when the replay grew."""
    captured: list[int] = []

    def counted(body: Callable[[], None], state: Any, generators: Any) -> Callable[[], None]:
        captured.append(side._replay.rows.data_ptr())
        return body

    monkeypatch.setattr(graphs, "capture", counted)
    _, (side, _) = two_learners(cartpole, "cpu", 4)
    side(4)
    side(8)
    assert len(captured) == 1
    many = torch.zeros(4096, 4)
    side._replay.add(many, torch.zeros(4096, dtype=torch.int64), many, torch.zeros(4096), torch.zeros(4096))
    side(4)
    assert captured == [captured[0], side._replay.rows.data_ptr()]


def test_what_cannot_be_captured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a CPU run with graphs, or a reward that looks at its numbers, would end in an error of CUDA that explains nothing."""
    solver, problem = cartpole("cpu")
    with pytest.raises(UnsupportedProblem, match="graph_updates=0"):
        replace(solver, graph_updates=8).solve(problem, problem.reward.initial(torch.Generator()), generator=torch.Generator())

    def failing(*_: Any) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "capture", failing)
    _, (side, _) = two_learners(cartpole, "cpu", 4)
    with pytest.raises(UnsupportedProblem, match="stream is capturing"):
        side(4)


def test_a_reward_that_draws_is_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """PBRL's own actor is paid less a mean over drawn actions: a generator that the graph does not know ends the capture in an error."""
    known: list[Any] = []

    def noted(body: Callable[[], None], state: Any, generators: Any) -> Callable[[], None]:
        known.extend(generators)
        return body

    monkeypatch.setattr(graphs, "capture", noted)
    _, (side, _) = two_learners(charged, "cpu", 4)
    side(4)
    assert len(known) == 2
    before = [generator.get_state() for generator in known]
    side(4)
    assert not any(torch.equal(state, generator.get_state()) for state, generator in zip(before, known, strict=True))
    _, (plain, _) = two_learners(pendulum, "cpu", 4)
    known.clear()
    plain(4)
    assert len(known) == 1  # a reward that draws nothing has none

    solver, problem = charged("cpu")
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    problem = replace(problem, reward=replace(problem.reward, generator=elsewhere))  # type: ignore[type-var]
    x, source = problem.reward.initial(torch.Generator()), torch.Generator()
    with pytest.raises(UnsupportedProblem, match=r"on cuda, and the updates are on cpu.*graph_updates=0"):
        replace(solver, graph_updates=4)._blocks(problem, x, None, None, source)  # type: ignore[arg-type]
