"""Soft actor-critic with finitely many actions: the update is the textbook's, and the solve finds the soft-optimal policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bilevel_gym import checkpoint
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import draw_categorical
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon, Tsallis
from bilevel_gym.rewards import DiscreteMLPReward, LinearReward
from bilevel_gym.solvers import SAC, DiscreteSAC, SoftPolicyIteration, SoftQ
from bilevel_gym.solvers.architectures import CNN, MLP, Architecture, architecture_for
from bilevel_gym.solvers.convolutions import NATURE
from bilevel_gym.solvers.discrete_actor_critic import DiscreteLearner
from bilevel_gym.solvers.finite_actions import DiscreteLabelled
from bilevel_gym.solvers.frame_replay import FrameReplay
from bilevel_gym.solvers.learner import ActorCritic, Learner, Rates, Setting
from bilevel_gym.types import Budget, Response
from bilevel_gym.worlds import TabularWorld, Transition, UniformChoice, VectorWorld
from tests.known import Known

SMALL = DiscreteSAC(steps=40, num_envs=2, learning_starts=20, batch_size=16, hidden=(8, 8), capacity=500)
SMALL_Q = SoftQ(**{field.name: getattr(SMALL, field.name) for field in fields(SMALL)})
PICTURES = CNN((4, 36, 44), (16,), 3)


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ the update


class Divided(nn.Module):
    """Pixels as numbers in [0, 1]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Division."""
        return pixels / 255.0


def module(architecture: Architecture, flat: Tensor, copies: int, copy: int) -> nn.Sequential:
    """torch's own modules with one copy of the parameters out of a flat vector, in torch's layout."""
    parts = [part[copy] for part in architecture.passes(copies, 1, flat).views(flat)]
    layers: list[nn.Module] = []
    if isinstance(architecture, CNN):
        layers.append(Divided())
        for layer in NATURE:
            kernel, bias = parts.pop(0), parts.pop(0)
            convolution = nn.Conv2d(kernel.shape[3], layer.channels, layer.kernel, layer.stride)
            convolution.weight.data, convolution.bias.data = kernel.permute(0, 3, 1, 2).clone(), bias.clone()
            layers += [convolution, nn.ReLU()]
        layers.append(nn.Flatten())
        sides = [36, 44]
        for layer in NATURE:
            sides = [(side - layer.kernel) // layer.stride + 1 for side in sides]
        parts[0] = parts[0].view(*sides, NATURE[-1].channels, -1).permute(2, 0, 1, 3).flatten(0, 2)  # features in torch's order
    while parts:
        weight, bias = parts.pop(0), parts.pop(0)
        linear = nn.Linear(*weight.shape)
        linear.weight.data, linear.bias.data = weight.T.clone(), bias[0].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(flat.dtype)


@torch.no_grad()
def follow(targets: list[nn.Sequential], critics: list[nn.Sequential], polyak: float) -> None:
    """Move modules towards others."""
    for critic, target in zip(critics, targets, strict=True):
        for parameter, slow in zip(critic.parameters(), target.parameters(), strict=True):
            slow.copy_((1.0 - polyak) * slow + polyak * parameter)


class Textbook:
    """Discrete SAC as CleanRL writes it: modules, separate passes, autograd, ``torch.optim.Adam``; its losses of critics are halved."""

    def __init__(self, networks: ActorCritic, setting: Setting, rates: Rates) -> None:
        self.setting, self.rates, self.count = setting, rates, 0
        self.actor = module(setting.actor, networks.actor, 1, 0)
        self.critics = [module(setting.critic, networks.critic, 2, copy) for copy in range(2)]
        self.targets = [module(setting.critic, networks.target, 2, copy) for copy in range(2)]
        self.log_temperature = networks.log_temperature.clone().requires_grad_()
        learning = [self.actor.parameters(), [p for critic in self.critics for p in critic.parameters()], [self.log_temperature]]
        self.adams = [torch.optim.Adam(list(part), rates.learning_rate, eps=rates.adam_epsilon) for part in learning]

    def step(self, which: int, loss: Tensor) -> None:
        """One step down a loss."""
        self.adams[which].zero_grad()
        loss.backward()
        self.adams[which].step()

    def update(self, batch: DiscreteLabelled) -> None:
        """Critics, actor, temperature, targets."""
        tuned = self.setting.entropy is not None
        tau = self.log_temperature.exp().detach() if tuned else self.setting.temperature
        dtype = self.log_temperature.dtype
        states, following = batch.states.to(dtype), batch.following.to(dtype)
        losses = []
        for critic in self.critics:
            errors = []
            for i in range(len(states)):
                with torch.no_grad():
                    chances = torch.softmax(self.actor(following[i : i + 1])[0], 0)
                    values = [target(following[i : i + 1])[0] for target in self.targets]
                    ahead = sum(p * (torch.minimum(*values)[a] - tau * torch.log(p)) for a, p in enumerate(chances))
                    wanted = batch.rewards[i] + batch.going[i] * self.setting.discount * ahead
                errors.append((critic(states[i : i + 1])[0, batch.actions[i]] - wanted) ** 2)
            losses.append(0.5 * torch.stack(errors).mean())
        self.step(1, losses[0] + losses[1])

        distribution = torch.distributions.Categorical(logits=self.actor(states))
        with torch.no_grad():
            lowest = torch.minimum(*(critic(states) for critic in self.critics))
        costs = (distribution.probs * (tau * torch.log_softmax(distribution.logits, -1) - lowest)).sum(1)
        self.step(0, costs.mean())
        if self.setting.entropy is not None:
            self.step(2, (self.log_temperature.exp() * (distribution.entropy().detach() - self.setting.entropy)).mean())
        self.count += 1
        if self.count % self.rates.target_every == 0:
            follow(self.targets, self.critics, self.rates.polyak)


def example(architecture: Architecture, count: int, choices: int, dtype: torch.dtype, generator: torch.Generator) -> DiscreteLabelled:
    """A random batch in which some transitions are ends."""
    shape = architecture.shape if isinstance(architecture, CNN) else architecture.sizes[:1]  # type: ignore[attr-defined]
    if isinstance(architecture, CNN):
        states, following = (torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8) for _ in range(2))
    else:
        states, following = (torch.randn(count, *shape, generator=generator, dtype=dtype) for _ in range(2))
    going = (torch.rand(count, generator=generator) < 0.7).to(dtype)
    actions = torch.randint(choices, (count,), generator=generator)
    return DiscreteLabelled(states, actions, following, going, torch.randn(count, generator=generator, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", [MLP((5, 16, 12, 3)), MLP((5, 16, 3)), PICTURES], ids=["mlp", "shallow", "cnn"])
@pytest.mark.parametrize(("entropy", "rates"), [(None, Rates(3e-3, 1e-3, 0.02)), (0.8 * log(3), Rates(3e-3, 1e-3, 1.0, 2))])
def test_update_is_the_textbooks(architecture: Architecture, dtype: torch.dtype, entropy: float | None, rates: Rates) -> None:
    """Without it a slip in the gradients, which are written out, could still learn a little, and nobody would know."""
    generator, count = seeded(0), 10
    setting = Setting(0.97, 0.3, architecture, architecture, entropy)
    networks = ActorCritic.initial(setting, generator, torch.device("cpu"))
    networks = ActorCritic(*(getattr(networks, field.name).to(dtype) for field in fields(networks)))
    networks.target.add_(0.05 * torch.randn(networks.target.shape, generator=generator).to(dtype))
    plain, learner = Textbook(networks, setting, rates), DiscreteLearner(networks, setting, rates, batch_size=count)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-9, "rtol": 1e-9}
    for _ in range(3):
        batch = example(architecture, count, 3, dtype, generator)
        learner.update(batch)
        plain.update(batch)
        pairs = [(module(architecture, networks.actor, 1, 0), plain.actor)]
        pairs += [(module(architecture, networks.critic, 2, copy), plain.critics[copy]) for copy in range(2)]
        pairs += [(module(architecture, networks.target, 2, copy), plain.targets[copy]) for copy in range(2)]
        for mine, theirs in pairs:
            for part, whole in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(part, whole, **tolerance)
        torch.testing.assert_close(networks.log_temperature, plain.log_temperature.detach(), **tolerance)


@pytest.mark.parametrize("architecture", [MLP((5, 16, 12, 3)), PICTURES], ids=["mlp", "cnn"])
def test_gradients_are_autograds(architecture: Architecture) -> None:
    """Without it an error that Adam hides (a factor, a bias that never moves) would pass the test of the update."""
    generator = seeded(3)
    flat = torch.cat([architecture.initial(2, generator, torch.device("cpu"))]).double()
    passes = architecture.passes(2, 7, flat)
    batch = example(architecture, 7, 3, torch.float64, generator)
    cotangent = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)  # of the first four outputs
    gradient = torch.full_like(flat, torch.nan)
    outputs = passes.forward(passes.views(flat), architecture.inputs(batch.states, flat))
    for copy in range(2):
        torch.testing.assert_close(outputs[copy], module(architecture, flat, 2, copy)(batch.states.double()))
        single = torch.cat([part[copy].flatten() for part in passes.views(flat)])
        torch.testing.assert_close(outputs[copy], architecture.outputs(single, batch.states)[0])
        torch.testing.assert_close(outputs[copy], architecture.outputs(flat, batch.states, 2)[copy])
    passes.backward(passes.views(flat), cotangent, passes.views(gradient))
    for copy in range(2):
        plain = module(architecture, flat, 2, copy)
        (plain(batch.states.double())[:4] * cotangent[copy]).sum().backward()
        slots = module(architecture, gradient, 2, copy)
        for mine, theirs in zip(slots.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.detach(), theirs.grad)


def test_pixels_are_divided_once() -> None:
    """Without it pictures would be divided twice, or never, on one of the paths, and nothing but the learning would show it."""
    white = torch.full((2, 4, 36, 44), 255, dtype=torch.uint8)
    like = torch.zeros(1)
    assert torch.equal(PICTURES.inputs(white, like), torch.ones(2, 4, 36, 44))
    one = architecture_for((4, 84, 84), (512,), 6)
    assert one.numel() == 4 * 64 * 32 + 32 + 32 * 16 * 64 + 64 + 64 * 9 * 64 + 64 + 3136 * 512 + 512 + 512 * 6 + 6


# ------------------------------------------------------------------------------------------------------------- the worlds


class Indicators:
    """A table played in parallel, seen as indicator vectors; an episode is cut after ``horizon`` steps."""

    ready = True

    def __init__(self, world: TabularWorld, count: int, horizon: int, seed: int) -> None:
        self.world, self.horizon, self.generator = world, horizon, seeded(seed)
        self.eye = torch.eye(world.states)
        self.state, self.age = self.draw(world.start.float().expand(count, -1)), torch.zeros(count)

    def draw(self, chances: Tensor) -> Tensor:
        """Numbers of states."""
        return draw_categorical(chances, self.generator)

    @property
    def observations(self) -> Tensor:
        """[N, S]."""
        return self.eye[self.state]

    def step(self, actions: Tensor) -> Transition:
        """One step of all."""
        chances = self.world.transition_at(torch.zeros(1))[self.state, actions].float()
        terminated = torch.rand(len(actions), generator=self.generator) > chances.sum(-1)
        following = self.draw(chances)
        self.age += 1
        truncated = (self.age >= self.horizon) & ~terminated
        ended = terminated | truncated
        self.state = torch.where(ended, self.draw(self.world.start.float().expand(len(actions), -1)), following)
        self.age[ended] = 0
        return Transition(self.eye[following], torch.zeros(len(actions)), terminated, truncated)


@dataclass(frozen=True)
class Dressed:
    """A table as a simulated world."""

    world: TabularWorld
    horizon: int
    device = torch.device("cpu")

    @property
    def discount(self) -> float:
        """γ."""
        return self.world.discount

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """[S]."""
        return (self.world.states,)

    @property
    def action_count(self) -> int:
        """A."""
        return self.world.actions

    def uniform(self) -> UniformChoice:
        """1/A."""
        return UniformChoice(self.world.actions)

    def open(self, count: int, seed: int) -> Indicators:
        """Live copies."""
        return Indicators(self.world, count, self.horizon, seed)


class Screens:
    """Pictures of a bright bar which the actions move, in stacks that begin with black frames."""

    ready = True
    shape = (4, 36, 36)

    def __init__(self, count: int, seed: int, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        self.place = torch.randint(0, 30, (count,), generator=seeded(seed)).to(device)
        self.stack = torch.zeros(count, *self.shape, dtype=torch.uint8, device=device)
        self.age = 0
        self.show()

    def show(self) -> None:
        """The next frame."""
        frames = torch.zeros_like(self.stack[:, 0])
        for copy, place in enumerate(self.place.tolist()):
            frames[copy, :, place : place + 6] = 200
        self.stack = torch.cat([self.stack[:, 1:], frames[:, None]], 1)

    @property
    def observations(self) -> Tensor:
        """[N, 4, 36, 36] uint8."""
        return self.stack

    def step(self, actions: Tensor) -> Transition:
        """Left, stay or right; every seventh step is the last."""
        self.place = (self.place + 3 * (actions - 1)).clamp(0, 30)
        self.show()
        self.age += 1
        following, ended = self.stack, torch.full_like(actions, self.age % 7 == 0, dtype=torch.bool)
        if bool(ended.all()):
            self.stack = torch.zeros_like(self.stack)
            self.show()
        return Transition(following, torch.zeros(len(actions), device=actions.device), torch.zeros_like(ended), ended)


@dataclass(frozen=True)
class ScreenWorld:
    """A world of pictures."""

    device: torch.device = torch.device("cpu")
    discount = 0.8
    observation_shape = Screens.shape
    action_count = 3

    def uniform(self) -> UniformChoice:
        """1/3."""
        return UniformChoice(3)

    def open(self, count: int, seed: int) -> Screens:
        """Live copies."""
        return Screens(count, seed, self.device)


@dataclass(frozen=True)
class Brightness(Known):
    """Pays for brightness on the right."""

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Of the newest frame."""
        assert states.dtype == torch.uint8
        newest = states[..., -1, 0, :].float() / 255.0
        return (newest * torch.linspace(-1.0, 1.0, 36, device=newest.device)).sum(-1) / 6.0


def cartpole(**options: Any) -> BilevelProblem:
    """CartPole under a network's reward."""
    world = VectorWorld("CartPole-v1", 0.95, horizon=10, **options)
    return BilevelProblem(world, DiscreteMLPReward.for_world(world, hidden=(8,)), Shannon(0.1), None)  # type: ignore[arg-type]


def screens(temperature: float = 0.1) -> BilevelProblem:
    """Pictures, and a reward for them."""
    return BilevelProblem(ScreenWorld(), Brightness(torch.zeros(1)), Shannon(temperature), None)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- the solve


@pytest.mark.parametrize(("kind", "target_entropy"), [(DiscreteSAC, None), (DiscreteSAC, 0.7), (SoftQ, None)])
def test_finds_the_soft_optimal_policy(kind: type[DiscreteSAC | SoftQ], target_entropy: float | None) -> None:
    """Without it every part could be right and the whole learn another problem: the entropy's weight, an end, a time limit."""
    rng = np.random.default_rng(4)
    states, choices = 6, 3
    stop = rng.uniform(0.0, 0.3, (states, choices))
    table = TabularWorld(
        rng.dirichlet(np.full(states, 0.5), (states, choices)) * (1 - stop)[..., None], rng.dirichlet(np.ones(states)), 0.9, stop
    )
    rewards = rng.standard_normal((states, choices))
    temperature = 0.5
    entries = torch.as_tensor(rewards).float()  # of states, whose indicators are the observations, and actions
    known = Known(lambda states, actions: entries[states.argmax(-1), actions])
    problem = BilevelProblem(Dressed(table, 12), known, Shannon(temperature), None)  # type: ignore[arg-type]
    solver = kind(
        steps=12_000, num_envs=32, update_every=4, updates_per_step=0.1, learning_starts=1000, batch_size=256, hidden=(64,),
        learning_rate=3e-3, polyak=0.02, anneal_steps=12_000, final_learning_rate=1e-4, target_entropy=target_entropy,
    )  # fmt: skip
    response = solver.solve(problem, torch.zeros(1), generator=seeded(0))
    learnt = response.policy.probabilities(torch.eye(states)).double()
    if target_entropy is not None:
        assert response.temperature is not None
        temperature = response.temperature
        entropy = -(learnt * learnt.log()).sum(-1)
        assert abs(float(entropy.mean()) / log(choices) - target_entropy) < 0.1
        assert abs(temperature - 0.5) > 0.1

    def distance(tau: float) -> float:
        """Total variation from the best policy, in the worst state."""
        exact = BilevelProblem(table, LinearReward(rewards[..., None]), Shannon(tau), None)  # type: ignore[arg-type]
        best = SoftPolicyIteration(tolerance=1e-10).solve(exact, torch.ones(1, dtype=torch.float64))
        return float(0.5 * (learnt - best.policy).abs().sum(-1).max())

    assert distance(temperature) < 0.06
    assert min(distance(1.3 * temperature), distance(temperature / 1.3)) > 0.08, "the test tells a wrong temperature from the right one"


@pytest.mark.parametrize(("kind", "steps"), [(DiscreteSAC, 400), (SoftQ, 800)])
def test_learns_from_pictures(kind: type[DiscreteSAC | SoftQ], steps: int) -> None:
    """Without it the convolutions, the frames and the loop could each be right and not fit together."""
    problem = screens()
    solver = kind(
        steps=steps, num_envs=8, updates_per_step=0.25, learning_starts=80, batch_size=32, hidden=(32,), learning_rate=1e-3, polyak=0.05
    )
    response = solver.solve(problem, torch.zeros(1), generator=seeded(0))
    play = Screens(16, 3)
    for _ in range(6):
        last = play.step(response.policy.sample(play.observations, seeded(7))).following
    learnt = float(problem.reward.along(torch.zeros(1), last, torch.zeros(16)).mean())
    chances = response.policy.probabilities(Screens(16, 5).observations)
    assert float(chances[:, 2].mean()) > 0.7, "right is where it is paid"
    assert learnt > 0.4
    assert response.state.replay.frames_written < 1.5 * len(response.state.replay)


def test_a_replay_that_forgets_does_not_keep_it_from_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it episodes so short that their starts crowd the frames out would leave the follower at random actions for ever."""
    monkeypatch.setattr(FrameReplay, "__len__", lambda self: min(self.written, 10))
    solver = DiscreteSAC(steps=24, num_envs=8, learning_starts=16, batch_size=4, hidden=(4,), capacity=16)
    assert solver.solve(screens(), torch.zeros(1), generator=seeded(0)).steps == 16


def test_start_is_uniform_and_has_no_certificate() -> None:
    """Without it the first observation of a deep problem would claim an answer that nobody has computed."""
    response = SMALL.start(cartpole())
    assert response.state is None
    assert response.gap == torch.inf
    assert torch.equal(response.policy.sample(torch.zeros(500, 4), seeded(0)).unique(), torch.arange(2))


def test_policy_is_a_frozen_snapshot() -> None:
    """Without it learning on would change a response that was already returned, or the numbers of an action would disagree."""
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, generator=seeded(1))
    parameters, states = warm.policy.parameters.clone(), torch.randn(400, 4, generator=seeded(2))
    SMALL.solve(problem, x, warm=warm, generator=seeded(3))
    assert torch.equal(parameters, warm.policy.parameters)
    assert parameters.data_ptr() != warm.state.networks.actor.data_ptr() != warm.policy.parameters.data_ptr()
    scores = module(MLP((4, 8, 8, 2)), parameters, 1, 0)(states).detach()
    torch.testing.assert_close(warm.policy.probabilities(states), torch.softmax(scores, -1))
    assert torch.equal(warm.policy.mean(states), scores.argmax(-1))
    drawn = warm.policy.sample(states[:1].expand(4000, -1), seeded(4))
    assert drawn.dtype == torch.int64
    assert float(drawn.double().mean()) == pytest.approx(float(warm.policy.probabilities(states[:1])[0, 1]), abs=0.04)
    torch.testing.assert_close(warm.policy.log_prob(states, drawn[:400]), torch.log_softmax(scores, -1)[torch.arange(400), drawn[:400]])
    actions, weights = problem.world.quadrature(warm.policy, states, 1, seeded(5))
    torch.testing.assert_close(weights.mT, warm.policy.probabilities(states))
    assert actions.shape == (2, 400)


@pytest.mark.parametrize("small", [SMALL, SMALL_Q], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("make", [cartpole, screens])
def test_state_survives_a_checkpoint_and_a_fork(make: Callable[[], BilevelProblem], small: DiscreteSAC | SoftQ) -> None:
    """Without it a resumed run would start its follower anew, or an estimator's look at another x would move the environment's own."""
    problem = make()
    x = problem.reward.initial(seeded(0))
    warm = small.solve(problem, x, generator=seeded(1))
    before, transitions = warm.state.networks.clone(), len(warm.state.replay)
    restored: Response = checkpoint.unpack(checkpoint.pack(warm))
    assert restored.state.simulation is None
    forks = [small.solve(problem, x, warm=replace(one, state=one.state.fork()), generator=seeded(2)) for one in (restored, warm)]
    assert torch.equal(*(fork.policy.parameters for fork in forks))
    assert len(forks[0].state.replay) == transitions + 40
    assert len(warm.state.replay) == transitions
    there = small.solve(problem, x, warm=restored, generator=seeded(2))
    here = small.solve(problem, x, warm=warm, generator=seeded(2))
    kept = small.lost(problem, restored) is None
    assert kept == (make is cartpole), "nobody knows how to keep a moment of the screens"
    assert torch.equal(there.policy.parameters, here.policy.parameters) == kept
    assert all(torch.equal(getattr(before, field.name), getattr(warm.state.networks, field.name)) for field in fields(before))


@pytest.mark.parametrize("small", [SMALL, SMALL_Q], ids=lambda solver: type(solver).__name__)
def test_schedule_and_targets_go_on_across_solves(small: DiscreteSAC | SoftQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the learning rate would jump back at each upper step, and hard targets be copied at other times than asked for."""
    rates: list[float] = []
    update = Learner.update

    def watched(self: Learner[Any, Any], batch: DiscreteLabelled) -> None:
        before = self.networks.target.clone()
        update(self, batch)
        rates.append(float(self.learning_rate))
        moved = not torch.equal(before, self.networks.target)
        assert moved == (len(rates) % 25 == 0)
        assert not moved or torch.equal(self.networks.target, self.networks.critic)

    monkeypatch.setattr(Learner, "update", watched)
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    solver = replace(small, polyak=1.0, target_every=25, learning_rate=1e-3, anneal_steps=80, final_learning_rate=2e-4)
    response = solver.solve(problem, x, generator=seeded(1))
    response = solver.solve(problem, x, warm=response, generator=seeded(2))
    solver.solve(problem, x, warm=response, generator=seeded(3))
    assert response.state.updates == 62
    assert rates[21] == pytest.approx(6e-4)
    assert rates[22] == pytest.approx(1e-3 - 0.8e-3 * 42 / 80)
    assert rates[61] == rates[-1] == pytest.approx(2e-4)


def test_temperature_goes_on_across_solves() -> None:
    """Without it τ would start anew at each upper step, or a fixed one would move."""
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    assert SMALL.solve(problem, x, generator=seeded(1)).temperature is None
    solver = replace(SMALL, target_entropy=0.5, learning_rate=1e-2)
    first = solver.solve(problem, x, generator=seeded(1))
    assert first.temperature is not None
    assert first.temperature < 0.1, "a policy that is nearly uniform has too much entropy"
    still = replace(solver, learning_rate=0.0).solve(problem, x, warm=first, generator=seeded(2))
    assert still.temperature == first.temperature
    assert float(first.state.networks.log_temperature.exp()) == pytest.approx(first.temperature)


@pytest.mark.parametrize("small", [SMALL, SMALL_Q], ids=lambda solver: type(solver).__name__)
def test_a_reward_that_is_not_a_number_is_refused(small: DiscreteSAC | SoftQ) -> None:
    """Without it a NaN would go from x into every weight, and the run go on as if it learnt."""
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    warm = small.solve(problem, x, generator=seeded(1))
    before = warm.state.networks.clone()
    with pytest.raises(InvalidProblem, match="not finite"):
        small.solve(problem, x * torch.nan, warm=warm, generator=seeded(2))
    assert all(torch.equal(getattr(before, field.name), getattr(warm.state.networks, field.name)) for field in fields(before))
    assert bool(small.solve(problem, x, warm=warm, generator=seeded(2)).gap.isfinite())


def test_refuses_what_does_not_fit() -> None:
    """Without it a wrong problem would fail with an attribute error, or be solved as if it were another one."""
    table = TabularWorld(np.full((2, 2, 2), 0.5), [0.5, 0.5], 0.9)
    tabular = BilevelProblem(table, LinearReward(np.eye(4).reshape(2, 2, 4)), Shannon(0.1), None)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedProblem, match="SoftPolicyIteration"):
        SMALL.start(tabular)
    continuous = VectorWorld("Pendulum-v1", 0.9, horizon=5)
    with pytest.raises(UnsupportedProblem, match=r"finitely many actions.*solvers\.SAC"):
        SMALL.start(replace(cartpole(), world=continuous))
    with pytest.raises(UnsupportedProblem, match=r"solvers\.DiscreteSAC"):
        SAC().start(cartpole())
    with pytest.raises(UnsupportedProblem, match="Shannon"):
        SMALL.start(cartpole().under(Tsallis(0.1)))
    problem = cartpole()
    x = problem.reward.initial(seeded(0))
    warm = SMALL.solve(problem, x, budget=Budget(steps=2), generator=seeded(1))
    with pytest.raises(UnsupportedProblem, match="warm start"):
        replace(SMALL, hidden=(9, 9)).solve(problem, x, warm=warm, generator=seeded(1))
    with pytest.raises(UnsupportedProblem, match="36 pixels"):
        architecture_for((4, 30, 30), (8,), 2)
    for wrong in ({"target_entropy": 1.0}, {"target_every": 0}, {"adam_epsilon": 0.0}, {"anneal_steps": 0}, {"final_learning_rate": -1.0}):
        with pytest.raises(InvalidProblem):
            DiscreteSAC(**wrong)
