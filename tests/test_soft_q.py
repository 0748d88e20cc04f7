"""Soft Q-learning with networks: the update is the textbook's, its fixed point is soft value iteration's, and the ids and agents take it."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_gym  # noqa: F401
from bilevel_gym.agents.making import RECIPES, make_agent
from bilevel_gym.envs import ProblemOracle, wrap_env
from bilevel_gym.errors import InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.hypergradients import ScoreFunction
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SAC, DiscreteSAC, SoftQ, SoftValueIteration
from bilevel_gym.solvers.architectures import MLP, Architecture
from bilevel_gym.solvers.finite_actions import DiscreteLabelled
from bilevel_gym.solvers.learner import ActorCritic, Rates, Setting
from bilevel_gym.solvers.soft_q import SoftQLearner, SoftQPolicy
from bilevel_gym.testing import enumerated_critic
from bilevel_gym.worlds import TabularWorld
from tests.discrete import STATES, Planner, point, simulated, tabular
from tests.known import Known
from tests.test_discrete_sac import PICTURES, Dressed, cartpole, example, follow, module, seeded
from tests.test_likelihood import IndicatorCritic

SMALL = SoftQ(steps=40, num_envs=2, learning_starts=20, batch_size=16, hidden=(8, 8), capacity=500)


class Textbook:
    """A soft double DQN with modules, one transition at a time, autograd and ``torch.optim.Adam``; its losses are halved."""

    def __init__(self, networks: ActorCritic, setting: Setting, rates: Rates) -> None:
        self.setting, self.rates, self.count = setting, rates, 0
        self.critics, self.targets = (
            [module(setting.critic, flat, 2, copy) for copy in range(2)] for flat in (networks.critic, networks.target)
        )
        learning = [parameter for critic in self.critics for parameter in critic.parameters()]
        self.adam = torch.optim.Adam(learning, rates.learning_rate, eps=rates.adam_epsilon)

    def update(self, batch: DiscreteLabelled) -> None:
        """Critics, then targets."""
        tau, loss = self.setting.temperature, torch.zeros((), dtype=batch.rewards.dtype)
        states, following = batch.states.to(loss.dtype), batch.following.to(loss.dtype)
        for i, action in enumerate(batch.actions):
            with torch.no_grad():
                lowest = torch.minimum(*(target(following[i : i + 1])[0] for target in self.targets))
                soft_maximum = tau * torch.log(sum(torch.exp(value / tau) for value in lowest))  # type: ignore[arg-type]
                wanted = batch.rewards[i] + batch.going[i] * self.setting.discount * soft_maximum
            for critic in self.critics:
                loss = loss + 0.5 * (critic(states[i : i + 1])[0, action] - wanted) ** 2 / len(states)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.count += 1
        if self.count % self.rates.target_every == 0:
            follow(self.targets, self.critics, self.rates.polyak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", [MLP((5, 16, 12, 3)), PICTURES], ids=["mlp", "cnn"])
@pytest.mark.parametrize("rates", [Rates(3e-3, 1e-3, 0.02), Rates(3e-3, 1e-3, 1.0, 2)], ids=["soft", "hard"])
def test_update_is_the_textbooks(architecture: Architecture, dtype: torch.dtype, rates: Rates) -> None:
    """Without it a slip in V̄, in the gradient or in the targets could still learn a little, and nobody would know."""
    generator, count = seeded(0), 10
    setting = Setting(0.97, 0.3, None, architecture)
    networks = ActorCritic.initial(setting, generator, torch.device("cpu"))
    networks = ActorCritic(*(getattr(networks, field.name).to(dtype) for field in fields(networks)))
    networks.target.add_(0.05 * torch.randn(networks.target.shape, generator=generator).to(dtype))
    plain, learner = Textbook(networks, setting, rates), SoftQLearner(networks, setting, rates, batch_size=count)
    close = 1e-5 if dtype == torch.float32 else 1e-9
    for _ in range(3):
        batch = example(architecture, count, 3, dtype, generator)
        learner.update(batch)
        plain.update(batch)
        for flat, theirs in ((networks.critic, plain.critics), (networks.target, plain.targets)):
            for copy, whole in enumerate(theirs):
                for mine, parameter in zip(module(architecture, flat, 2, copy).parameters(), whole.parameters(), strict=True):
                    torch.testing.assert_close(mine, parameter, atol=close, rtol=close)


# ------------------------------------------------------------------------------------------------------------ fixed points


def tables(temperature: float, quarters: int = 0) -> tuple[TabularWorld, np.ndarray, BilevelProblem]:
    """A table whose episodes may end, its rewards [S, A], and the problem; with ``quarters`` all probabilities are multiples of ¼."""
    rng = np.random.default_rng(4)
    states, choices = 6, 3
    chances = rng.dirichlet(np.full(states + 1, 0.5), (states, choices))  # the last one ends the episode
    if quarters:
        chances = rng.multinomial(4, np.full(states + 1, 1.0 / (states + 1)), (states, choices)) / 4.0
    rewards = rng.standard_normal((states, choices))
    world = TabularWorld(chances[..., :-1], rng.dirichlet(np.ones(states)), 0.9, chances[..., -1])
    return world, rewards, BilevelProblem(world, LinearReward(rewards[..., None]), Shannon(temperature), None)  # type: ignore[arg-type]


ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize("rates", [Rates(3e-3, polyak=0.05), Rates(3e-3, polyak=1.0, target_every=20)], ids=["soft", "hard"])
def test_fixed_point_is_soft_value_iterations(rates: Rates) -> None:
    """Without it each update could be as written and yet lead to another Q: on indicator vectors and whole sweeps both are to agree to 1e-6.

    A batch holds every (s, a) four times, with s' as often as its probability says: its mean is the backup's expectation.
    """
    world, rewards, problem = tables(0.5, quarters=4)
    exact = SoftValueIteration(tolerance=1e-10).solve(problem, ONE)
    assert exact.q is not None
    assert exact.value is not None
    states, choices = rewards.shape
    chances = torch.as_tensor(np.concatenate([world.transition_at(ONE).numpy(), np.zeros((states, choices, 1))], -1))
    chances[..., -1] = 1.0 - chances.sum(-1)
    s, a, following = torch.repeat_interleave(
        torch.cartesian_prod(*map(torch.arange, chances.shape)), (4 * chances).round().long().flatten(), 0
    ).T
    assert len(s) == 4 * states * choices
    eye = torch.eye(states + 1, states, dtype=torch.float64)  # an end looks like nothing
    going = (following < states).double()
    batch = DiscreteLabelled(eye[s], a, eye[following], going, torch.as_tensor(rewards)[s, a])

    network = MLP((states, 32, choices))
    setting = Setting(world.discount, 0.5, None, network)
    networks = ActorCritic.initial(setting, seeded(0), torch.device("cpu"))
    networks = ActorCritic(*(getattr(networks, field.name).double() for field in fields(networks)))
    learner = SoftQLearner(networks, setting, rates, batch_size=len(s))
    for sweep in range(3000):
        learner.learning_rate.fill_(rates.learning_rate * 0.05 ** (sweep / 3000))
        learner.update(batch)
    policy = SoftQPolicy(networks.critic, network, 0.5)
    torch.testing.assert_close(policy.action_values(eye[:-1]), exact.q, atol=1e-6, rtol=0)
    torch.testing.assert_close(policy.state_value(eye[:-1]), exact.value, atol=1e-6, rtol=0)
    torch.testing.assert_close(policy.probabilities(eye[:-1]), exact.policy, atol=1e-6, rtol=0)
    assert float(learner.residual(batch).abs().mean()) > 0.1, "single samples do differ from their expectation"


@pytest.mark.parametrize("stop", [0.0, 1.0], ids=["truncated", "terminated"])
def test_a_time_limit_is_no_end(stop: float) -> None:
    """Without it an episode of one step would be worth what it pays, though the task goes on for ever, or the other way round."""
    discount, temperature, pays = 0.5, 0.4, torch.tensor([0.3, -0.2])
    table = TabularWorld(np.full((1, 2, 1), 1.0 - stop), [1.0], discount, np.full((1, 2), stop))
    problem = BilevelProblem(Dressed(table, 1), Known(lambda _, actions: pays[actions]), Shannon(temperature), None)  # type: ignore[arg-type]
    solver = replace(SMALL, steps=800, num_envs=4, updates_per_step=0.5, learning_rate=1e-2, polyak=0.2)
    response = solver.solve(problem, torch.zeros(1), generator=seeded(0))
    one_step = temperature * float(torch.logsumexp(pays / temperature, 0))
    worth = one_step if stop else one_step / (1.0 - discount)
    assert float(response.policy.state_value(torch.ones(1, 1))) == pytest.approx(worth, abs=0.02)
    assert float(response.gap) < 0.02


def test_surrogate_is_that_of_the_exact_policy() -> None:
    """Without it ∇φ, which weighs L − E_πL by τ⁻¹, could be told of another π than the soft-optimal one that the follower plays."""
    x, problem = point(3), simulated(pairs=64)
    solver = SoftQ(
        steps=16_000, num_envs=16, update_every=4, updates_per_step=0.15, learning_starts=500, batch_size=256, hidden=(32,),
        learning_rate=5e-3, polyak=0.05, anneal_steps=16_000, final_learning_rate=1e-4,
    )  # fmt: skip
    oracle = ProblemOracle(problem, Planner(), seeded(1))
    exact = oracle.solve(x)
    learnt = solver.solve(problem, x, generator=seeded(0))
    seen = torch.eye(STATES)
    torch.testing.assert_close(learnt.policy.probabilities(seen).double(), exact.policy.table, atol=0.01, rtol=0)
    evaluation = oracle.evaluate(x, exact)
    estimator = ScoreFunction("critic", critic=IndicatorCritic(enumerated_critic(tabular(), x.double(), exact.policy.table)))
    wanted, found = (estimator(oracle, x, response, evaluation, estimator.init(oracle))[0].implicit for response in (exact, learnt))
    assert float((found - wanted).norm()) < 0.03 * float(wanted.norm())


# ------------------------------------------------------------------------------------------------- what it is used through


def test_policy_is_a_softmax_of_the_smaller_values() -> None:
    """Without it π, V and Q of a response would belong to different critics or temperatures, or move as the follower learns on."""
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    response = SMALL.solve(problem, x, generator=seeded(1))
    policy, states = response.policy, torch.randn(300, 4, generator=seeded(2))
    kept = policy.parameters.clone()
    assert torch.equal(kept, response.state.networks.critic)
    assert not torch.equal(kept, response.state.networks.target)
    values = torch.minimum(*(module(MLP((4, 8, 8, 2)), kept, 2, copy)(states).detach() for copy in range(2)))
    torch.testing.assert_close(policy.action_values(states), values)
    torch.testing.assert_close(policy.state_value(states), 0.1 * torch.logsumexp(values / 0.1, -1))
    torch.testing.assert_close(policy.probabilities(states), torch.softmax(values / 0.1, -1))
    torch.testing.assert_close(policy.log_prob(states, torch.ones(300).long()), torch.log_softmax(values / 0.1, -1)[:, 1])
    assert torch.equal(policy.mean(states), values.argmax(-1))
    drawn = policy.sample(states[:1].expand(4000, -1), seeded(4))
    assert float(drawn.double().mean()) == pytest.approx(float(policy.probabilities(states[:1])[0, 1]), abs=0.04)
    SMALL.solve(problem, x, warm=response, generator=seeded(3))
    assert torch.equal(policy.parameters, kept)
    assert not torch.equal(SMALL.solve(problem, x, warm=response, generator=seeded(3)).policy.parameters, kept)


def test_refuses_what_does_not_fit() -> None:
    """Without it a box of actions would fail with a shape, a tuned τ would leave π behind, and a warm start give critics to an actor."""
    with pytest.raises(InvalidProblem, match="keeps τ fixed"):
        SoftQ(target_entropy=0.5)
    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny", solver="soft_q")
    with pytest.raises(UnsupportedProblem, match=r"finitely many actions.*solvers\.SAC"):
        env.reset(seed=0)
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    actor_critic = DiscreteSAC(**{field.name: getattr(SMALL, field.name) for field in fields(SMALL)})
    for first, second in ((SMALL, actor_critic), (actor_critic, SMALL)):
        with pytest.raises(UnsupportedProblem, match="warm start"):
            second.solve(problem, x, warm=first.solve(problem, x, generator=seeded(0)), generator=seeded(1))


def test_a_name_stands_for_it() -> None:
    """Without it the only way to this follower would be an object, which a spec cannot hold, and a preset's sizes would be lost."""
    env = gym.make("bilevel/CartPolePreference-v0", preset="tiny", solver="soft_q")
    usual = gym.make("bilevel/CartPolePreference-v0", preset="tiny").unwrapped.solver
    assert env.unwrapped.solver == SoftQ(**{field.name: getattr(usual, field.name) for field in fields(usual)})
    assert gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).unwrapped.solver == env.unwrapped.solver
    assert gym.make("bilevel/CartPolePreference-v0", preset="tiny", solver="discrete_sac").unwrapped.solver == usual
    assert type(gym.make("bilevel/PendulumPreference-v0", preset="tiny", solver="sac").unwrapped.solver) is SAC
    copies = gym.make_vec("CartPole-v1", num_envs=3)
    assert wrap_env(copies, preset="tiny", objective="return", solver="soft_q").solver.num_envs == 3
    copies.close()
    with pytest.raises(UnknownName, match="choose one of: discrete_sac, sac, soft_q"):
        gym.make("bilevel/CartPolePreference-v0", preset="tiny", solver="dqn")


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        *(("sobirl", {"sensitivity": sensitivity}) for sensitivity in ("critic", "one_step", "rollout")),
        *((agent, {}) for agent in ("drlhf", "hpgd", "pbrl", "sac")),
        ("stoc_sobirl", {"correction": "importance"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_agents_take_it(agent: str, options: dict[str, Any]) -> None:
    """Without it an agent could look for the actor that this follower has not got."""
    few = {"updates_per_step": 2, "warmup_updates": 2, "batch": 4}
    env = gym.make(
        "bilevel/CartPolePreference-v0", preset="tiny", solver="soft_q", objective={"length": 5, "steps": 10, "held_out_pairs": 4}
    )
    env.reset(seed=0)
    before = env.unwrapped.x.clone()
    make_agent(agent, env, {**{key: few[key] for key in few if key in inspect.signature(RECIPES[agent]).parameters}, **options}).learn(2)
    assert env.unwrapped.counters.upper_step == (0 if agent == "sac" else 2)
    assert bool(env.unwrapped.x.isfinite().all())
    assert torch.equal(before, env.unwrapped.x) == (agent == "sac")
