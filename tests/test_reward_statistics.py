"""Statistics that rewards are normalized by: when the environment moves them, and who sees which; and l where r_x is an ensemble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import ScoreFunction
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.objectives.playing import reward_metrics
from bilevel_gym.preferences import cross_entropy
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.types import Response
from bilevel_gym.worlds import VectorWorld
from tests.reward_models import KINDS, fragments, generator

OBJECTIVE = PreferenceObjective(length=5, pairs=4, initial_pairs=6, cut="anywhere", steps=8, held_out_pairs=4, capacity=50)


class Watching:
    """A follower that never learns, and remembers the reward that it was given."""

    def __init__(self) -> None:
        self.rewards: list[MLPReward] = []
        self.fails = False

    def start(self, problem):  # type: ignore[no-untyped-def]
        """Uniform actions."""
        return Response(problem.world.uniform(), gap=torch.tensor(0.0))

    def solve(self, problem, x, *, warm, budget, generator):  # type: ignore[no-untyped-def]
        """The same."""
        self.rewards.append(problem.reward)
        if self.fails:
            raise InvalidProblem("on purpose")
        return self.start(problem)


def make(**options) -> tuple[BilevelEnv, Watching]:
    """Pendulum with a small reward network."""
    world, solver = VectorWorld("Pendulum-v1", 0.9, horizon=8), Watching()
    reward = MLPReward.for_world(world, hidden=(6,), **options)
    return BilevelEnv(BilevelProblem(world, reward, Shannon(0.1), OBJECTIVE), solver, solve_on_reset=False), solver


def test_solver_and_objective_see_the_same_statistics() -> None:
    """Without it the follower would learn one reward and be judged by another; each look counts once, after it was judged."""
    env, solver = make(normalize=("observations", "rewards"))
    env.reset(seed=0)
    looks = [env.evaluation.fresh.fragments.states.flatten(0, 2)]
    for step in range(3):
        known = env.problem.reward.buffers.observations
        assert known.count == sum(map(len, looks))
        torch.testing.assert_close(known.mean, torch.cat(looks).mean(0))
        before, look = env.problem.reward, env.evaluation.fresh.fragments
        env.step(env.x.numpy() * 0.5)
        assert solver.rewards[step].buffers.observations is known
        torch.testing.assert_close(solver.rewards[step].buffers.rewards.mean, before.settle(env.x, look).buffers.rewards.mean)
        fresh = env.evaluation.fresh.fragments
        with torch.no_grad():
            r = solver.rewards[step].along(env.x, fresh.states, fresh.actions).sum(-1)
        torch.testing.assert_close(env.evaluation.value, cross_entropy(r[:, 0] - r[:, 1], fresh.outcome).mean())
        looks.append(fresh.states.flatten(0, 2))


def test_reset_is_cold_and_keep_goes_on() -> None:
    """Without it a reset environment would still know what the last episode saw."""
    env, solver = make(normalize=("observations",))
    env.reset(seed=1)
    first = env.problem.reward.buffers.observations
    env.step(env.x.numpy())
    env.reset(seed=1)
    torch.testing.assert_close(env.problem.reward.buffers.observations.mean, first.mean)
    assert env.problem.reward.buffers.observations.count == first.count
    env.reset(options={"x": 0.5 * env.x.numpy(), "keep": True})
    assert solver.rewards[-1].buffers.observations.count == first.count
    assert env.problem.reward.buffers.observations.count > first.count


def test_state_holds_the_statistics_and_an_error_changes_nothing() -> None:
    """Without it a resumed run would learn under another reward, and a failed step would leave half of itself behind."""
    env, solver = make(normalize=("observations", "rewards"), members=2)
    env.reset(seed=2)
    env.step(env.x.numpy())
    state, before = env.get_state(), env.problem
    solver.fails = True
    with pytest.raises(InvalidProblem, match="on purpose"):
        env.step(0.1 * env.x.numpy())
    assert env.problem is before
    other, _ = make(normalize=("observations", "rewards"), members=2)
    other.set_state(state)
    states, actions = torch.randn(5, 3, generator=generator()), torch.zeros(5, 1)
    torch.testing.assert_close(other.problem.reward.along(env.x, states, actions), before.reward.along(env.x, states, actions))
    _, reward, *_ = other.step(env.x.numpy())
    solver.fails = False
    assert reward == env.step(env.x.numpy())[1]


def test_a_reward_without_statistics_leaves_the_problem_alone() -> None:
    """Without it every step would build the problem anew."""
    env, _ = make()
    before = env.problem
    env.reset(seed=0)
    env.step(env.x.numpy())
    assert env.problem is before


def test_ensembles_loss_is_the_mean_of_its_members_losses() -> None:
    """The loss of the mean reward would train the mean alone: members would never disagree for a reason."""
    kind = KINDS["mlp-ensemble"]
    reward, look = kind.make(), fragments(kind)
    x = reward.initial(generator()) * 3
    problem = BilevelProblem(None, reward, Shannon(0.1), OBJECTIVE)  # type: ignore[arg-type]
    each = (reward.along_each(x, look.states, look.actions) * look.alive).sum(-1)
    expected = torch.stack([cross_entropy(r[:, 0] - r[:, 1], look.outcome) for r in each]).mean(0)
    torch.testing.assert_close(OBJECTIVE.loss(problem, x, look), expected)
    of_mean = cross_entropy((each[..., 0] - each[..., 1]).mean(0), look.outcome)
    assert not torch.allclose(expected, of_mean, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "discrete", "cnn", "cnn-batch"])
def test_loss_is_the_per_pair_loop(name: str) -> None:
    """One batched forward pass over pairs × 2 × H states equals one pair, one fragment, one step at a time, and so do their gradients."""
    kind = KINDS[name]
    reward, look = kind.make(), fragments(kind, count=5)
    reward = reward.absorb(reward.initial(generator()), look)
    x = (3 * reward.initial(generator())).requires_grad_()
    problem = BilevelProblem(None, reward, Shannon(0.1), OBJECTIVE)  # type: ignore[arg-type]
    total = torch.zeros(())
    for m in range(5):
        returns = [
            sum(reward.along(x, look.states[m, i, h], look.actions[m, i, h]) for h in range(4) if look.alive[m, i, h]) for i in range(2)
        ]
        z, y = returns[0] - returns[1], look.outcome[m]
        total = total - y * torch.sigmoid(z).log() - (1 - y) * torch.sigmoid(-z).log()
    batched = OBJECTIVE.loss(problem, x, look).sum()
    torch.testing.assert_close(batched, total, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(loss, x)[0] for loss in (batched, total)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)


def test_only_the_gradient_of_l_is_in_training_mode() -> None:
    """Dropout in E[∇l] and nowhere else: not in the baseline, nor in the sensitivities, nor in f."""
    seen: list[bool] = []

    class Spy(MLPReward):
        """Says whether it is in training mode."""

        trains = False

        def training(self, generator: torch.Generator) -> Spy:
            """In it."""
            return self._with(trains=True)

        def along_each(self, x, states, actions):  # type: ignore[no-untyped-def]
            """r_x, and a note."""
            seen.append(self.trains)
            return super().along_each(x, states, actions)

    env, _ = make()
    env.problem = replace(env.problem, reward=Spy.for_world(env.problem.world, hidden=(6,)))
    env.reset(seed=0)
    assert seen
    assert not any(seen)
    estimator = ScoreFunction("one_step", "frozen")
    seen.clear()
    estimator(env.oracle, env.x, env.response, env.evaluation, estimator.init(env.oracle))
    assert sum(seen) == 1
    assert len(seen) > 2


def constant(env: BilevelEnv, value: float) -> np.ndarray:
    """The x whose network puts out so much everywhere, before the tanh: all weights are 0, the last bias is not."""
    x = np.zeros(env.problem.dimension, np.float32)
    x[-1] = value
    return x


def test_share_at_the_bound() -> None:
    """Without it a reward that has become a constant at its bound would look like any other, or one that has no bound like a saturated one."""
    env, _ = make(scale=2.0)
    env.reset(seed=0)
    for value, share in ((1.8, 0.0), (1.9, 1.0), (-1.9, 1.0)):  # tanh is .947 and .956
        assert env.step(constant(env, value))[4]["reward_saturated"] == share
    env.step(4.0 * env.first_x(generator(3)).numpy())
    seen, share = env.evaluation.fresh.trajectories, env.evaluation.metrics["reward_saturated"]
    at_bound = [abs(float(r)) > 0.95 * 2.0 for r in env.problem.reward.along(env.x, seen.states, seen.actions).flatten()]
    assert 0.0 < share < 1.0
    assert share == pytest.approx(sum(at_bound) / len(at_bound))
    boundless, _ = make(normalize=("rewards",))
    assert "reward_saturated" not in boundless.reset(seed=0)[1]


def test_only_living_steps_are_at_the_bound() -> None:
    """Without it steps after the end, which are no steps, would decide whether there is a warning."""
    env, _ = make()
    env.reset(seed=0)
    played = env.evaluation.fresh.trajectories
    played = replace(played, alive=torch.arange(played.alive.shape[1]).expand_as(played.alive) < 2)
    high = played.states.new_tensor([1.0, 0.0]).repeat_interleave(torch.tensor([2, played.alive.shape[1] - 2]))
    problem = replace(env.problem, reward=type("Given", (), {"limit": 1.0, "along": lambda *_: high.expand_as(played.alive)})())
    assert reward_metrics(problem, env.x, played)["reward_saturated"] == 1.0
    assert reward_metrics(problem, env.x, replace(played, alive=~played.alive))["reward_saturated"] == 0.0


def test_says_once_that_the_reward_is_at_its_bound(caplog: pytest.LogCaptureFixture) -> None:
    """Without it a run could go on for hours with a reward that teaches nothing; said at each step, nobody would read it."""
    env, _ = make()
    for _ in range(2):  # a cold reset says it anew
        env.reset(seed=0)
        env.step(constant(env, 1.0))
        assert not caplog.records
        for _ in range(2):
            env.step(constant(env, 5.0))
        assert ["of its bound at 100 %" in record.getMessage() for record in caplog.records] == [True]
        caplog.clear()
