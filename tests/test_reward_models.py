"""One table: what every reward network must keep, alone, as an ensemble, normalized, and for a population of x's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bilevel_gym import checkpoint
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.frames import FrameStacks
from bilevel_gym.rewards import (
    AllActionsReward,
    CNNReward,
    DiscreteMLPReward,
    FeatureReward,
    MLPReward,
    NetworkReward,
    network,
    network_for,
    pixels,
)
from bilevel_gym.rewards.convolutions import BatchNormalized
from bilevel_gym.rewards.normalizer import Moments
from bilevel_gym.types import AllActions, Buffered, RewardModel
from tests.reward_models import ACTIONS, KINDS, SMALL, Kind, fragments, generator, looked, pixel_pairs

TABLE = pytest.mark.parametrize("name", list(KINDS))
ENSEMBLES = [name for name, kind in KINDS.items() if kind.make().members > 1]


@TABLE
@pytest.mark.parametrize("population", [False, True])
def test_derivative_against_finite_differences(name: str, population: bool) -> None:
    """Without it ∇r, which every hyper-gradient is made of, could be wrong; statistics must be constant in it."""
    reward, x, kind = looked(name)
    states, actions = kind.pairs(*((2,) if population else ()), 3)
    leaf = (torch.stack([x, reward.initial(generator(1))]) if population else x).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: reward.along(leaf, states, actions), leaf, fast_mode=True)


@TABLE
@pytest.mark.parametrize("shared", [False, True])
def test_population_is_its_members(name: str, shared: bool) -> None:
    """Without it a batch of problems would be scored by other networks than each of them alone."""
    reward, x, kind = looked(name)
    population = torch.stack([x, reward.initial(generator(1)), reward.initial(generator(2))])
    states, actions = kind.pairs(1 if shared else 3, 2, 4)
    together, each = reward.along(population, states, actions), reward.along_each(population, states, actions)
    assert together.shape == (3, 2, 4)
    assert each.shape == (3, reward.members, 2, 4)
    for member in range(3):
        own = (population[member], states[0 if shared else member], actions[0 if shared else member])
        torch.testing.assert_close(together[member], reward.along(*own), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(each[member], reward.along_each(*own), rtol=1e-4, atol=1e-5)


@TABLE
def test_parameters_are_views_of_x(name: str) -> None:
    """Without it each look at r_x could copy x, and a gradient could end in a copy."""
    reward = KINDS[name].make()
    for x in (torch.zeros(reward.dimension), torch.zeros(3, reward.dimension)):
        parts = reward.parameters(x)
        assert sum(part.numel() for part in parts) == x.numel()
        assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in parts)


@TABLE
def test_box_start_and_protocols(name: str) -> None:
    """Without it an environment could start outside its own action space, and the stations would not see what a model offers."""
    reward = KINDS[name].make()
    x, (low, high) = reward.initial(generator(3)), reward.bounds
    assert torch.equal(x, reward.initial(generator(3)))
    assert (x.dtype, x.shape, low.shape) == (reward.dtype, (reward.dimension,), (reward.dimension,))
    assert bool((x >= torch.from_numpy(low)).all() & (x <= torch.from_numpy(high)).all())
    model: RewardModel = reward
    assert isinstance(model, Buffered)
    assert isinstance(model, AllActions) == (not name.startswith("mlp"))


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("mlp")])
@pytest.mark.parametrize("population", [False, True])
def test_along_is_an_entry_of_all_actions(name: str, population: bool) -> None:
    """Without it E_π r could be the mean of something else than r."""
    reward, x, kind = looked(name)
    assert isinstance(reward, AllActionsReward)
    x = torch.stack([x, reward.initial(generator(1))]) if population else x
    states, actions = kind.pairs(*((2,) if population else ()), 5)
    every = reward.all_actions(x, states)
    assert every.shape == (*x.shape[:-1], 5, ACTIONS)
    torch.testing.assert_close(reward.along(x, states, actions), every.gather(-1, actions.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_is_its_members(name: str) -> None:
    """r must be the mean and disagreement the deviation over members that are networks of their own, side by side in x."""
    reward, x, kind = looked(name)
    states, actions = kind.pairs(5)
    each = reward.along_each(x, states, actions)
    torch.testing.assert_close(reward.along(x, states, actions), each.mean(0))
    torch.testing.assert_close(reward.disagreement(x, states, actions), each.std(0, correction=0))
    assert float(reward.disagreement(x, states, actions).min()) > 0
    pieces = x.view(reward.members, -1)
    bare = kind.make()
    plain = bare.along_each(x, states, actions)
    for member in range(reward.members):
        alike = pieces[member].repeat(reward.members)
        torch.testing.assert_close(plain[member], bare.along(alike, states, actions), rtol=1e-4, atol=1e-5)


def test_one_network_cannot_disagree() -> None:
    """Zero disagreement everywhere would choose queries by their place in memory."""
    reward, x, kind = looked("mlp")
    with pytest.raises(UnsupportedProblem, match="members=3"):
        reward.disagreement(x, *kind.pairs(2))


@TABLE
def test_evaluation_is_deterministic_and_of_each_pair_alone(name: str) -> None:
    """Without it the follower would learn under rewards that depend on what else is in its batch, or on a dropout."""
    reward, x, kind = looked(name)
    states, actions = kind.pairs(8)
    first = reward.along(x, states, actions)
    assert torch.equal(first, reward.along(x, states, actions))
    torch.testing.assert_close(reward.along(x, states[2:3], actions[2:3]), first[2:3], rtol=1e-4, atol=1e-6)


@TABLE
def test_statistics_are_state_that_is_passed(name: str) -> None:
    """Without it two environments would share statistics, a checkpoint would lose them, or a look would change the past."""
    kind = KINDS[name]
    bare = kind.make()
    x = bare.initial(generator())
    states, actions = kind.pairs(7)
    before = bare.along(x, states, actions)
    seen = bare.absorb(x, fragments(kind))
    after = seen.along(x, states, actions)
    assert torch.equal(bare.along(x, states, actions), before)
    measures = bool(bare.normalize) or "batch" in name
    assert (seen is bare) == (not measures)
    assert torch.equal(before, after) == (not measures)
    restored = kind.make().with_buffers(checkpoint.unpack(checkpoint.pack(seen.buffers)))
    assert torch.equal(restored.along(x, states, actions), after)
    torch.testing.assert_close(seen.with_buffers(None).along(x, states, actions), before)


@pytest.mark.parametrize("name", ["mlp", "discrete-ensemble", "cnn", "cnn-batch"])
def test_half_precision_is_close(name: str) -> None:
    """bf16 has 8 bits: r must agree to 1 %, x and its gradient stay in float32."""
    kind = KINDS[name]
    full, half = kind.make(), kind.make(precision=torch.bfloat16)
    x = full.initial(generator()).requires_grad_()
    states, actions = kind.pairs(32)
    found, expected = half.along(x, states, actions), full.along(x, states, actions)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    slopes = [torch.autograd.grad(scores.sum(), x)[0] for scores in (found, expected)]
    assert slopes[0].dtype == torch.float32
    assert float(nn.functional.cosine_similarity(*slopes, dim=0)) > 0.99


# ---------------------------------------------------------------------------------------------- what is normalized


def test_observations_are_standardized_by_all_that_was_seen() -> None:
    """Two looks must count as one over both, dead steps not at all; and what hardly moved must not explode."""
    kind = KINDS["discrete-normalized"]
    plain = DiscreteMLPReward(4, ACTIONS, hidden=(5, 3))
    reward = kind.make()
    x = reward.initial(generator())
    looks = [fragments(kind, seed=20), fragments(kind, count=9, seed=30)]
    for look in looks:
        reward = reward.absorb(x, look)
    seen = torch.cat([look.states[look.alive] for look in looks])
    states, actions = kind.pairs(6)
    standard = (states - seen.mean(0)) / seen.std(0, correction=0)
    torch.testing.assert_close(reward.along(x, states, actions), plain.along(x, standard, actions), rtol=1e-4, atol=1e-5)
    far = plain.along(x, torch.full((1, 4), 10.0), actions[:1])
    torch.testing.assert_close(reward.along(x, torch.full((1, 4), 1e6), actions[:1]), far)


def test_what_never_moved_does_not_explode() -> None:
    """A deviation of zero would make NaN of it, and of r_x for ever; when it first moves it is far, and clipped like all that is far."""
    plain, reward = DiscreteMLPReward(4, ACTIONS, hidden=(5, 3)), KINDS["discrete-normalized"].make()
    x, look = reward.initial(generator()), fragments(KINDS["discrete-normalized"])
    still = look.states.clone()
    still[..., 1] = 3.0
    reward = reward.absorb(x, replace(look, states=still))
    states, actions = still[look.alive][:5].clone(), look.actions[look.alive][:5]
    known = reward.buffers.observations
    standard = (states - known.mean) / known.variance.sqrt()
    for moved, seen in ((0.0, 0.0), (1.0, 10.0), (-1.0, -10.0)):
        states[:, 1], standard[:, 1] = 3.0 + moved, seen
        torch.testing.assert_close(reward.along(x, states, actions), plain.along(x, standard, actions), rtol=1e-4, atol=1e-5)


def test_long_looks_are_measured_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first steps alone a moment would be that of the first pairs."""
    reward, x, kind = looked("mlp-normalized")
    look = fragments(kind, count=9, seed=40)
    monkeypatch.setattr(network, "MEASURED", 7)
    stride = -(-int(look.alive.sum()) // 7)
    assert stride > 2
    plain = reward.with_buffers(replace(reward.buffers, rewards=Moments.none((1,), torch.float32, torch.device("cpu"))))
    r = plain.along(x, look.states[look.alive][::stride], look.actions[look.alive][::stride]) / reward.scale
    found = reward.settle(x, look).buffers.rewards
    torch.testing.assert_close((found.mean[0], found.variance[0]), (r.mean(), r.var(correction=0)), rtol=1e-4, atol=1e-6)
    assert found.count == len(r) <= 7


def test_moments_of_parts_are_moments_of_the_whole() -> None:
    """Without it the normalizer would weigh looks and not steps, or lose the spread between them."""
    values = torch.randn(50, 2, generator=generator(), dtype=torch.float64) * torch.linspace(1, 9, 50, dtype=torch.float64)[:, None] + 3
    moments = Moments.none((2,), torch.float64, torch.device("cpu"))
    for part in values.split([1, 30, 0, 19]):
        moments = moments.joined(part)
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.variance, values.var(0, correction=0))


@pytest.mark.parametrize("name", ["mlp-normalized", "mlp-normalized-ensemble", "cnn-batch-ensemble"])
def test_rewards_are_standardized_at_the_x_in_force(name: str) -> None:
    """Over the last look each member must have mean 0 and deviation ``scale``, also after x has moved and the model has settled."""
    reward, x, kind = looked(name)
    look = fragments(kind, count=8, seed=40)
    for at, model in ((x, reward.absorb(x, look)), (3.0 * x, reward.settle(3.0 * x, look))):
        each = model.along_each(at, look.states, look.actions)[:, look.alive]
        torch.testing.assert_close(each.mean(1), torch.zeros(reward.members), rtol=0, atol=1e-4)
        torch.testing.assert_close(each.std(1, correction=0), torch.full((reward.members,), reward.scale), rtol=1e-3, atol=0)


def test_settling_adds_nothing_to_what_was_seen() -> None:
    """A look counts once, however often x moves before the next."""
    reward, x, kind = looked("mlp-normalized")
    settled = reward.settle(2.0 * x, fragments(kind))
    assert settled.buffers.observations is reward.buffers.observations


# ---------------------------------------------------------------------------------------------- pixels


def authors(actions: int, norm: bool, dropout: float = 0.5) -> nn.Sequential:
    """The network of the SoBiRL authors' released code, as torch modules."""
    layers: list[nn.Module] = []
    for inputs, size, stride in ((4, 7, 3), (16, 5, 2), (16, 3, 1), (16, 3, 1)):
        layers += [nn.Conv2d(inputs, 16, size, stride), *([nn.BatchNorm2d(16)] if norm else []), nn.LeakyReLU(0.01), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.LeakyReLU(0.01), nn.Linear(64, actions))


def moved(reward: NetworkReward) -> Tensor:
    """An x whose gains and shifts are not those of the start."""
    return reward.initial(generator()) + 0.05 * torch.randn(reward.dimension, generator=generator(1))


@pytest.mark.parametrize("norm", [None, "batch"])
def test_is_the_authors_network(norm) -> None:
    """Without it the layout of x, the order of norm and activation, or the scale of pixels could be wrong unnoticed."""
    reward = CNNReward(5, norm=norm, squash="clip", scale=2.0)
    assert reward.dimension == 64448 + 65 * 5 + (128 if norm else 0)
    plain, x = authors(5, norm is not None), moved(reward)
    nn.utils.vector_to_parameters(x, plain.parameters())
    frames = torch.randint(256, (6, 4, 84, 84), generator=generator(2), dtype=torch.uint8)
    actions = torch.randint(5, (6,), generator=generator(3))
    if norm:
        norms = [layer for layer in plain if isinstance(layer, nn.BatchNorm2d)]
        plain.train()
        for layer in plain:
            layer.train(isinstance(layer, nn.BatchNorm2d))
        expected = plain(frames / 255.0)
        # In ∇l it is normalized by the batch, whatever was measured; here without dropout.
        found = reward.training(generator()).all_actions(x, frames)
        torch.testing.assert_close(found, 2.0 * expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
        means, variances = torch.stack([torch.linspace(-0.1, 0.1, 64), torch.linspace(0.2, 1.5, 64)])
        reward = reward.with_buffers(type(reward.buffers)(channels=torch.stack([means, variances])))
        for number, layer in enumerate(norms):
            layer.running_mean, layer.running_var = (part[16 * number : 16 * number + 16].clone() for part in (means, variances))
    plain.eval()
    expected = 2.0 * plain(frames / 255.0).clamp(-1, 1)
    torch.testing.assert_close(reward.all_actions(x, frames), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reward.along(x, frames, actions), expected.gather(-1, actions[:, None])[:, 0], rtol=1e-4, atol=1e-4)


def test_pixels_are_divided_once() -> None:
    """Divided twice, as in the released code, all frames look black; frames that somebody has divided before are refused."""
    reward, x, _ = looked("cnn")
    white = torch.full((1, *SMALL["observation_shape"]), 255, dtype=torch.uint8)
    inside = reward._outputs(x, torch.ones(1, *SMALL["observation_shape"]), reward.action_count).squeeze(0)
    assert isinstance(reward, AllActionsReward)
    torch.testing.assert_close(reward.all_actions(x, white), inside)
    with pytest.raises(InvalidProblem, match="uint8"):
        reward.all_actions(x, white / 255.0)


def test_many_frames_and_shared_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """r and ∇r of many stacks must not depend on the parts that they are taken in, nor on how their frames are kept."""
    reward, x, _ = looked("cnn-ensemble")
    pictures = torch.randint(256, (3, 8, 12, 12), generator=generator(5), dtype=torch.uint8)
    shared = FrameStacks.sliding(pictures, 2)
    actions = torch.randint(ACTIONS, (3, 7), generator=generator(6))
    leaf = x.clone().requires_grad_()
    whole = reward.along(leaf, shared.stacks(), actions)
    (slope,) = torch.autograd.grad(whole.sum(), leaf)
    monkeypatch.setattr(pixels, "PART", 4)
    parts = reward.along(leaf, shared, actions)  # type: ignore[arg-type]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), leaf)[0], slope)
    torch.testing.assert_close(reward.along(x, shared, actions), whole)  # type: ignore[arg-type]


def test_a_batch_is_normalized_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken in parts each would have statistics of its own, and ∇l would depend on how large a part is."""
    kind = Kind(lambda: CNNReward(ACTIONS, norm="batch", **SMALL), pixel_pairs)
    reward = kind.make()
    x, (frames, actions) = moved(reward), kind.pairs(10)
    whole = reward.training(generator()).along(x, frames, actions)
    monkeypatch.setattr(pixels, "PART", 4)
    torch.testing.assert_close(reward.training(generator()).along(x, frames, actions), whole)


def test_measured_statistics_are_those_of_the_batch() -> None:
    """Over the frames that were measured, evaluation must be what training without dropout is."""
    kind = Kind(lambda: CNNReward(ACTIONS, norm="batch", **SMALL), pixel_pairs)
    bare = kind.make()
    x, look = moved(bare), fragments(kind, count=20)
    frames = look.states[look.alive]
    assert isinstance(bare, CNNReward)
    settled = bare.settle(x, look)
    torch.testing.assert_close(settled.all_actions(x, frames), bare.training(generator()).all_actions(x, frames), rtol=1e-4, atol=1e-5)
    other = moved(bare) * 2.0
    again = settled.settle(other, look)
    torch.testing.assert_close(
        again.all_actions(other, frames), bare.training(generator()).all_actions(other, frames), rtol=1e-4, atol=1e-5
    )


def test_dropout_is_in_training_alone_and_from_the_generator() -> None:
    """Without it the follower's reward would be random, or ∇l could not be had twice; the mean of what is kept must stay."""
    reward, x, kind = looked("cnn-batch")
    states, actions = kind.pairs(6)
    first, again, other = (reward.training(generator(seed)).along(x, states, actions) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert isinstance(reward.network, BatchNormalized)
    kept = reward.network.training(generator())._kept(torch.empty(200, 200), 0.25)
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 4 / 3]))
    assert float(kept.mean()) == pytest.approx(1.0, abs=4 * (1 / 3 / 40_000) ** 0.5)
    assert looked("cnn")[0].training(generator()).network.statistics is None


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPReward(3, 2, members=0), "members"),
        (lambda: MLPReward(3, 2, normalize="observations"), "tuple"),
        (lambda: MLPReward(3, 2, normalize=("observation",)), "observation"),
        (lambda: MLPReward(3, 2, squash="relu"), "squash"),
        (lambda: MLPReward(3, 2, precision=torch.int8), "precision"),
        (lambda: CNNReward(3, normalize=("observations",)), "rewards"),
        (lambda: CNNReward(3, norm="layer"), "norm"),
        (lambda: CNNReward(3, dropout=0.5), "dropout"),
        (lambda: CNNReward(3, norm="batch", dropout=1.0), "dropout"),
        (lambda: CNNReward(3, observation_shape=(4, 20, 84)), "too small"),
        (lambda: CNNReward(3, observation_shape=(84, 84)), "stack"),
        (lambda: CNNReward(0), "positive"),
    ],
)
def test_refuses_what_cannot_be(make, message: str) -> None:
    """Without it a wrong option would be found deep inside a convolution, or never."""
    with pytest.raises(InvalidProblem, match=message):
        make()


@pytest.mark.parametrize(
    ("world", "kind", "dimension"),
    [
        ({"observation_size": 3, "action_size": 2, "action_low": -torch.ones(2), "action_high": torch.ones(2)}, MLPReward, 6 * 8 + 9),
        ({"observation_size": 3, "action_count": 4}, DiscreteMLPReward, 4 * 8 + 9 * 4),
        ({"observation_shape": (4, 84, 84), "action_count": 4}, CNNReward, 14208 + 785 * 8 + 9 * 4),
    ],
)
def test_network_for_fits_the_world(world, kind: type[NetworkReward], dimension: int) -> None:
    """Without it each task would choose a network by hand, and one that reads something else would fail in a product."""
    shape = world.get("observation_shape", (3,))
    reward = network_for(SimpleNamespace(**{"observation_shape": shape, "device": "cpu", **world}), hidden=(8,), members=2)
    assert type(reward) is kind
    assert reward.dimension == 2 * dimension


def test_behind_convolutions_is_the_last_of_the_widths() -> None:
    """There is one hidden layer there: of two widths the first would be another network."""
    world = SimpleNamespace(observation_shape=(4, 84, 84), action_count=4, device="cpu")
    assert network_for(world, hidden=(16, 8)).dimension == network_for(world, hidden=(8,)).dimension == 14208 + 785 * 8 + 9 * 4


def test_features_of_a_population_are_weighed_by_each_member() -> None:
    """x of one member with the features of another would be a reward that nobody has."""
    reward = FeatureReward(lambda states, actions: torch.cat([states, actions], -1), 5)
    source = generator()
    x, states, actions = (torch.randn(shape, generator=source) for shape in ((2, 5), (2, 3, 4), (2, 3, 1)))
    together, shared = reward.along(x, states, actions), reward.along(x, states[:1], actions[:1])
    for member in range(2):
        torch.testing.assert_close(together[member], reward.along(x[member], states[member], actions[member]))
        torch.testing.assert_close(shared[member], reward.along(x[member], states[0], actions[0]))


@pytest.mark.parametrize(
    "world",
    [
        {"observation_shape": (3, 3), "action_count": 2},
        {"observation_shape": (4, 84, 84), "action_low": torch.zeros(2)},
        {"observation_shape": (5,)},
        {"action_count": 2},
    ],
)
def test_network_for_refuses_what_no_network_reads(world) -> None:
    """The message must say what was seen, and what can be."""
    with pytest.raises(InvalidProblem, match="no reward network fits"):
        network_for(SimpleNamespace(**world))
