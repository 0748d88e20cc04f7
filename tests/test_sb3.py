"""Agents of Stable-Baselines3 as followers."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem, checkpoint, solvers
from bilevel_gym.agents import SearchAgent, drlhf, random_search, sobirl, zero_order
from bilevel_gym.errors import CheckpointError, InvalidProblem, MissingExtra, UnknownName, UnsupportedProblem
from bilevel_gym.objectives import PreferenceObjective, SampledReturn
from bilevel_gym.regularizers import Shannon, Tsallis
from bilevel_gym.rewards import Box, network_for
from bilevel_gym.types import Policy
from bilevel_gym.worlds import VectorWorld
from tests import problems
from tests.test_wrap_env import Tiles

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra 'sb3'")
from stable_baselines3 import DQN, PPO, SAC, TD3  # noqa: E402

TINY = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 16}


def follower(algorithm: Any = SAC, steps: int = 40, **more: Any) -> solvers.SB3Solver:
    """A small one, which learns nothing."""
    own = {"n_steps": 20, "batch_size": 20} if algorithm is PPO else {"learning_starts": 20, "buffer_size": 1000}
    return solvers.from_sb3(algorithm, **{"steps": steps, **TINY, **own, **more})


class Aim(Box):
    """r_x(s, a) = −(a − x)² in the units of the environment: what to do has nothing to do with the state."""

    def along(self, x: torch.Tensor, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """[..., action] → [...]."""
        return -((actions.squeeze(-1) - x.to(actions.dtype)[..., 0]) ** 2)


def problem(
    env_id: str = "Pendulum-v1", *, discount: float = 0.9, temperature: float = 0.1, reward: Any = None, horizon: int = 10
) -> BilevelProblem:
    """A preference task with a network's reward, or another one."""
    world = VectorWorld(env_id, discount, horizon=horizon)
    objective = PreferenceObjective(length=5, pairs=4, cut="anywhere", trajectories=4, steps=horizon)
    return BilevelProblem(world, reward or network_for(world, hidden=(8,)), Shannon(temperature), objective)


def generator(seed: int = 0) -> torch.Generator:
    """One of its own."""
    return torch.Generator().manual_seed(seed)


def observations(count: int, size: int = 3) -> torch.Tensor:
    """Some to act on."""
    return torch.randn(count, size, generator=generator(9))


# ---------------------------------------------------------------------------------------------- what it learns


@pytest.mark.timeout(120)
def test_sac_follows_the_reward_and_its_changes() -> None:
    """Without it the follower could learn from rewards of an older x, in other units of the actions, or at another temperature.

    Without a future π ∝ exp(−(a − x)²/τ): mean x and deviation √(τ/2).
    """
    task = problem(discount=0.0, temperature=0.125, reward=Aim(1, bound=2.0))
    solver = solvers.from_sb3(SAC, steps=300, learning_rate=1e-2, learning_starts=50, batch_size=64, policy_kwargs={"net_arch": [32]})
    source, warm = generator(), None
    for aim, solves in ((1.0, 2), (-0.5, 1)):
        for _ in range(solves):
            warm = solver.solve(task, torch.tensor([aim], dtype=torch.float64), warm=warm, generator=source)
        assert warm is not None
        seen = warm.state.model.replay_buffer.sample(512).observations
        actions = warm.policy.sample(seen, source)
        assert float(actions.mean()) == pytest.approx(aim, abs=0.15)
        assert float(actions.std()) == pytest.approx(0.25, rel=0.35)
        assert warm.policy.mean(seen).shape == (512, 1)
    assert (warm.soft, warm.env_steps) == (True, 300)
    assert warm.steps == 300
    assert 0.0 < float(warm.gap) < 0.5


def test_batches_carry_the_reward_of_the_moment() -> None:
    """Without it a label would be as old as its transition; actions are stored scaled, and rewards are functions of the unscaled ones."""
    task, source = problem(), generator()
    first, second = (task.reward.initial(source) for _ in range(2))
    warm = follower().solve(task, first, generator=source)
    warm = follower().solve(task, second, warm=warm, generator=source)
    batch = warm.state.model.replay_buffer.sample(64)
    expected = task.reward.along(second, batch.observations, 2.0 * batch.actions)
    torch.testing.assert_close(batch.rewards.squeeze(-1), expected)
    assert not torch.allclose(expected, task.reward.along(first, batch.observations, 2.0 * batch.actions))
    assert float(batch.actions.abs().max()) <= 1.0


def test_on_policy_rewards_are_of_what_was_played() -> None:
    """Without it PPO would be paid for the state that it comes to, or for an action outside of the box."""
    task, source = problem(horizon=50), generator()
    x = task.reward.initial(source)
    buffer = follower(PPO, steps=20).solve(task, x, generator=source).state.model.rollout_buffer
    states, actions = (torch.as_tensor(part).reshape(20, -1) for part in (buffer.observations, buffer.actions))
    expected = task.reward.along(x, states, actions.clamp(-2.0, 2.0))
    np.testing.assert_allclose(buffer.rewards[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_truncated_step_bootstraps_from_its_own_end() -> None:
    """Without it the follower would take the time limit for a death, or the next episode's start for what follows."""
    task, source = problem(horizon=10), generator()
    buffer = follower(steps=40).solve(task, torch.zeros(task.dimension), generator=source).state.model.replay_buffer
    ends = np.arange(9, 40, 10)
    assert np.flatnonzero(buffer.timeouts[:40, 0]).tolist() == ends.tolist()
    assert np.flatnonzero(buffer.dones[:40, 0]).tolist() == ends.tolist()
    moved = np.abs(buffer.next_observations[ends[:-1], 0] - buffer.observations[ends[:-1] + 1, 0]).max(-1)
    assert (moved > 1e-3).all(), "the end of an episode is the start of the next one"
    inside = np.delete(np.arange(39), ends[:-1])
    assert np.array_equal(buffer.next_observations[inside, 0], buffer.observations[inside + 1, 0])
    assert float(buffer.sample(64).dones.sum()) == 0.0


def test_the_gap_is_the_soft_residual() -> None:
    """Without it the certificate could leave out the entropy, or be one of other critics."""
    task, source = problem(discount=0.9, temperature=0.7), generator()
    solved = follower(learning_starts=39, batch_size=4000).solve(task, torch.zeros(task.dimension), generator=source)
    model = solved.state.model
    with torch.no_grad():
        batch = model.replay_buffer.sample(200_000)
        drawn, density = model.actor.action_log_prob(batch.next_observations)
        worst = torch.minimum(*model.critic_target(batch.next_observations, drawn))
        target = batch.rewards + 0.9 * (worst - 0.7 * density[:, None])
        both = [(q - target).abs().mean() for q in model.critic(batch.observations, batch.actions)]
    assert float(solved.gap) == pytest.approx(float(sum(both)) / 2, rel=0.03)


# ---------------------------------------------------------------------------------------------- its place among the solvers


def test_global_generators_stay_as_they_are() -> None:
    """Without it a person's own random numbers would change with the follower, and the follower's with theirs."""
    task, x = problem(), torch.zeros(problem().dimension)
    answers = []
    for seed in (1, 2):
        torch.default_generator.manual_seed(seed)
        random.setstate(random.Random(seed).getstate())
        np.random.set_state(np.random.RandomState(seed).get_state())  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        source = generator(7)
        solved = follower().solve(task, x, generator=source)
        solved = follower().solve(task, x, warm=replace(solved, state=solved.state.fork()), generator=source)
        answers.append(solved.policy.sample(observations(20), generator(3)))
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert torch.equal(*answers)


def test_draws_come_from_the_generator() -> None:
    """Without it two members of a rollout would act alike, or a seed would not repeat."""
    policy = follower().solve(problem(), torch.zeros(problem().dimension), generator=generator()).policy
    assert isinstance(policy, Policy)
    same = observations(1).expand(50, -1)
    first, again, other = (policy.sample(same, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 50
    assert (first.shape, first.dtype) == ((50, 1), torch.float32)
    source = generator(1)
    assert not torch.equal(policy.sample(same, source), policy.sample(same, source))


@pytest.mark.parametrize("algorithm", [SAC, PPO, TD3])
def test_a_solve_leaves_its_warm_start_as_it_was(algorithm: Any) -> None:
    """Without it Ctrl-C in the middle of a step, or a solve on the side, would change the follower that the environment goes on with."""
    task, source = problem(), generator()
    solver = follower(algorithm)
    first = solver.solve(task, torch.zeros(task.dimension), generator=source)
    kept = {name: value.clone() for name, value in first.state.model.policy.state_dict().items()}
    played = first.policy.mean(observations(20))
    second = solver.solve(task, torch.zeros(task.dimension), warm=first, generator=source)
    assert torch.equal(first.policy.mean(observations(20)), played)
    assert all(torch.equal(value, kept[name]) for name, value in first.state.model.policy.state_dict().items())
    assert any(not torch.equal(value, kept[name]) for name, value in second.state.model.policy.state_dict().items())
    assert second.state.model.num_timesteps == 80
    if algorithm is not PPO:
        assert second.state.model.replay_buffer.size() == 80
        optimizer = second.state.model.actor.optimizer.state_dict()["state"]
        assert optimizer[0]["step"] > first.state.model.actor.optimizer.state_dict()["state"][0]["step"]


def test_a_fork_shares_nothing() -> None:
    """Without it the solves of zero order would fill the environment's own replay."""
    task, source = problem(), generator()
    first = follower().solve(task, torch.zeros(task.dimension), generator=source)
    buffer = first.state.model.replay_buffer
    stored = buffer.observations[:40].copy()
    forked = replace(first, state=first.state.fork())
    assert np.array_equal(forked.state.model.replay_buffer.observations[:40], stored)
    assert forked.state.model.num_timesteps == 40
    second = follower().solve(task, torch.zeros(task.dimension), warm=forked, generator=source)
    assert (buffer.size(), second.state.model.replay_buffer.size()) == (40, 80)
    assert np.array_equal(buffer.observations[:40], stored)
    assert second.state.simulation is not first.state.simulation


def test_a_budget_shortens_a_solve() -> None:
    """Without it an estimator that can afford little would wait for a whole solve."""
    from bilevel_gym.types import Budget

    solved = follower().solve(problem(), torch.zeros(problem().dimension), budget=Budget(steps=25), generator=generator())
    assert (solved.env_steps, solved.steps) == (25, 5)


@pytest.mark.parametrize(("algorithm", "env_id"), [(PPO, "Pendulum-v1"), (TD3, "Pendulum-v1"), (PPO, "CartPole-v1"), (DQN, "CartPole-v1")])
def test_followers_that_are_not_soft(algorithm: Any, env_id: str) -> None:
    """Without it a hyper-gradient would be computed of a policy for which the formula does not hold; searches need none."""
    solver, task = follower(algorithm, num_envs=2), problem(env_id)
    env = BilevelEnv(task, solver, solve_on_reset=False)
    env.reset(seed=0)
    with pytest.raises(UnsupportedProblem, match="does not solve the entropy-regularized problem"):
        sobirl(env, updates_per_step=1, warmup_updates=0).learn(1)
    x = env.x
    assert x is not None
    zero_order(env, directions=1, learning_rate=1e-3).learn(1)
    assert not torch.equal(env.x, x)  # type: ignore[arg-type]
    random_search(env).learn(2)
    drlhf(env, updates_per_step=1, warmup_updates=0, batch=None).learn(1)
    assert not env.response.soft
    assert env.response.gap == float("inf")
    assert env.observation_space.contains(env.reset(options={"x": env.x, "keep": True})[0])


def test_cma_es_takes_any_follower() -> None:
    """Without it the agent that needs nothing but rewards could not be run on a foreign follower."""
    pytest.importorskip("cmaes", reason="needs the extra 'search'")
    from bilevel_gym.agents import CMAES

    env = BilevelEnv(problem(), follower(PPO), solve_on_reset=False)
    env.reset(seed=0)
    assert np.isfinite(SearchAgent(env, CMAES(population=4)).learn(5).best_objective)


def test_probabilities_of_finitely_many_actions() -> None:
    """Without it means over actions, which critics and discrete estimators take, would not be those of what is played."""
    task, source, seen = problem("CartPole-v1"), generator(), observations(3, 4)
    for algorithm in (PPO, DQN):
        policy = follower(algorithm).solve(task, torch.zeros(task.dimension), generator=source).policy
        probabilities = policy.probabilities(seen)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))
        drawn = policy.sample(seen.repeat(4000, 1), source).view(4000, 3)
        assert drawn.dtype == torch.int64
        torch.testing.assert_close((drawn == 1).float().mean(0), probabilities[:, 1], atol=0.03, rtol=0)
        assert torch.equal(policy.mean(seen), probabilities.argmax(-1))


# ---------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_keeps_the_networks(tmp_path: Any) -> None:
    """Without it a run with a foreign follower could not be resumed at all; that its replay is gone is said, and seen here."""

    def built(**more: Any) -> BilevelEnv:
        return BilevelEnv(problem(), follower(**more), solve_on_reset=False)

    env = built()
    env.reset(seed=0)
    env.step(env.action_space.sample() * 0.1)
    checkpoint.save(tmp_path / "state.pt", env.get_state())
    again = built()
    again.set_state(checkpoint.load(tmp_path / "state.pt"))
    seen = observations(20)
    assert torch.equal(again.response.policy.mean(seen), env.response.policy.mean(seen))
    optimizers = [one.response.state.model.actor.optimizer.state_dict()["state"][0]["exp_avg"] for one in (env, again)]
    assert torch.equal(*optimizers)
    assert again.response.state.model.replay_buffer.size() == 0
    again.step(env.action_space.sample() * 0.1)
    assert again.response.state.model.replay_buffer.size() == 40
    other = built(policy_kwargs={"net_arch": [4]})
    other.reset(seed=0)
    x = other.x
    with pytest.raises(CheckpointError, match="build the solver as it was built"):
        other.set_state(checkpoint.load(tmp_path / "state.pt"))
    assert other.x is x
    with pytest.raises(UnsupportedProblem, match="without its network"):
        checkpoint.unpack(checkpoint.pack(env.response)).policy.mean(seen)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"ent_coef": 0.1}, InvalidProblem, "ent_coef is not for from_sb3 to set: it is the problem's temperature"),
        ({"gamma": 0.9}, InvalidProblem, "the problem's discount"),
        ({"seed": 1}, InvalidProblem, "environment's generator"),
        ({"n_steps": 3}, InvalidProblem, "rewards of an older x"),
        ({"learning_rat": 1}, UnknownName, "unknown argument of SAC 'learning_rat'; choose one of: .*learning_rate"),
        ({"steps": 0}, InvalidProblem, "steps is 0"),
        ({"steps": 1.5}, InvalidProblem, "steps is 1.5: it must be a whole number"),
        ({"soft": "a"}, InvalidProblem, "soft is 'a': it must be True or False"),
        ({"algorithm": "SAC"}, InvalidProblem, "algorithm is 'SAC': give a class"),
        ({"algorithm": VectorWorld}, InvalidProblem, "algorithm is .*give a class"),
    ],
)
def test_arguments_that_are_not_the_callers(words: dict[str, Any], error: type[Exception], message: str) -> None:
    """Without it an argument could be ignored, or change the problem that the upper level believes to be solving."""
    with pytest.raises(error, match=message):
        solvers.from_sb3(**{"algorithm": SAC, **words})
    solvers.from_sb3(PPO, ent_coef=0.01, n_steps=64)


def test_problems_that_do_not_fit() -> None:
    """Without it each of these would end in an assertion from inside of another package, or in a wrong answer."""
    x = torch.zeros(problem().dimension)
    with pytest.raises(UnsupportedProblem, match="need a simulated world"):
        follower().start(problems.quadratic(0))
    with pytest.raises(UnsupportedProblem, match="values Shannon's entropy, not Tsallis"):
        follower().start(replace(problem(), regularizer=Tsallis(0.1)))
    assert not follower(PPO).start(replace(problem(), regularizer=Tsallis(0.1))).soft
    with pytest.raises(UnsupportedProblem, match="DQN does not take this problem"):
        follower(DQN).solve(problem(), x, generator=generator())
    with pytest.raises(UnsupportedProblem, match=r"SAC does not take this problem .*unexpected keyword argument 'wide'"):
        follower(policy_kwargs={"wide": 1}).solve(problem(), x, generator=generator())
    warm = follower().solve(problem(), x, generator=generator())
    with pytest.raises(UnsupportedProblem, match="not one of SAC on 2 copies"):
        follower(num_envs=2).solve(problem(), x, warm=warm, generator=generator())
    with pytest.raises(UnsupportedProblem, match="not one of PPO"):
        follower(PPO).solve(problem(), x, warm=warm, generator=generator())


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a person without Stable-Baselines3 would be told nothing but a module's name."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingExtra, match=r"pip install bilevel-gym\[sb3\]"):
        solvers.from_sb3(object)


def test_a_registered_id_takes_one() -> None:
    """Without it the way that the documentation shows could not be gone."""
    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny", solver=follower())
    env.reset(seed=0)
    agent = sobirl(env, updates_per_step=2, warmup_updates=0).learn(2)
    assert agent.bilevel.response.soft


# ---------------------------------------------------------------------------------------------- pictures


class Again(Box):
    """r_x = x where the last action is taken again, −x elsewhere: only who sees how bright the newer picture is can earn it."""

    def along(self, x: torch.Tensor, states: Any, actions: torch.Tensor) -> torch.Tensor:
        """[..., 2, 60, 60] uint8 → [...]."""
        assert states.dtype == torch.uint8
        return x[..., 0] * torch.where((states[..., 1, :, :].float().mean((-2, -1)) > 110) == (actions == 1), 1.0, -1.0)


def pixels(reward: Any = None) -> BilevelProblem:
    """A task on pictures, without a future."""
    world = VectorWorld(Tiles, 0.0, horizon=20)
    return BilevelProblem(world, reward or Again(1, 1.0), Shannon(0.1), SampledReturn(trajectories=4))


CNN = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}, "net_arch": []}}


@pytest.mark.timeout(120)
def test_dqn_follows_a_reward_of_pictures_and_its_changes() -> None:
    """On pixels rewards must be those of the pictures themselves, neither scaled nor transposed, and of the x of now."""
    task, source, warm = pixels(), generator(), None
    every = {
        "train_freq": 1,
        "target_update_interval": 1,
        "learning_rate": 3e-3,
        "exploration_initial_eps": 1.0,
        "exploration_final_eps": 0.9,
    }
    solver = solvers.from_sb3(DQN, steps=120, learning_starts=32, buffer_size=400, batch_size=16, **every, **CNN)
    seen = task.world.rollout(task.world.uniform(), trajectories=2, steps=20, generator=source).states.flatten(0, 1)
    for aim in (1.0, -1.0):
        warm = solver.solve(task, torch.tensor([aim], dtype=torch.float64), warm=warm, generator=source)
        assert bool((task.reward.along(torch.tensor([aim]), seen, warm.policy.mean(seen)) == 1.0).all())
    batch = warm.state.model.replay_buffer.sample(16)
    torch.testing.assert_close(
        batch.rewards.squeeze(-1), task.reward.along(torch.tensor([-1.0]), batch.observations, batch.actions.squeeze(-1))
    )


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_the_outer_environment_goes_all_the_way_on_pictures(algorithm: Any) -> None:
    """With r_x a convolutional network, several copies, an evaluation, a checkpoint, and an agent that needs no gradient."""
    own = (
        {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
        if algorithm is PPO
        else {"learning_starts": 16, "buffer_size": 100, "batch_size": 8}
    )
    world = VectorWorld(Tiles, 0.9, horizon=12)
    task = BilevelProblem(world, network_for(world, hidden=(4,)), Shannon(0.1), SampledReturn(trajectories=2))
    env = BilevelEnv(task, solvers.from_sb3(algorithm, steps=32, num_envs=2, **own, **CNN), solve_on_reset=False)
    env.reset(seed=0)
    random_search(env).learn(1)
    env.set_state(env.get_state())
    observations = world.rollout(env.response.policy, trajectories=2, steps=12, generator=generator()).states[:, 0]
    chances = env.response.policy.probabilities(observations)
    assert chances.shape == (2, 2)
    torch.testing.assert_close(chances.sum(-1), torch.ones(2))
    env.step(env.x.numpy())


def test_pictures_need_a_replay_of_a_size() -> None:
    """The default of a million stacks, kept twice, would take more memory than there is, some time later."""
    with pytest.raises(InvalidProblem, match="1000000 transitions of pictures, which DQN keeps twice, takes 14 GB"):
        solvers.from_sb3(DQN).solve(pixels(), torch.ones(1), generator=generator())
    with pytest.raises(UnsupportedProblem, match="SAC does not take this problem"):
        solvers.from_sb3(SAC, buffer_size=10).solve(pixels(), torch.ones(1), generator=generator())
