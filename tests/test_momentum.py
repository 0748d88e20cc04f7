"""Stoc-SoBiRL: the recursion, what it does to the noise, and the importance weights that align its two estimates."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, agents, checkpoint
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import FrameStacks
from bilevel_gym.hypergradients import Exact, GivenCritic, Importance, Momentum, ScoreFunction, ScoreState, TableCritic
from bilevel_gym.hypergradients import importance as weighing
from bilevel_gym.hypergradients.sensitivities import Point, along_continuations, play_continuations, resolvent
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import central_differences, compare, enumerated_critic
from bilevel_gym.types import Hypergradient, Trajectory
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)


def path(problem, steps, size=0.1):
    """x's that move a little, with their responses."""
    x = problems.point(problem, 0)
    xs = [x + size * k * problems.point(problem, 1) for k in range(steps)]
    return [(x, SOLVER.solve(problem, x)) for x in xs]


def follow(problem, estimator, points, seed=0, oracle=None):
    """The estimates along a path."""
    oracle = oracle or ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(seed))
    state, found = estimator.init(oracle), []
    for x, response in points:
        estimate, state = estimator(oracle, x, response, oracle.evaluate(x, response), state)
        found.append(estimate)
    return found


class Counting:
    """Says 10k + 1 at the kth call, and −k when asked again: numbers of which each can be found in the result."""

    def supports(self, problem):
        """Everything."""
        return

    def init(self, oracle):
        """No calls so far."""
        return 0

    def __call__(self, oracle, x, response, evaluation, state):
        """10k + 1 as the direct part, twice that as the implicit one."""
        part = torch.tensor([10.0 * state + 1.0])
        return Hypergradient(3 * part, part, 2 * part), state + 1

    def again(self, oracle, x, response, state, importance):
        """Minus the number of calls, moved by x so that another x is noticed."""
        part = x[:1] - state
        return Hypergradient(3 * part, part, 2 * part)


def test_the_recursion_in_numbers():
    """h_k = ĝ_k + (1 − μ_k)(h_{k−1} − ĝ(x_{k−1})) with μ_k = ½ k^−⅔: a sign, a lag or a wrong x changes these numbers."""
    oracle = ProblemOracle(problems.preference(0), SOLVER, torch.Generator())
    estimator = Momentum(Counting(), scale=0.5)
    state, h, before = estimator.init(oracle), None, None
    x = torch.zeros(1)
    for k in range(5):
        x.fill_(0.25 * k)  # in place, as the agent does it
        estimate, state = estimator(oracle, x, SOLVER.start(oracle.problem), None, state)
        g, mu = 10.0 * k + 1.0, 0.5 * (k + 1) ** (-2 / 3)
        h = g if h is None else g + (1 - mu) * (h - (before - (k + 1)))
        before = 0.25 * k
        np.testing.assert_allclose(estimate.direct, [h], rtol=1e-6)
        if k == 0:
            h_implicit = 2 * g
        else:
            h_implicit = 2 * g + (1 - mu) * (h_implicit - 2 * (0.25 * (k - 1) - (k + 1)))
            assert estimate.stats["momentum"] == pytest.approx(mu)
        np.testing.assert_allclose(estimate.implicit, [h_implicit], rtol=1e-6)
        np.testing.assert_allclose(estimate.value, estimate.direct + estimate.implicit)


def test_the_followers_warm_start_is_not_kept():
    """π_{k−1} is asked again, not its replay: that would be a million transitions more in memory, and in each checkpoint."""
    oracle = ProblemOracle(problems.preference(0), SOLVER, torch.Generator())
    response = replace(SOLVER.start(oracle.problem), state=["a replay"])
    _, state = Momentum(Counting())(oracle, torch.zeros(1), response, None, Momentum(Counting()).init(oracle))
    assert state.response.policy is response.policy
    assert state.response.state is None


def test_the_samples_stand_for_those_of_the_policy_before():
    """π_k has played, π_{k−1} is wanted, and only with the correction: the other way round the bias would double."""
    seen = []

    class Watching(Counting):
        def again(self, oracle, x, response, state, importance):
            seen.append((response.policy, importance))
            return super().again(oracle, x, response, state, importance)

    problem = problems.preference(0)
    points = path(problem, 2)
    for correction in ("none", "importance"):
        follow(problem, Momentum(Watching(), correction, clip=7.0), points)
    (policy, nothing), (_, importance) = seen
    assert nothing is None
    assert torch.equal(policy, points[0][1].policy)
    assert torch.equal(importance.wanted, points[0][1].policy)
    assert torch.equal(importance.played, points[1][1].policy)
    assert importance.clip == 7.0


@pytest.mark.parametrize("sensitivity", ["exact", "one_step", "rollout", "critic", None])
def test_mu_of_one_is_the_inner_estimator(sensitivity):
    """Without momentum nothing may be left of the earlier samples, and the second estimate must draw nothing."""
    problem = problems.preference(0, pairs=8)
    points, inner = path(problem, 4), ScoreFunction(sensitivity)
    plain, wrapped = follow(problem, inner, points), follow(problem, Momentum(inner, power=0.0), points)
    for first, second in zip(plain, wrapped, strict=True):
        assert torch.equal(first.direct, second.direct)
        assert torch.equal(first.implicit, second.implicit)


@pytest.mark.parametrize("sensitivity", ["exact", "one_step", "rollout", "critic", None])
def test_again_at_the_same_point_is_the_same_estimate(sensitivity):
    """The second estimate is of the same draws: where x has not moved, both must be equal to the last bit, importance weights included."""
    problem = problems.preference(2, ends=True, pairs=8)
    (x, response), *_ = path(problem, 1)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    inner, state = ScoreFunction(sensitivity), ScoreState()
    for _ in range(2):
        estimate, state = inner(oracle, x, response, oracle.evaluate(x, response), state)
        for importance in (None, Importance(response.policy, response.policy, 10.0)):
            again = inner.again(oracle, x, response, state, importance)
            assert torch.equal(again.value, estimate.value)


def test_a_critic_that_draws_is_had_again_with_the_same_draws():
    """Ridge regression draws its features: other features in the second estimate would be noise that no momentum damps."""

    class Drawing(TableCritic):
        def fit(self, problem, fragments, loss, generator):
            return super().fit(problem, fragments, loss, generator) + torch.randn(3, 2, generator=generator, dtype=torch.float64)

    problem = problems.preference(0, pairs=8)
    (x, response), *_ = path(problem, 1)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    inner = ScoreFunction("critic", critic=Drawing())
    estimate, state = inner(oracle, x, response, oracle.evaluate(x, response), ScoreState())
    assert torch.equal(inner.again(oracle, x, response, state).value, estimate.value)
    assert float(estimate.implicit.norm()) > 0.0


@pytest.mark.parametrize(
    "options", [{"sensitivity": "one_step"}, {"sensitivity": "rollout", "weighting": "advantage"}, {"sensitivity": "critic"}], ids=str
)
def test_again_on_a_simulator_is_the_same_estimate(options):
    """The actions that E_π is taken over, and the features of L, are draws too; those of a second estimate for one response are its own."""
    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped
    env.reset(seed=0)
    inner, state, found = ScoreFunction(window="frozen", **options), ScoreState(), []
    for _ in range(2):
        env.step(env.x.numpy())
        for _ in range(2):
            estimate, state = inner(env.oracle, env.x, env.response, env.evaluation, state)
            found.append(estimate.implicit)
            assert torch.equal(inner.again(env.oracle, env.x, env.response, state).value, estimate.value)
    assert float(found[-1].norm()) > 0.0
    assert torch.equal(found[-1], found[-2]) == (options["sensitivity"] != "one_step")


def test_nothing_is_learnt_where_every_label_is_skipped():
    """The implicit part is zero then, and not an error about no states."""
    options = {"preset": "tiny", "teacher": {"skip_below": 1e9}}
    for name in ("Pendulum", "CartPole"):
        env = gym.make(f"bilevel/{name}Preference-v0", **options).unwrapped
        env.reset(seed=0)
        assert bool(env.evaluation.fresh.fragments.outcome.isnan().all())
        for sensitivity in ("one_step", "critic", "rollout"):
            inner = ScoreFunction(sensitivity, "frozen")
            estimate, _ = inner(env.oracle, env.x, env.response, env.evaluation, ScoreState())
            assert float(estimate.value.norm()) == 0.0


def test_continuations_are_weighted_step_by_step():
    """ξ and ζ of another policy with the weights of their steps must have the mean of ∇(Q − V) at the wanted one; ξ's first action is given."""
    problem = problems.preference(0)
    (x, response), (_, other) = path(problem, 2, size=0.5)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    cells, weight = torch.cartesian_prod(torch.arange(3), torch.arange(2)), torch.tensor([1.0, 0.5, 0.7, 0.2, 1.0, 0.4], dtype=x.dtype)
    at = Point(problem, x, response, oracle.generator)
    weighted = replace(at, importance=Importance(response.policy, other.policy, float("inf")))
    truth = resolvent(at, problems.single_steps(*cells.unbind(1)), weight[:, None]).numpy()
    values = [[], []]
    for _ in range(20):
        drawn = play_continuations(oracle, other, problems.single_steps(*cells.repeat(200, 1).unbind(1)), "reset", 1)
        for point, found in zip((at, weighted), values, strict=True):
            found.append(along_continuations(point, drawn, weight.repeat(200) / 200).numpy())
    assert compare(truth, np.stack(values[1])).p_value > 0.001
    assert compare(truth, np.stack(values[0])).p_value < 1e-6


def test_exact_estimates_stay_exact():
    """Where ĝ has no noise h_k is the gradient at every k, however far x moves and whatever μ is."""

    class Again(Exact):
        def again(self, oracle, x, response, state, importance):
            return self(oracle, x, response, None, None)[0]

    problem = problems.linear(0)
    found = follow(problem, Momentum(Again(), scale=0.3, power=0.1), path(problem, 6, size=0.5))
    for (x, _), estimate in zip(path(problem, 6, size=0.5), found, strict=True):
        np.testing.assert_allclose(estimate.value, central_differences(problem, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["exact", "exact, ending", "exact, late", "rollout", "critic"])
def test_importance_weights_remove_the_misalignment(name):
    """Samples of π_k at (x_{k−1}, π_{k−1}): with weights their mean is the gradient there, without it measurably is not."""
    sensitivity = name.split(",")[0]
    problem = problems.preference(2, ends="ending" in name, pairs=64, tail=0 if sensitivity != "critic" else 12)
    if "late" in name:
        problem = replace(problem, objective=replace(problem.objective, cut="anywhere", steps=3))
    x, response = path(problem, 1)[0]
    there = x + 0.8 * problems.point(problem, 3)
    elsewhere = SOLVER.solve(problem, there)
    critic = GivenCritic(enumerated_critic(problem, x, response.policy)) if sensitivity == "critic" else None
    inner = ScoreFunction(sensitivity, critic=critic)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    weigh = Importance(response.policy, elsewhere.policy, float("inf"))
    values = {"truth": [], "weighted": [], "none": []}
    for _ in range(120):
        _, state = inner(oracle, there, elsewhere, oracle.evaluate(there, elsewhere), ScoreState())
        values["none"].append(inner.again(oracle, x, response, state).value.numpy())
        values["weighted"].append(inner.again(oracle, x, response, state, weigh).value.numpy())
        if "late" in name:
            values["truth"].append(inner(oracle, x, response, oracle.evaluate(x, response), ScoreState())[0].value.numpy())
    weighted, none = np.stack(values["weighted"]), np.stack(values["none"])
    if "late" in name:  # no closed form: compare with as many estimates on samples of π_{k−1} itself
        truth = np.stack(values["truth"])
        assert compare(np.zeros(problem.dimension), weighted - truth).p_value > 0.001
        assert compare(np.zeros(problem.dimension), none - truth).p_value < 1e-4
    else:
        truth = central_differences(problem, x)
        assert compare(truth, weighted).p_value > 0.001
        assert compare(truth, none).p_value < 1e-4


def test_weights_in_closed_form():
    """Products of π/π' over living steps: from the reset or within the window, over both fragments, and never above the clip."""
    wanted, played = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.4, 0.6]])
    actions = torch.tensor([[0, 1, 0], [0, 0, 0]])
    alive = torch.tensor([[True, True, True], [True, True, False]])
    trajectories = Trajectory(torch.zeros(2, 3, dtype=torch.long), actions, alive)
    importance = Importance(wanted, played, 3.0)
    np.testing.assert_allclose(importance.of_steps(trajectories), [[2, 2 / 3, 4 / 3], [2, 3, 3]], rtol=1e-6)
    np.testing.assert_allclose(importance.of_steps(trajectories, given=True), [[1, 1 / 3, 2 / 3], [1, 2, 2]], rtol=1e-6)
    origin, first, last = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0, 0], [1, 1]]), torch.tensor([[2, 1], [3, 3]])
    np.testing.assert_allclose(importance.of_tuples(trajectories, origin, first, last), [4 / 3, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(Importance(wanted, played, 1.0).of_tuples(trajectories, origin, first, last), [1, 1], rtol=1e-6)


class Tabled:
    """A policy on observations whose first number is the state, as networks' policies are: it says log π(a|s), and counts the questions."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def sample(self, observations, generator):
        """Nobody asks."""
        raise AssertionError

    mean = sample

    def log_prob(self, observations, actions):
        """[n, *observation], [n] → [n]."""
        self.asked.append(len(observations))
        return self.table[observations.flatten(1)[:, 0].long(), actions].log()


@pytest.mark.parametrize("pixels", [False, True])
def test_weights_by_log_densities_are_those_by_tables(pixels, monkeypatch):
    """What simulators take: steps in another order, a chunk too few, or a policy that is asked about all pixels at once."""
    monkeypatch.setattr(weighing, "CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    wanted, played = torch.softmax(torch.randn(2, 5, 2, generator=generator, dtype=torch.float64), -1)
    states, actions = torch.randint(5, (3, 7), generator=generator), torch.randint(2, (3, 7), generator=generator)
    alive = torch.arange(7) < torch.tensor([[7], [4], [1]])
    seen = states.float()[..., None]
    if pixels:
        pictures = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(5, 2, 2).contiguous()
        seen = FrameStacks((pictures,), states[..., None].expand(3, 7, 4).contiguous())
    policies = Tabled(wanted), Tabled(played)
    known, tables = Importance(*policies, 20.0), Importance(wanted, played, 20.0)
    origin, first, last = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[0, 2], [0, 3]]), torch.tensor([[4, 6], [3, 7]])
    found, truth = Trajectory(seen, actions, alive), Trajectory(states, actions, alive)
    for given in (False, True):
        torch.testing.assert_close(known.of_steps(found, given=given), tables.of_steps(truth, given=given))
    torch.testing.assert_close(known.of_tuples(found, origin, first, last), tables.of_tuples(truth, origin, first, last))
    assert len(tables.of_steps(truth).unique()) > 10
    assert policies[0].asked == policies[1].asked == 3 * [4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("correction", ["none", "importance"])
def test_the_noise_falls_where_x_moves_slowly(correction):
    """What momentum is for: after twenty small steps the error of h is well below that of one estimate on the same number of pairs."""
    problem = problems.preference(0, pairs=8, tail=0)
    points = path(problem, 20, size=0.005)
    truth = central_differences(problem, points[-1][0])
    plain, carried = [], []
    for seed in range(8):
        plain.append(follow(problem, ScoreFunction("rollout"), points[-2:], seed)[-1].value.numpy() - truth)
        momentum = Momentum(ScoreFunction("rollout"), correction, scale=0.1, power=0.0)
        carried.append(follow(problem, momentum, points, 1000 + seed)[-1].value.numpy() - truth)
    before, after = (np.mean(np.square(np.stack(errors)).sum(-1)) for errors in (plain, carried))
    assert after < 0.4 * before


def test_a_checkpoint_goes_on_with_the_same_numbers(tmp_path):
    """x_{k−1}, π_{k−1} and h_{k−1} are in the state: without any of them a resumed run differs from one that was not interrupted."""

    def made():
        env = BilevelEnv(problems.preference(0, pairs=8), SOLVER)
        env.reset(seed=0)
        return env, agents.stoc_sobirl(env, correction="importance")

    env, agent = made()
    agent.learn(3)
    checkpoint.save(tmp_path / "saved.pt", {"env": env.get_state(), "agent": agent.get_state()})
    saved = checkpoint.load(tmp_path / "saved.pt")
    agent.learn(3)
    other_env, other = made()
    other_env.set_state(saved["env"])
    other.set_state(saved["agent"])
    other.learn(3)
    assert torch.equal(agent.x, other.x)
    assert agent.hypergradient.stats == other.hypergradient.stats


def test_the_learning_rate_decays():
    """β_k = β k^−⅓, and a resumed optimizer must not begin again with β_1."""
    x = torch.zeros(1)
    optimizer = GradientDescent([x], lr=0.5, decay=1 / 3)
    x.grad = torch.ones(1)
    for k in range(1, 9):
        before = float(x)
        optimizer.step()
        assert before - float(x) == pytest.approx(0.5 * k ** (-1 / 3), rel=1e-5)
    resumed = GradientDescent([x], lr=9.0, decay=1 / 3)
    resumed.load_state_dict(optimizer.state_dict())
    before = float(x)
    resumed.step()
    assert before - float(x) == pytest.approx(0.5 * 9 ** (-1 / 3), rel=1e-5)
    with pytest.raises(InvalidProblem, match="decay"):
        GradientDescent([x], lr=0.5, decay=-1.0)


@pytest.mark.parametrize("options", [{"correction": "some"}, {"clip": 0.5}, {"scale": 0.0}, {"power": -1.0}, {"scale": float("nan")}])
def test_bad_options_are_refused(options):
    """A negative power lets μ grow, a clip below one shrinks every weight: neither is what anyone means."""
    with pytest.raises(InvalidProblem):
        Momentum(ScoreFunction("exact"), **options)


def test_what_it_does_not_fit_is_named():
    """A batch of the queue is not the fresh sample, and a world without branches has no continuations."""
    import gymnasium as gym

    problem = problems.preference(0)
    assert "batch=None" in Momentum(ScoreFunction("exact", batch=8)).supports(problem)
    assert Momentum(ScoreFunction("exact"), "importance").supports(problem) is None
    deep = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    assert Momentum(ScoreFunction("critic", "frozen")).supports(deep) is None
    straight = replace(deep, world=SimpleNamespace(discount=0.9))
    assert "SimpleNamespace has no branch" in Momentum(ScoreFunction("rollout")).supports(straight)
    assert Momentum(ScoreFunction("rollout", "frozen")).supports(deep) is None
