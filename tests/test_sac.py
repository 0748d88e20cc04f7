"""Soft actor-critic: the update is the textbook's, and a solve does what the upper level relies on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bilevel_gym import checkpoint
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import split_flat
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward, MLPReward
from bilevel_gym.solvers import SAC, products
from bilevel_gym.solvers.actor_critic import GaussianLearner, Labelled
from bilevel_gym.solvers.architectures import MLP
from bilevel_gym.solvers.learner import ActorCritic, Rates, Setting
from bilevel_gym.solvers.networks import GaussianPolicy, gaussian, layer_shapes, log_density
from bilevel_gym.types import Budget, Response
from bilevel_gym.worlds import TabularWorld, VectorWorld
from tests.known import Known

SMALL = SAC(steps=40, num_envs=2, learning_starts=20, batch_size=16, hidden=(8, 8), capacity=500)


def swing_up(states: Tensor, actions: Tensor) -> Tensor:
    """A tenth of Pendulum's true reward."""
    angle = torch.atan2(states[..., 1], states[..., 0])
    return -0.1 * (angle**2 + 0.1 * states[..., 2] ** 2 + 0.001 * actions[..., 0] ** 2)


def pendulum(*, horizon: int = 10, discount: float = 0.95, reward: Any = None, temperature: float = 0.01) -> BilevelProblem:
    """Pendulum under a network's reward, or a given one."""
    world = VectorWorld("Pendulum-v1", discount, horizon=horizon)
    return BilevelProblem(world, MLPReward.for_world(world, hidden=(8,)) if reward is None else reward, Shannon(temperature), None)  # type: ignore[arg-type]


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ the update


class Textbook:
    """SAC as the papers write it: modules, one critic after the other, autograd, ``torch.optim.Adam``."""

    def __init__(self, networks: ActorCritic, setting: Setting, rates: Rates) -> None:
        self.setting, self.rates, self.count = setting, rates, 0
        self.actor = module(setting.actor.sizes, networks.actor, 1, 0)
        self.critics = [module(setting.critic.sizes, networks.critic, 2, copy) for copy in range(2)]
        self.targets = [module(setting.critic.sizes, networks.target, 2, copy) for copy in range(2)]
        self.log_temperature = networks.log_temperature.clone().requires_grad_()
        learning = (self.actor.parameters(), [p for critic in self.critics for p in critic.parameters()], [self.log_temperature])
        adams = (torch.optim.Adam(list(part), rates.learning_rate, eps=rates.adam_epsilon) for part in learning)
        self.actor_adam, self.critic_adam, self.temperature_adam = adams

    def act(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions with their log-densities."""
        mean, log_std = self.actor(states).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20.0, 2.0).exp())
        drive = normal.loc + normal.scale * noise
        squashing = torch.distributions.TanhTransform()
        actions = torch.tanh(drive)
        return actions, (normal.log_prob(drive) - squashing.log_abs_det_jacobian(drive, actions)).sum(-1)

    def update(self, batch: Labelled) -> None:
        """Critics, actor, temperature, targets."""
        tau = self.setting.temperature if self.setting.entropy is None else self.log_temperature.exp().detach()
        gamma = self.setting.discount
        with torch.no_grad():
            actions, density = self.act(batch.following, batch.noise[1])
            pairs = torch.cat([batch.following, actions], -1)
            ahead = torch.minimum(*(target(pairs).squeeze(-1) for target in self.targets)) - tau * density
            wanted = batch.rewards + gamma * batch.going * ahead
        pairs = torch.cat([batch.states, batch.actions], -1)
        loss = sum(0.5 * nn.functional.mse_loss(critic(pairs).squeeze(-1), wanted) for critic in self.critics)
        self.critic_adam.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        self.critic_adam.step()
        actions, density = self.act(batch.states, batch.noise[0])
        pairs = torch.cat([batch.states, actions], -1)
        loss = (tau * density - torch.minimum(*(critic(pairs).squeeze(-1) for critic in self.critics))).mean()
        self.actor_adam.zero_grad()
        loss.backward()
        self.actor_adam.step()
        if self.setting.entropy is not None:
            loss = -(self.log_temperature.exp() * (density.detach() + self.setting.entropy)).mean()
            self.temperature_adam.zero_grad()
            loss.backward()
            self.temperature_adam.step()
        self.count += 1
        if self.count % self.rates.target_every:
            return
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for parameter, slow in zip(critic.parameters(), target.parameters(), strict=True):
                    slow.mul_(1.0 - self.rates.polyak).add_(self.rates.polyak * parameter)


def module(sizes: tuple[int, ...], flat: Tensor, copies: int, copy: int) -> nn.Sequential:
    """The modules whose parameters are one copy out of a flat vector."""
    layers: list[nn.Module] = []
    parts = split_flat(flat, layer_shapes(sizes, copies))
    for weight, bias in zip(parts[::2], parts[1::2], strict=True):
        layer = nn.Linear(weight.shape[-2], weight.shape[-1])
        layer.weight.data, layer.bias.data = weight[copy].T.clone(), bias[copy, 0].clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("hidden", [(16, 16), (12,), (8, 9, 10)])
@pytest.mark.parametrize(("entropy", "rates"), [(None, Rates(3e-3, polyak=0.02)), (-2.0, Rates(3e-3, 1e-4, 1.0, 3))])
def test_update_is_the_textbooks(hidden: tuple[int, ...], entropy: float | None, rates: Rates) -> None:
    """Without it a slip in the gradients, which are written out, could still learn a little, and nobody would know."""
    setting = Setting(0.97, 0.3, MLP((5, *hidden, 4)), MLP((7, *hidden, 1)), entropy)
    generator, count = seeded(0), 32
    networks = ActorCritic.initial(setting, generator, torch.device("cpu"))
    # In float64: where a gradient is zero up to rounding, Adam makes a whole step of its sign.
    networks = ActorCritic(*(getattr(networks, field.name).double() for field in fields(networks)))
    # Half of log σ beyond either edge of its range, where the gradient is cut.
    raw = module(setting.actor.sizes, networks.actor, 1, 0)(torch.randn(200, 5, generator=generator).double()).detach()[:, 2:]
    networks.actor[-2:] += torch.tensor([2.0, -20.0]).double() - raw.median(0).values
    networks.target.add_(0.1 * torch.randn(networks.target.shape, generator=generator, dtype=torch.float64))
    plain = Textbook(networks, setting, rates)
    learner = GaussianLearner(networks, setting, rates, batch_size=count)
    for _ in range(4):
        states, actions, following, rewards, uniform = (
            torch.randn(count, size, generator=generator, dtype=torch.float64) for size in (5, 2, 5, 1, 1)
        )
        noise = torch.randn(2, count, 2, generator=generator, dtype=torch.float64)
        going = (uniform[:, 0] > -0.5).double()
        batch = Labelled(states, torch.tanh(actions), following, going, rewards[:, 0], noise)
        learner.update(batch)
        plain.update(batch)
        close(networks.actor, plain.actor, setting.actor.sizes, 1, 0)
        for copy in range(2):
            close(networks.critic, plain.critics[copy], setting.critic.sizes, 2, copy)
            close(networks.target, plain.targets[copy], setting.critic.sizes, 2, copy)
        torch.testing.assert_close(networks.log_temperature, plain.log_temperature.detach(), atol=1e-9, rtol=1e-9)


def test_update_in_float32_is_that_in_float64() -> None:
    """Without it the kernels that large float32 products go through could be wrong, since the textbook is followed in float64."""
    setting, count = Setting(0.97, 0.3, MLP((5, 256, 256, 4)), MLP((7, 256, 256, 1))), 256
    generator = seeded(0)
    single = ActorCritic.initial(setting, generator, torch.device("cpu"))
    for moments in (single.actor_moments, single.critic_moments):
        moments[1] = 1.0  # Adam remembers steep slopes: otherwise it makes a whole step of the sign of a rounding error
    single.clocks.fill_(10_000.0)
    double = ActorCritic(*(getattr(single, field.name).double() for field in fields(single)))
    states, actions, following, going, rewards = (torch.randn(count, *size, generator=generator) for size in ((5,), (2,), (5,), (), ()))
    batch = Labelled(states, torch.tanh(actions), following, going, rewards, torch.randn(2, count, 2, generator=generator))
    for networks in (single, double):
        learner = GaussianLearner(networks, setting, Rates(learning_rate=1.0, polyak=0.5), batch_size=count)
        learner.update(Labelled(*(column.to(networks.actor.dtype) for column in batch)))
    for field in fields(single):
        pair = (getattr(networks, field.name) for networks in (single, double))
        for mine, exact in zip(*(tensor.reshape(2 - len(tensor) % 2, -1) for tensor in pair), strict=True):
            assert float((mine - exact).norm()) <= 1e-5 * float(exact.norm()), field.name


@pytest.mark.parametrize(("copies", "rows", "inner", "columns"), [(1, 512, 256, 256), (2, 300, 260, 270), (2, 30, 7, 5)])
def test_quick_products_are_those_of_float32(copies: int, rows: int, inner: int, columns: int) -> None:
    """Without it the kernels that an update takes could round factors, or take one for its transpose, which square matrices hide."""
    generator = seeded(0)
    left, right, bias = (torch.randn(copies, *size, generator=generator) for size in ((inner, rows), (columns, inner), (1, columns)))
    out = torch.empty(copies, rows, columns)
    wanted = left.mT.double() @ right.mT.double()
    for factors in ((left.mT, right.mT), (left.mT.contiguous(), right.mT.contiguous())):
        with products.quick_products(out):
            assert torch.bmm(*factors, out=out) is out
            torch.testing.assert_close(out.double(), wanted, atol=1e-4, rtol=1e-5)
            torch.baddbmm(bias, *factors, out=out)
        torch.testing.assert_close(out.double(), wanted + bias.double(), atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no such switch")
@pytest.mark.parametrize("own", ["none", "ieee"])
def test_quick_products_leave_the_switch_as_it_was(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it an update, or one that fails, would let everything after it round to bfloat16 where a processor does."""
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    monkeypatch.setattr(products, "_exact", lambda: True)
    before = switch.fp32_precision
    switch.fp32_precision = own
    try:
        with suppress(KeyError), products.quick_products(torch.empty(0)):
            assert switch.fp32_precision == "bf16"
            raise KeyError
        assert switch.fp32_precision == own
        with products.quick_products(torch.empty(0, dtype=torch.float64)):
            assert switch.fp32_precision == own
        monkeypatch.setattr(products, "_exact", lambda: False)
        with products.quick_products(torch.empty(0)):
            assert switch.fp32_precision == own
    finally:
        switch.fp32_precision = before


def test_rounding_to_bfloat16_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it an update on a processor that multiplies bfloat16 faster would no more be one in float32."""

    @contextmanager
    def rounding() -> Iterator[None]:
        plain = Tensor.__matmul__
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "__matmul__", lambda left, right: plain(left.bfloat16().float(), right.bfloat16().float()))
            yield

    monkeypatch.setattr(products, "_onednn", rounding)
    assert not products._exact.__wrapped__()


def close(flat: Tensor, plain: nn.Sequential, sizes: tuple[int, ...], copies: int, copy: int) -> None:
    """Every parameter agrees."""
    ours = module(sizes, flat, copies, copy)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)


def test_log_density_is_that_of_the_squashed_gaussian() -> None:
    """Without it the entropy bonus could be off by a constant or a sign, and τ would mean something else than it says."""
    mean, log_std, noise = (0.5 * torch.randn(50, 3, generator=seeded(1), dtype=torch.float64) for _ in range(3))
    drive = mean + log_std.exp() * noise
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    torch.testing.assert_close(log_density(drive, log_std, noise), squashed.log_prob(torch.tanh(drive)).sum(-1))
    assert bool(log_density(torch.full((1, 1), 300.0), torch.zeros(1, 1), torch.zeros(1, 1)).isfinite().all())


def test_policy_is_a_squashed_gaussian_scaled_to_the_box() -> None:
    """Without it the follower could act by another network than the one that learns, or beside its box."""
    sizes, observations = (3, 8, 8, 4), 3.0 * torch.randn(50, 3, generator=seeded(0))
    flat = 3.0 * ActorCritic.initial(Setting(0.9, 0.1, MLP(sizes), MLP((5, 8, 1))), seeded(1), torch.device("cpu")).actor
    policy = GaussianPolicy(flat, sizes, torch.tensor([-3.0, 1.0]), torch.tensor([-1.0, 5.0]))
    mean, log_std = module(sizes, flat, 1, 0)(observations).detach().chunk(2, -1)
    drive = mean + log_std.clamp(-20.0, 2.0).exp() * torch.randn(50, 2, generator=seeded(2))
    for found, wanted in ((policy.sample(observations, seeded(2)), drive), (policy.mean(observations), mean)):
        torch.testing.assert_close(found, torch.tensor([-2.0, 3.0]) + torch.tensor([1.0, 2.0]) * torch.tanh(wanted), atol=1e-5, rtol=1e-5)
        assert bool(((found >= policy.low) & (found <= policy.high)).all())


def test_residual_vanishes_at_the_solution() -> None:
    """Without it the certificate could be small where the follower is far from its best response, or large where it is there."""
    setting = Setting(0.5, 0.1, MLP((1, 4, 2)), MLP((2, 4, 1)))
    networks = ActorCritic.initial(setting, seeded(2), torch.device("cpu"))
    for flat in (networks.critic, networks.target):
        flat.zero_()
        flat[-2:] = 7.0  # Q = 7 everywhere
    learner = GaussianLearner(networks, setting, Rates(learning_rate=0.0, polyak=1.0), batch_size=3)
    batch = Labelled(
        torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([0.0, 1.0, 1.0]), torch.full((3,), 7.0), torch.zeros(2, 3, 1)
    )
    residual = learner.residual(batch)
    mean, log_std = gaussian(module(setting.actor.sizes, networks.actor, 1, 0)(torch.zeros(1, 1)).detach())
    entropy_term = 0.5 * 0.1 * log_density(mean, log_std, torch.zeros(1, 1))
    torch.testing.assert_close(residual[:, 0], torch.zeros(2))
    torch.testing.assert_close(residual[:, 1], (-0.5 * 7.0 + entropy_term).expand(2))


# ------------------------------------------------------------------------------------------------------------- the solve


def test_learns_the_true_reward_of_pendulum() -> None:
    """Without it every part could be right and the whole still learn nothing."""
    problem = pendulum(horizon=200, reward=Known(swing_up))
    solver = SAC(
        steps=4000, num_envs=4, learning_starts=200, updates_per_step=0.5, hidden=(64, 64), learning_rate=3e-3, batch_size=128, polyak=0.01
    )
    response = solver.solve(problem, torch.zeros(1), generator=seeded(0))
    learnt, random = (
        problem.world.rollout(policy, trajectories=10, steps=200, generator=seeded(1)).rewards.sum(1).mean()  # type: ignore[union-attr]
        for policy in (response.policy, problem.world.uniform())  # type: ignore[attr-defined]
    )
    assert float(learnt) > float(random) + 350.0
    assert float(response.gap) < 0.3


@pytest.mark.parametrize("wanted", [-1.0, 0.8])
def test_temperature_is_tuned_towards_an_entropy(wanted: float) -> None:
    """Without it τ could run the wrong way, or the response belong to another τ than it says; uniform actions have log 2 = 0.69 nats."""
    problem = pendulum(temperature=0.1)
    response = replace(SMALL, learning_rate=1e-2, target_entropy=wanted).solve(
        problem, problem.reward.initial(seeded(0)), generator=seeded(1)
    )
    assert response.temperature is not None
    assert (response.temperature > 0.1) == (wanted > 0.0)
    assert float(response.state.networks.log_temperature.exp()) == pytest.approx(response.temperature)
    assert SMALL.solve(problem, problem.reward.initial(seeded(0)), generator=seeded(1)).temperature is None


def test_entropy_is_counted_for_each_number_of_an_action() -> None:
    """Without it −1 would mean something else on a robot of six joints than on one of one."""
    world = SimpleNamespace(observation_size=3, action_size=6, discount=0.9)
    problem = SimpleNamespace(world=world, regularizer=Shannon(0.1))
    assert replace(SMALL, target_entropy=-1.0)._setting(problem).entropy == -6.0


def test_start_is_uniform_and_has_no_certificate() -> None:
    """Without it the first observation of a deep problem would claim an answer that nobody has computed."""
    response = SMALL.start(pendulum())
    assert response.state is None
    assert response.gap == torch.inf
    drawn = response.policy.sample(torch.zeros(500, 3), seeded(0))
    assert float(drawn.min()) < -1.9
    assert float(drawn.max()) > 1.9


def test_counts_and_continues() -> None:
    """Without it environment steps would be misreported, or each solve would begin anew."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    first = SMALL.solve(problem, x, warm=SMALL.start(problem), generator=seeded(1))
    assert (first.env_steps, first.steps, first.state.env_steps, len(first.state.replay)) == (40, 22, 40, 40)
    again = SMALL.solve(problem, x, warm=first, generator=seeded(2))
    assert (again.env_steps, again.steps, again.state.env_steps, again.state.updates) == (40, 40, 80, 62)
    assert again.state.simulation is first.state.simulation
    assert isinstance(again.policy, GaussianPolicy)
    assert bool(again.gap.isfinite())
    assert not again.converged
    fewer = replace(SMALL, updates_per_step=0.25, update_every=3).solve(problem, x, warm=again, generator=seeded(3))
    assert fewer.steps == 9


def test_another_number_of_copies_starts_new_episodes() -> None:
    """Without it a warm start from two copies would be stepped as if it were four, or its moments be given to the wrong ones."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    assert warm.state.moment is not None
    for state in (warm.state, checkpoint.unpack(checkpoint.pack(warm.state))):
        wider = replace(SMALL, num_envs=4).solve(problem, x, warm=replace(warm, state=state), generator=seeded(2))
        assert len(wider.state.simulation.observations) == 4
        assert wider.state.replay.written - wider.env_steps == warm.env_steps
        warm = SMALL.solve(problem, x, generator=seeded(1))


def test_what_a_solve_leaves_due_is_made_by_the_next() -> None:
    """Without it solves that are shorter than the time between two updates would never learn, and say nothing of it."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    solver = replace(SMALL, updates_per_step=0.01, update_every=3, learning_starts=0)
    at_once, counts, warm = replace(solver, steps=240).solve(problem, x, generator=seeded(1)), [], None
    for _ in range(6):
        warm = solver.solve(problem, x, warm=warm, generator=seeded(1))
        warm = replace(warm, state=checkpoint.unpack(checkpoint.pack(warm.state)))
        counts.append(warm.steps)
    assert counts == [0, 0, 1, 0, 0, 1]
    assert at_once.steps == 2


def test_budget_limits_steps_and_updates() -> None:
    """Without it an oracle's cheap look at another x would cost a whole solve."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    limited = replace(SMALL, updates_per_step=3.0).solve(problem, x, warm=warm, budget=Budget(steps=11), generator=seeded(2))
    assert limited.env_steps == 10
    assert limited.steps == 11
    nothing = SMALL.solve(problem, x, warm=warm, budget=Budget(steps=0), generator=seeded(2))
    assert (nothing.env_steps, nothing.steps) == (0, 0)
    assert torch.equal(nothing.policy.parameters, warm.policy.parameters)


def test_same_generator_same_answer() -> None:
    """Without it a run could not be repeated: something would draw from a generator that nobody passed."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    torch.manual_seed(1)
    first = SMALL.solve(problem, x, generator=seeded(3))
    torch.manual_seed(2)
    second = SMALL.solve(problem, x, generator=seeded(3))
    assert torch.equal(first.policy.parameters, second.policy.parameters)
    assert torch.equal(first.state.replay.rows, second.state.replay.rows)
    assert first.gap == second.gap


def test_fork_shares_nothing() -> None:
    """Without it an estimator's look at another x would move the environment's own follower."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    before, transitions = warm.state.networks.clone(), len(warm.state.replay)
    forked = replace(warm, state=warm.state.fork())
    answers = [SMALL.solve(problem, -x, warm=replace(warm, state=forked.state.fork()), generator=seeded(4)) for _ in range(2)]
    assert torch.equal(answers[0].policy.parameters, answers[1].policy.parameters)
    assert len(warm.state.replay) == transitions
    assert all(torch.equal(getattr(before, name), getattr(warm.state.networks, name)) for name in ("actor", "critic", "target", "clocks"))


def test_state_survives_a_checkpoint() -> None:
    """Without it a resumed run would start its follower anew."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    restored: Response = checkpoint.unpack(checkpoint.pack(warm))
    assert restored.state.simulation is None
    forks = [SMALL.solve(problem, x, warm=replace(one, state=one.state.fork()), generator=seeded(2)) for one in (restored, warm)]
    assert torch.equal(*(fork.policy.parameters for fork in forks))
    there = SMALL.solve(problem, x, warm=restored, generator=seeded(2))
    here = SMALL.solve(problem, x, warm=warm, generator=seeded(2))
    played = [answer.state.replay.rows[: len(answer.state.replay)] for answer in (there, here)]
    assert torch.equal(*played), "the same episodes go on"
    assert torch.equal(there.policy.parameters, here.policy.parameters)
    assert torch.equal(there.policy.mean(torch.ones(1, 3)), here.policy.mean(torch.ones(1, 3)))


def test_interrupt_leaves_a_usable_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it Ctrl-C in a long solve would cost the whole run."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    before, env = warm.state.networks.clone(), warm.state.simulation.env.envs[1]
    calls, step = [0], env.step

    def interrupted(action: np.ndarray) -> Any:
        calls[0] += 1
        if calls[0] == 15:
            raise KeyboardInterrupt
        return step(action)

    monkeypatch.setattr(env, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SMALL.solve(problem, x, warm=warm, generator=seeded(2))
    assert torch.equal(before.actor, warm.state.networks.actor)
    assert torch.equal(before.critic_moments, warm.state.networks.critic_moments)
    after = SMALL.solve(problem, x, warm=warm, generator=seeded(3))
    assert after.state.simulation is not warm.state.simulation, "the copies are out of step, so new episodes must start"
    assert after.steps == 40


def test_time_limits_do_not_cut_the_bootstrap() -> None:
    """Without it the follower would believe that the world ends at the horizon, and its values would be those of another problem."""
    problem = pendulum(horizon=5)
    response = SMALL.solve(problem, problem.reward.initial(seeded(0)), generator=seeded(1))
    batch = response.state.replay.at(torch.arange(40))
    assert not bool(batch.terminated.any())
    pairs = zip(batch.states[2::2], batch.following[:-2:2], strict=True)
    continued = [torch.equal(state, following) for state, following in pairs]
    assert [index for index, same in enumerate(continued) if not same] == [4, 9, 14], "s' at the limit is the last observation"


def test_ends_cut_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the value of a state from which nothing follows would be that of going on."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    warm.state.replay.rows[:, -2] = 1.0  # every transition so far was an end
    batches: list[Labelled] = []
    monkeypatch.setattr(GaussianLearner, "update", lambda self, batch: batches.append(batch))
    SMALL.solve(problem, x, warm=warm, budget=Budget(steps=2), generator=seeded(2))
    going = torch.cat([batch.going for batch in batches])
    assert float(going.mean()) < 0.2
    assert set(going.tolist()) <= {0.0, 1.0}


def test_critics_read_actions_in_the_unit_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the critics would be fitted at other actions than those at which the actor asks them."""
    batches: list[Labelled] = []
    monkeypatch.setattr(GaussianLearner, "update", lambda self, batch: batches.append(batch))
    problem = pendulum()
    response = SMALL.solve(problem, problem.reward.initial(seeded(0)), generator=seeded(1))
    kept = response.state.replay.at(torch.arange(40)).actions
    widest = max(float(batch.actions.abs().max()) for batch in batches)
    assert widest == pytest.approx(float(kept.abs().max()) / 2.0)
    assert widest > 0.8


def test_labels_follow_x() -> None:
    """Without it the follower would learn from rewards of an x that has changed since."""
    problem = pendulum()
    generator = seeded(0)
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(MLPReward):
        """Remembers what it was asked."""

        def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
            """Scores, and remembers."""
            seen.append((x, actions))
            return super().along(x, states, actions)

    problem = replace(problem, reward=Spy(3, 1, hidden=(8,), action_low=torch.tensor([-2.0]), action_high=torch.tensor([2.0])))
    first, second = (problem.reward.initial(generator) for _ in range(2))
    warm = SMALL.solve(problem, first, generator=generator)
    seen.clear()
    SMALL.solve(problem, second.requires_grad_(), warm=warm, generator=generator)
    assert len(seen) == 41
    assert all(torch.equal(x, second.detach()) and not x.requires_grad for x, _ in seen)
    assert max(float(actions.abs().max()) for _, actions in seen) > 1.5, "rewards read actions in the environment's units"


def test_policy_is_a_frozen_snapshot_in_the_units_of_the_box() -> None:
    """Without it learning on would change a response that was already returned, or a rollout would play scaled actions."""
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    parameters, states = warm.policy.parameters.clone(), torch.randn(400, 3, generator=seeded(2))
    SMALL.solve(problem, x, warm=warm, generator=seeded(3))
    assert torch.equal(parameters, warm.policy.parameters)
    assert parameters.data_ptr() != warm.state.networks.actor.data_ptr() != warm.policy.parameters.data_ptr()
    plain = module((3, 8, 8, 2), parameters, 1, 0)(states).detach()
    torch.testing.assert_close(warm.policy.mean(states), 2.0 * torch.tanh(plain[:, :1]))
    drawn = warm.policy.sample(states, seeded(4))
    noise = torch.randn(400, 1, generator=seeded(4))
    torch.testing.assert_close(drawn, 2.0 * torch.tanh(plain[:, :1] + plain[:, 1:].exp() * noise))


def test_refuses_what_does_not_fit() -> None:
    """Without it a wrong problem would fail with an attribute error, or be solved as if it were another one."""
    table = TabularWorld(np.full((2, 2, 2), 0.5), [0.5, 0.5], 0.9)
    tabular = BilevelProblem(table, LinearReward(np.eye(4).reshape(2, 2, 4)), Shannon(0.1), None)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedProblem, match="SoftPolicyIteration"):
        SMALL.start(tabular)
    other = replace(pendulum(), regularizer=Known(swing_up))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedProblem, match="Shannon"):
        SMALL.solve(other, torch.zeros(1), generator=seeded(0))
    problem = pendulum()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, budget=Budget(steps=2), generator=seeded(1))
    with pytest.raises(UnsupportedProblem, match="warm start"):
        replace(SMALL, hidden=(9, 9)).solve(problem, x, warm=warm, generator=seeded(1))
    for wrong in ({"steps": 0}, {"steps": 1, "num_envs": 2}, {"polyak": 0.0}, {"updates_per_step": -1.0}, {"adam_epsilon": inf}):
        with pytest.raises(InvalidProblem):
            SAC(**wrong)
    for name in ("learning_rate", "final_learning_rate", "updates_per_step"):
        with pytest.raises(InvalidProblem, match=f"{name} is inf: it must be finite"):
            SAC(**{name: inf})
    for hidden in ((), 64, "64", (8.5,), (8, 0)):
        with pytest.raises(InvalidProblem, match="at least one layer"):
            SAC(hidden=hidden)  # type: ignore[arg-type]
