"""Reward networks with one output an action: r_x(s, ·) by one forward pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.sensitivities import Point, one_step
from bilevel_gym.rewards import DiscreteMLPReward
from bilevel_gym.types import AllActions, RewardModel, Samples, Trajectory


@pytest.fixture
def reward() -> DiscreteMLPReward:
    """A small network for three actions."""
    return DiscreteMLPReward(4, 3, hidden=(8, 5), scale=2.0)


def pairs(*leading: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random states and numbers of actions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, 4, generator=generator), torch.randint(3, leading, generator=generator)


def test_is_the_textbook_network(reward: DiscreteMLPReward) -> None:
    """Without it the layout of x, or which output is which action's, could be wrong unnoticed."""
    x = reward.initial(torch.Generator().manual_seed(1))
    plain = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.01), nn.Linear(8, 5), nn.LeakyReLU(0.01), nn.Linear(5, 3), nn.Tanh())
    nn.utils.vector_to_parameters(x, plain.parameters())
    states, actions = pairs(4, 7)
    expected = 2.0 * plain(states)
    torch.testing.assert_close(reward.all_actions(x, states), expected)
    picked = torch.stack([expected[i, j, actions[i, j]] for i in range(4) for j in range(7)]).view(4, 7)
    torch.testing.assert_close(reward.along(x, states, actions), picked)


def test_gradient_against_finite_differences(reward: DiscreteMLPReward) -> None:
    """Without it ∇r, which every hyper-gradient is made of, could be wrong."""
    x = reward.initial(torch.Generator().manual_seed(2)).double()
    states, actions = pairs(6)
    assert torch.autograd.gradcheck(lambda x: reward.along(x, states.double(), actions), x.requires_grad_())


@pytest.mark.parametrize("shared", [False, True])
def test_population_agrees_with_each_member(reward: DiscreteMLPReward, shared: bool) -> None:
    """Without it a batch of problems would be scored by other networks than its members alone."""
    generator = torch.Generator().manual_seed(4)
    population = torch.stack([reward.initial(generator) for _ in range(3)])
    states, actions = pairs(1 if shared else 3, 4, 7)
    together, every = reward.along(population, states, actions), reward.all_actions(population, states)
    assert (together.shape, every.shape) == ((3, 4, 7), (3, 4, 7, 3))
    for member in range(3):
        own = 0 if shared else member
        torch.testing.assert_close(together[member], reward.along(population[member], states[own], actions[own]))
        torch.testing.assert_close(every[member], reward.all_actions(population[member], states[own]))


def test_it_keeps_the_protocols(reward: DiscreteMLPReward) -> None:
    """Without it ``one_step`` would not see that E_π r is there for nothing."""
    model: RewardModel = reward
    assert isinstance(model, AllActions)


def test_one_step_is_the_same_with_one_look_a_state(reward: DiscreteMLPReward) -> None:
    """r − E_π r from r(s,·) must be what one look at each (s, a) gives, and see only states that have weight, once each."""
    x = reward.initial(torch.Generator().manual_seed(5))
    states, actions = pairs(2, 6)
    chances = torch.softmax(torch.randn(2 * 6, 3, generator=torch.Generator().manual_seed(6)), -1)
    looked: list[int] = []

    class World:
        """All actions of a policy that is a table over the twelve states."""

        def quadrature(self, policy, states, count, generator):  # type: ignore[no-untyped-def]
            """[3, n] actions and probabilities."""
            return torch.arange(3)[:, None].expand(3, len(states)), policy(states).mT

    class Spy(DiscreteMLPReward):
        """Counts the states that it sees."""

        def all_actions(self, x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            """r_x(s, ·)."""
            looked.append(len(states))
            return super().all_actions(x, states)

    def policy(seen: torch.Tensor) -> torch.Tensor:
        index = (seen[:, None] == states.flatten(0, 1)).all(-1).double().argmax(-1)
        return chances[index]

    visits = torch.randn(2, 6, generator=torch.Generator().manual_seed(7))
    visits[0, 3:] = 0.0
    played = Trajectory(states, actions, torch.ones(2, 6, dtype=torch.bool))
    fresh = Samples(played, torch.zeros(1, 1), torch.zeros(1, 1), None)  # type: ignore[arg-type]
    spy = Spy(4, 3, hidden=(8, 5), scale=2.0)
    only_pairs = SimpleNamespace(along=reward.along)
    for model in (spy, only_pairs):
        problem = SimpleNamespace(reward=model, world=World())
        found = one_step(Point(problem, x, SimpleNamespace(policy=policy), torch.Generator()), fresh, visits, 8)  # type: ignore[arg-type]
        leaf = x.clone().requires_grad_()
        scores = reward.all_actions(leaf, states)
        advantage = scores.gather(-1, actions[..., None])[..., 0] - (chances.view(2, 6, 3) * scores).sum(-1)
        (expected,) = torch.autograd.grad((visits * advantage).sum(), leaf)
        torch.testing.assert_close(found, expected)
    assert looked == [9]


def test_refuses_what_does_not_fit(reward: DiscreteMLPReward) -> None:
    """A wrong shape would be found deep inside a matrix product, or broadcast to something else."""
    x, (states, actions) = reward.initial(torch.Generator()), pairs(5)
    with pytest.raises(InvalidProblem, match="sizes"):
        DiscreteMLPReward(4, 0)
    with pytest.raises(InvalidProblem, match="x has shape"):
        reward.along(x[:-1], states, actions)
    with pytest.raises(InvalidProblem, match=r"inputs have shape \(5, 3\)"):
        reward.along(x, states[:, :3], actions)
    population, alone = x.expand(2, -1), states[None]
    for refused in (actions[:, None], actions[:1], actions[:4]):  # one action for all of the states would be spread over them
        with pytest.raises(InvalidProblem, match=r"actions have shape .* \[5\]"):
            reward.along(x, states, refused)
        with pytest.raises(InvalidProblem, match=r"actions have shape .* \[2, 5\]"):
            reward.along(population, alone, refused[None])
    assert torch.equal(reward.along(population, alone, actions[None]), reward.along(population, alone, actions.expand(2, 5)))
    with pytest.raises(InvalidProblem, match=r"\[2 or 1, "):
        reward.along(x.expand(2, -1), states, actions)
    with pytest.raises(TypeError, match="hiden"):
        DiscreteMLPReward(4, 3, hiden=(8,))  # type: ignore[call-arg]
