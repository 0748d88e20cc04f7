"""Rewards that mix the named parts of a task's own reward, and the parts on their way from the simulator to r_x."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import ScoreFunction
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import BradleyTerry
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import EnvironmentReward, RewardTerms
from bilevel_gym.solvers import SAC
from bilevel_gym.types import Places, Trajectory, TransitionReward
from bilevel_gym.worlds import mujoco_world

NAMES = ("reward_forward", "reward_ctrl")
OBJECTIVE = PreferenceObjective(
    length=4, pairs=6, trajectories=6, steps=8, cut="anywhere", capacity=20, held_out_pairs=8, teacher=BradleyTerry(inf)
)
SMALL = {"steps": 60, "learning_starts": 20, "batch_size": 16, "hidden": (8, 8), "capacity": 40}


def generator(seed: int = 0) -> torch.Generator:
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


def problem(names: tuple[str, ...] = NAMES) -> BilevelProblem:
    """HalfCheetah, whose reward is the sum of its two terms."""
    world = mujoco_world("HalfCheetah-v5", horizon=8, discount=0.9, terms=names)
    return BilevelProblem(world, RewardTerms.for_world(world), Shannon(0.1), OBJECTIVE)


def test_is_the_softmax_mixture() -> None:
    """Without it the weights, their sum or their derivative could be wrong; a population is its members one by one."""
    reward = RewardTerms(["a", "b", "c"], scale=2.0)
    assert isinstance(reward, TransitionReward)
    terms = torch.randn(4, 5, 3, generator=generator(), dtype=torch.float64)
    played = Trajectory(None, terms, terms[..., 0] > 0, terms=terms)
    x = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    for member in x:
        shares = member.exp() / member.exp().sum()
        torch.testing.assert_close(reward.of_transitions(member, played), 2.0 * (terms * shares).sum(-1))
    together = reward.of_transitions(x, replace(played, terms=terms[None]))
    torch.testing.assert_close(together, torch.stack([reward.of_transitions(member, played) for member in x]))
    assert torch.autograd.gradcheck(lambda leaf: reward.of_transitions(leaf, played), x[0].clone().requires_grad_())


def test_starts_near_equal_weights_inside_its_box() -> None:
    """A start far from 0 would be a mixture that nobody has asked for, or outside of the action space; for_world must hand on what it is told."""
    world = SimpleNamespace(terms=("a", "b", "c"), device="cpu")
    draws = torch.randn(3, generator=generator(4), dtype=torch.float32)
    torch.testing.assert_close(RewardTerms.for_world(world).initial(generator(4)), 0.01 * draws)
    reward = RewardTerms.for_world(world, scale=5.0, spread=3.0, bound=2.0)
    torch.testing.assert_close(reward.initial(generator(4)), (3.0 * draws).clamp(-2.0, 2.0))
    assert float(reward.weights(torch.tensor([0.3, -1.0, 2.0])).sum()) == pytest.approx(5.0)
    assert (reward.bounds[0].tolist(), reward.bounds[1].tolist()) == ([-2.0] * 3, [2.0] * 3)


def test_the_terms_of_halfcheetah_add_up_to_its_reward() -> None:
    """In trajectories: K numbers a step, those of the step itself also where the episode ends, nothing past its end."""
    task = problem()
    played = task.world.rollout(task.world.uniform(), trajectories=3, steps=11, generator=generator())
    assert played.terms.shape == (3, 11, 2)
    assert bool(played.alive[:, 7].all())
    assert not bool(played.alive[:, 8:].any())
    torch.testing.assert_close(played.terms.sum(-1), played.rewards, rtol=1e-4, atol=1e-5)
    assert float(played.terms[:, :8, 1].max()) < 0  # the cost of control
    torch.testing.assert_close(task.reward.of_transitions(torch.zeros(2), played), played.rewards, rtol=1e-4, atol=1e-5)


def test_the_last_step_of_an_episode_reports_its_own_terms() -> None:
    """Under autoreset ``info`` is that of the new episode: the terms of the last step lie elsewhere."""
    simulation = problem().world.open(2, seed=0)
    actions = 0.3 * torch.ones(2, 6)
    for step in range(1, 18):
        moved = simulation.step(actions)
        torch.testing.assert_close(moved.terms.sum(-1), moved.rewards, rtol=1e-4, atol=1e-5)
        assert bool(moved.truncated.all()) == (step % 8 == 0)


def test_the_replay_keeps_them_through_its_wrap() -> None:
    """SAC must learn from the terms of the very transitions that it draws, also after the ring has been filled twice."""
    task = problem()
    solved = SAC(**SMALL).solve(task, torch.zeros(2), generator=generator(2))
    batch = solved.state.replay.copy().at(torch.arange(40))
    assert batch.terms.shape == (40, 2)
    torch.testing.assert_close(batch.terms.sum(-1), batch.rewards, rtol=1e-4, atol=1e-5)
    assert float(batch.rewards.std()) > 0
    truth = replace(task, reward=EnvironmentReward())
    other = SAC(**SMALL).solve(truth, torch.ones(1), generator=generator(2))
    torch.testing.assert_close(solved.state.networks.critic, other.state.networks.critic, rtol=1e-3, atol=1e-4)


def test_the_outer_environment_goes_all_the_way() -> None:
    """Fragments, queue, held-out set and checkpoint must carry the terms: at equal weights a rational teacher is always agreed with."""
    env = BilevelEnv(problem(), SAC(**SMALL), initial_x=np.zeros(2), solve_on_reset=False)
    env.reset(seed=0)
    info = env.step(np.zeros(2, np.float32))[-1]
    assert (info["accuracy_fresh"], info["accuracy_held_out"]) == (1.0, 1.0)
    assert info["learned_return"] == pytest.approx(info["true_return"], rel=1e-3, abs=1e-3)
    kept = env.evaluation.memory.content
    torch.testing.assert_close(kept.terms.sum(-1) * kept.alive, kept.rewards, rtol=1e-4, atol=1e-5)
    estimator = ScoreFunction("critic", "frozen")
    estimate, _ = estimator(env.oracle, env.x, env.response, env.evaluation, estimator.init(env.oracle))
    assert bool(estimate.value.isfinite().all())
    # softmax does not see a shift of all logits
    assert abs(float(estimate.value.sum())) < 1e-3 * float(estimate.value.abs().sum())
    assert "nobody took" in (ScoreFunction("one_step", "frozen").supports(env.problem) or "")


def test_continuations_report_them() -> None:
    """``rollout`` differentiates r_x along continuations, which need the terms, too."""
    task = problem()
    played = task.world.rollout(task.world.uniform(), trajectories=2, steps=6, generator=generator())
    places = Places(played, torch.tensor([0, 1, 1]), torch.tensor([2, 0, 4]))
    on = task.world.branch(task.world.uniform(), places, steps=torch.tensor([3, 1, 4]), generator=generator(1), given=True)
    assert on.terms.shape == (3, 4, 2)
    torch.testing.assert_close(on.terms.sum(-1), on.rewards, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on.terms[:, 0], played.terms[places.row, places.time])


def test_refuses_what_cannot_be() -> None:
    """Names that nobody reports, steps without terms, worlds without names: each says what to do."""
    for names in ([], ["a", "a"], "reward_forward"):
        with pytest.raises(InvalidProblem, match="names are"):
            RewardTerms(names)
    with pytest.raises(InvalidProblem, match="scale"):
        RewardTerms(["a"], scale=0.0)
    with pytest.raises(InvalidProblem, match="reports no terms"):
        RewardTerms.for_world(mujoco_world("HalfCheetah-v5", horizon=8))
    with pytest.raises(UnsupportedProblem, match="terms="):
        RewardTerms(["a"]).of_transitions(torch.zeros(1), Trajectory(None, torch.zeros(2, 3), torch.ones(2, 3) > 0))
    task = problem(("reward_forward", "reward_hop"))
    with pytest.raises(InvalidProblem, match="reward_hop"):
        task.world.rollout(task.world.uniform(), trajectories=1, steps=2, generator=generator())
