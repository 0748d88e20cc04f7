"""The reward network: x is its parameters, and everything about r_x is a function of x."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards import MLPReward
from bilevel_gym.rewards.fused import leaky_perceptron, plain_perceptron


@pytest.fixture
def reward() -> MLPReward:
    """A small network whose actions lie in [−2, 2] × [0, 1]."""
    return MLPReward(3, 2, hidden=(8, 5), scale=2.0, action_low=torch.tensor([-2.0, 0.0]), action_high=torch.tensor([2.0, 1.0]))


def pairs(*leading: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random states and actions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, 3, generator=generator), torch.rand(*leading, 2, generator=generator)


def test_is_the_textbook_network(reward: MLPReward) -> None:
    """Without it the layout of x that the documentation gives, or the scaling of actions, could be wrong unnoticed."""
    x = reward.initial(torch.Generator().manual_seed(1))
    layers = [nn.Linear(5, 8), nn.LeakyReLU(0.01), nn.Linear(8, 5), nn.LeakyReLU(0.01), nn.Linear(5, 1), nn.Tanh()]
    plain = nn.Sequential(*layers)
    nn.utils.vector_to_parameters(x, plain.parameters())
    states, actions = pairs(4, 7)
    scaled = torch.stack([actions[..., 0] / 2.0, 2.0 * actions[..., 1] - 1.0], -1)
    torch.testing.assert_close(reward.along(x, states, actions), 2.0 * plain(torch.cat([states, scaled], -1)).squeeze(-1))


def test_gradient_against_finite_differences(reward: MLPReward) -> None:
    """Without it ∇r, which every hyper-gradient is made of, could be wrong."""
    x = reward.initial(torch.Generator().manual_seed(2)).double().requires_grad_()
    states, actions = (part.double() for part in pairs(6))
    weights = torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * reward.along(x, states, actions)).sum(), x)
    with torch.no_grad():
        for index in range(reward.dimension):
            step = torch.zeros_like(x)
            step[index] = 1e-6
            ahead, behind = ((weights * reward.along(x + sign * step, states, actions)).sum() for sign in (1, -1))
            assert abs((ahead - behind) / 2e-6 - found[index]) < 1e-7


def test_population_agrees_with_each_member(reward: MLPReward) -> None:
    """Without it a batch of problems would be scored by other networks than its members alone."""
    generator = torch.Generator().manual_seed(4)
    population = torch.stack([reward.initial(generator) for _ in range(3)])
    states, actions = pairs(3, 4, 7)
    together = reward.along(population, states, actions)
    assert together.shape == (3, 4, 7)
    for member in range(3):
        torch.testing.assert_close(together[member], reward.along(population[member], states[member], actions[member]))
    shared = reward.along(population, states[:1], actions[:1])
    torch.testing.assert_close(shared[2], reward.along(population[2], states[0], actions[0]))


def test_parameters_are_views_of_x(reward: MLPReward) -> None:
    """Without it each look at r_x could copy x, and a gradient could end in a copy."""
    for x in (torch.zeros(reward.dimension), torch.zeros(3, reward.dimension)):
        parts = reward.parameters(x)
        assert sum(part.numel() for part in parts) == x.numel()
        assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in parts)


def test_bounded_with_a_slope_everywhere(reward: MLPReward) -> None:
    """Without it the output could be clipped instead of squashed, and a saturated reward would never learn again."""
    states, actions = pairs(200)
    x = 3.0 * reward.initial(torch.Generator().manual_seed(5))
    x.requires_grad_()
    scores = reward.along(x, states, actions)
    assert bool((scores.abs() <= 2.0).all())
    (slope,) = torch.autograd.grad(scores.sum(), x)
    assert bool(slope[-1] != 0)


def test_initial_is_inside_the_box_and_repeats(reward: MLPReward) -> None:
    """Without it an environment could start outside its own action space, or from the global generator."""
    first, again = (reward.initial(torch.Generator().manual_seed(6)) for _ in range(2))
    low, high = reward.bounds
    assert torch.equal(first, again)
    assert first.dtype == reward.dtype == torch.float32
    assert low.shape == (reward.dimension,)
    assert bool((first >= torch.from_numpy(low)).all() & (first <= torch.from_numpy(high)).all())
    assert float(first[: 5 * 8].abs().max()) <= 5**-0.5
    assert float(first[: 5 * 8].std()) == pytest.approx((5 * 3) ** -0.5, rel=0.3)


def test_for_world_takes_the_sizes_and_the_box() -> None:
    """Without it a reward could read actions in other units than the world's."""

    class World:
        """Sizes and a box."""

        observation_size, action_size = 3, 2
        action_low, action_high = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])

    reward = MLPReward.for_world(World(), hidden=(4,))
    plain = MLPReward(3, 2, hidden=(4,))
    x = reward.initial(torch.Generator().manual_seed(7))
    corner = torch.tensor([[2.0, 1.0]])
    torch.testing.assert_close(reward.along(x, torch.ones(1, 3), corner), plain.along(x, torch.ones(1, 3), torch.ones(1, 2)))


def test_refuses_what_cannot_be() -> None:
    """Without it a wrong size would be found deep inside a matrix product."""
    with pytest.raises(InvalidProblem, match="sizes"):
        MLPReward(0, 2)
    with pytest.raises(InvalidProblem, match="scale"):
        MLPReward(3, 2, scale=0.0)
    with pytest.raises(InvalidProblem, match="slope"):
        MLPReward(3, 2, slope=-0.1)
    with pytest.raises(InvalidProblem, match="action_low"):
        MLPReward(3, 2, action_low=torch.zeros(3))
    wide = MLPReward(3, 2, action_low=torch.full((2,), -2.0))
    with pytest.raises(InvalidProblem, match=r"\[\.\.\., 2\]"):
        wide.along(wide.initial(torch.Generator()), torch.ones(5, 3), torch.ones(5, 1))


@pytest.mark.parametrize(("rows", "hidden"), [(7, (3,)), (5000, (64, 80)), (300, ())])
@pytest.mark.parametrize("by", [("parameters",), ("inputs", "parameters"), ("inputs",)])
def test_one_node_is_the_layers_one_by_one(rows: int, hidden: tuple[int, ...], by: tuple[str, ...]) -> None:
    """Without it the quick path for float32 on a CPU could compute another network, or another derivative, first or second."""
    generator = torch.Generator().manual_seed(8)
    sizes = (5, *hidden, 2)
    shapes = [shape for shape, _ in _layers(sizes)]
    flat = torch.cat([torch.randn(shape, generator=generator).flatten() / inputs**0.5 for shape, inputs in _layers(sizes)])
    inputs, cotangent = torch.randn(rows, 5, generator=generator), torch.randn(rows, 2, generator=generator)
    found = []
    for network in (leaky_perceptron, plain_perceptron):
        leaves = [part.clone().requires_grad_(name in by) for name, part in (("inputs", inputs), ("parameters", flat))]
        outputs = network(0.01, shapes, *leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.no_grad():
            assert torch.equal(network(0.01, shapes, *leaves), outputs)
        first = torch.autograd.grad(outputs, wanted, cotangent, retain_graph=True)
        again = torch.autograd.grad((outputs**2).mean(), wanted, create_graph=True)
        second = torch.autograd.grad(sum((part**2).sum() for part in again), wanted)
        found.append([outputs.detach(), *first, *second])
    for quick, plain in zip(*found, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def _layers(sizes: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
    """Shapes of weights and biases in turn, and the inputs of each layer."""
    return [(shape, inputs) for inputs, outputs in pairwise(sizes) for shape in ((outputs, inputs), (outputs,))]
