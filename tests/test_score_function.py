"""The sampled estimators against the exact gradient: means inside their confidence intervals, and known biases outside."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.frames import FrameStacks
from bilevel_gym.hypergradients import Exact, GivenCritic, RidgeCritic, ScoreFunction, ScoreState, score_function
from bilevel_gym.hypergradients.sensitivities import limited
from bilevel_gym.numerics import rewards_of
from bilevel_gym.preferences import concatenate, take
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import central_differences, check_hypergradient, compare, enumerated_critic
from bilevel_gym.types import Fragments
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)

PROBLEMS = {
    "plain": problems.preference(0),
    "longer": problems.preference(1, length=3),
    "ending": problems.preference(2, ends=True),
    "patient": problems.preference(3, discount=0.85, tail=60),
    "chain": problems.chain(),
    "kl": problems.under_kl(problems.preference(4, actions=3)),
}


def setting(problem, seed=0):
    """x, the solved response and an oracle."""
    x = problems.point(problem, seed)
    return x, SOLVER.solve(problem, x), ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_sensitivities_are_unbiased(name):
    """E[∇l] + τ⁻¹E[l Σ∇(Q−V)] is ∇φ: a missing baseline correction, τ, γ or a biased baseline shows in 300 × 64 pairs."""
    check_hypergradient(PROBLEMS[name], problems.point(PROBLEMS[name], 0), ScoreFunction("exact"), estimates=300)


def test_the_baseline_leaves_the_tuple_out():
    """With two pairs a mean that contains the pair itself would halve the implicit term; the mean of the others leaves it as it is."""
    problem = problems.preference(0, pairs=2)
    check_hypergradient(problem, problems.point(problem, 0), ScoreFunction("exact"), estimates=1500)


def test_a_tuned_temperature_is_the_one_that_counts():
    """A solver that tunes τ answers another problem than the regularizer says: with the problem's τ the term would be off by their ratio."""
    problem = problems.preference(0)
    x, response, oracle = setting(problem)
    evaluation, _ = problem.objective.evaluate(problem, x, response, problem.objective.start(), oracle.generator)
    estimator = ScoreFunction("exact", clip=None)
    first, second = (
        estimator(oracle, x, replace(response, temperature=tau), evaluation, estimator.init(oracle))[0]
        for tau in (None, 4.0 * problem.regularizer.temperature)
    )
    torch.testing.assert_close(first.implicit, 4.0 * second.implicit)
    assert torch.equal(first.direct, second.direct)


@pytest.mark.parametrize("sensitivity", ["exact", "critic"])
def test_pairs_that_share_trajectories_leave_it_unbiased(sensitivity):
    """Four trajectories cut into sixteen pairs, as every preset does: a baseline over pairs of the same trajectory takes half of the term."""
    problem = problems.preference(0, pairs=16)
    problem = replace(problem, objective=replace(problem.objective, trajectories=4))
    x, response, _ = setting(problem)
    critic = GivenCritic(enumerated_critic(problem, x, response.policy))
    check_hypergradient(problem, x, ScoreFunction(sensitivity, critic=critic), estimates=1200)


def test_centring_leaves_the_trajectory_out():
    """The same for the critic's baseline: with two pairs, four trajectories, a mean that contains c_t itself would take a quarter of it."""
    problem = problems.preference(0, pairs=2)
    x, response, _ = setting(problem)
    critic = GivenCritic(enumerated_critic(problem, x, response.policy))
    check_hypergradient(problem, x, ScoreFunction("critic", critic=critic), estimates=1500)


@pytest.mark.parametrize("name", PROBLEMS)
def test_critic_with_the_enumerated_l_is_unbiased(name):
    """With the true L the weighted sum of rewards along the same trajectory is the implicit term, exactly."""
    problem = PROBLEMS[name]
    x, response, _ = setting(problem)
    critic = GivenCritic(enumerated_critic(problem, x, response.policy))
    check_hypergradient(problem, x, ScoreFunction("critic", critic=critic), estimates=300)


def fitted_estimates(problem, x, response, oracle, pairs, count):
    """Estimates whose L was fitted on that many earlier pairs, drawn anew for each."""
    earlier = ProblemOracle(replace(problem, objective=replace(problem.objective, pairs=pairs)), SOLVER, oracle.generator)
    values = []
    for _ in range(count):
        history = earlier.evaluate(x, response).fresh.fragments
        estimate, _ = ScoreFunction("critic", history=pairs)(oracle, x, response, oracle.evaluate(x, response), ScoreState(history=history))
        values.append(estimate.value.numpy())
    return np.stack(values)


def test_a_fitted_critic_loses_its_bias_with_data():
    """L fitted on one earlier pair sees next to nothing and the estimate is biased, visibly; at 512 pairs the bias must be gone in the noise."""
    problem = problems.chain()  # thirty cells
    x, response, oracle = setting(problem)
    truth = central_differences(problem, x)
    one, some, many = (compare(truth, fitted_estimates(problem, x, response, oracle, pairs, 150)) for pairs in (1, 8, 512))
    assert one.relative_error > 0.2
    assert one.p_value < 1e-6
    assert some.relative_error < 0.2
    assert many.relative_error < 0.12
    assert many.p_value > 0.001


def test_the_bias_of_a_fitted_critic_shrinks_over_32_128_and_512_pairs():
    """More pairs must buy a better L: with sixty cells the bias is seen at 32 and at 128 pairs, and each four-fold of pairs takes a part of it."""
    problem = problems.wide_preference()
    x, response, oracle = setting(problem)
    truth = central_differences(problem, x)
    few, some, many = (compare(truth, fitted_estimates(problem, x, response, oracle, pairs, 300)) for pairs in (32, 128, 512))
    assert few.p_value < 1e-6
    assert some.p_value < 1e-4
    assert few.relative_error > 1.3 * some.relative_error
    assert some.relative_error > 1.3 * many.relative_error
    assert many.relative_error < 0.12


def test_one_step_is_measurably_biased_on_a_chain():
    """The released code's sensitivity forgets the future: on a chain it must be seen to be wrong (cosine < .75), or the test problem is blind."""
    problem = problems.chain()
    x, response, oracle = setting(problem, 1)
    truth = central_differences(problem, x)
    exact, _ = Exact()(oracle, x, response, oracle.evaluate(x, response), None)
    values = np.stack(
        [ScoreFunction("one_step")(oracle, x, response, oracle.evaluate(x, response), ScoreState())[0].value.numpy() for _ in range(300)]
    )
    comparison = compare(truth, values)
    assert comparison.p_value < 1e-6
    implicit = compare(truth - exact.direct.numpy(), values - exact.direct.numpy())
    assert implicit.cosine < 0.75


def test_drlhf_is_sobirl_without_the_implicit_term():
    """sensitivity=None is E[∇l] alone, on the same samples; the two agents must differ in nothing else."""
    problem = problems.preference(0)
    x, response, oracle = setting(problem)
    evaluation = oracle.evaluate(x, response)
    with_term, _ = ScoreFunction("exact")(oracle, x, response, evaluation, ScoreState())
    without, _ = ScoreFunction(None)(oracle, x, response, evaluation, ScoreState())
    assert torch.equal(with_term.direct, without.value)
    assert float(without.implicit.norm()) == 0.0
    assert float(with_term.implicit.norm()) > 0.0


def test_windows_agree_at_the_reset_and_differ_after_it():
    """Cut at the reset the frozen start law is the right one; cut anywhere, freezing it drops scores, and is biased."""
    problem = problems.preference(1, length=2)
    x, response, oracle = setting(problem)
    evaluation = oracle.evaluate(x, response)
    at_reset = [ScoreFunction("exact", window)(oracle, x, response, evaluation, ScoreState())[0].value for window in ("reset", "frozen")]
    assert torch.equal(*at_reset)
    anywhere = replace(problem, objective=replace(problem.objective, cut="anywhere"))
    evaluation = ProblemOracle(anywhere, SOLVER, oracle.generator).evaluate(x, response)
    later = [ScoreFunction("exact", window)(oracle, x, response, evaluation, ScoreState())[0].value for window in ("reset", "frozen")]
    assert not torch.allclose(*later)
    with pytest.raises(UnsupportedProblem, match="frozen"):
        ScoreFunction("critic", "reset")(oracle, x, response, evaluation, ScoreState())
    assert "frozen" in ScoreFunction("critic", "reset").supports(anywhere)


def test_scores_from_the_reset_are_right_for_late_fragments():
    """A fragment cut at t₀ > 0 has a start law that depends on π: only scores summed from the reset give the gradient of what is estimated."""
    problem = problems.preference(4, length=1, tail=3)
    objective = replace(problem.objective, cut="anywhere", steps=3, pairs=512)
    late = replace(problem, objective=objective)
    x, response, oracle = setting(late)

    def expected(policy, x):
        """E l over pairs of single steps at uniform times 0..2, by the state distributions of the chain."""
        world = late.world
        law, total = world.start, torch.zeros_like(policy)
        for _ in range(3):
            total = total + law[:, None] * policy / 3
            law = torch.einsum("s,sa,sat->t", law, policy, world.transition)
        mass, reward, true = total.flatten(), late.reward.at(x).flatten(), world.true_reward.flatten()
        chance = torch.sigmoid(true[:, None] - true)
        logit = reward[:, None] - reward
        return mass @ (torch.nn.functional.softplus(logit) - chance * logit) @ mass

    steps = 1e-5 * torch.eye(late.dimension, dtype=x.dtype)
    truth = np.array(
        [float(expected(SOLVER.solve(late, x + h).policy, x + h) - expected(SOLVER.solve(late, x - h).policy, x - h)) / 2e-5 for h in steps]
    )
    estimates = {
        window: np.stack(
            [
                ScoreFunction("exact", window)(oracle, x, response, oracle.evaluate(x, response), ScoreState())[0].value.numpy()
                for _ in range(500)
            ]
        )
        for window in ("reset", "frozen")
    }
    assert compare(truth, estimates["reset"]).p_value > 0.001
    assert compare(truth, estimates["frozen"]).p_value < 1e-4


def test_queue_feeds_the_direct_part_only():
    """Old pairs may enter ∇l, never the score function: with a queue, the implicit part must be that of the fresh pairs alone."""
    problem = problems.preference(0)
    queued = replace(problem, objective=replace(problem.objective, capacity=1000))
    x, response, oracle = setting(queued)
    first, memory = queued.objective.evaluate(queued, x, response, queued.objective.start(), oracle.generator)
    second, memory = queued.objective.evaluate(queued, x, response, memory, oracle.generator)
    assert (len(first.memory), len(second.memory)) == (64, 128)
    no_queue = replace(second, memory=None)
    with_queue, _ = ScoreFunction("exact", batch=16)(oracle, x, response, second, ScoreState())
    without, _ = ScoreFunction("exact", batch=16)(oracle, x, response, no_queue, ScoreState())
    assert torch.equal(with_queue.implicit, without.implicit)
    assert not torch.equal(with_queue.direct, without.direct)


def test_l_is_fitted_before_the_fragments_join_the_history():
    """The first estimate knows nothing, so its critic is flat; afterwards the fragments are kept, the oldest dropped."""
    problem = problems.preference(0, pairs=8)
    x, response, oracle = setting(problem)
    estimator = ScoreFunction("critic", history=12)
    first = oracle.evaluate(x, response)
    estimate, state = estimator(oracle, x, response, first, estimator.init(oracle))
    assert float(estimate.implicit.norm()) == 0.0
    assert torch.equal(state.history.outcome, first.fresh.fragments.outcome)
    again, same = estimator(oracle, x, response, first, state)
    assert same is state
    assert torch.equal(again.value, estimate.value)
    second = oracle.evaluate(x, response)
    later, state = estimator(oracle, x, response, second, state)
    assert float(later.implicit.norm()) > 0.0
    both = concatenate(first.fresh.fragments, second.fresh.fragments)
    assert torch.equal(state.history.states, take(both, slice(-12, None)).states)


def test_a_flat_critic_costs_no_pass(monkeypatch):
    """Without it every warm-up update would send all fresh steps through r_x for a part that is zero: two thirds of the time on pixels."""
    problem = problems.preference(0, pairs=8)
    x, response, oracle = setting(problem)
    estimator, passes = ScoreFunction("critic"), []
    monkeypatch.setattr(score_function, "rewards_of", lambda *given: passes.append(given) or rewards_of(*given))
    _, state = estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))
    assert not passes
    estimator(oracle, x, response, oracle.evaluate(x, response), state)
    assert len(passes) == 1


def test_clip_and_delay():
    """The guards do what they say: a ratio of norms at most, and no implicit part before its time."""
    problem = problems.preference(0)
    x, response, oracle = setting(problem)
    evaluation = oracle.evaluate(x, response)
    free, _ = ScoreFunction("exact")(oracle, x, response, evaluation, ScoreState())
    clipped, _ = ScoreFunction("exact", clip=0.01)(oracle, x, response, evaluation, ScoreState())
    np.testing.assert_allclose(clipped.implicit.norm(), 0.01 * clipped.direct.norm(), rtol=1e-9)
    np.testing.assert_allclose(clipped.implicit / clipped.implicit.norm(), free.implicit / free.implicit.norm(), atol=1e-12)
    np.testing.assert_allclose(clipped.stats["norm_implicit_unclipped"], free.implicit.norm())
    late = ScoreFunction("exact", delay=1)
    before, state = late(oracle, x, response, evaluation, ScoreState())
    after, _ = late(oracle, x, response, oracle.evaluate(x, response), state)
    assert float(before.implicit.norm()) == 0.0
    assert float(after.implicit.norm()) > 0.0


def test_the_clip_shortens_what_is_long_and_nothing_else():
    """A clip that also lengthened would make noise of an implicit part that is small; without a direct part there is nothing to compare with."""
    direct, long = torch.tensor([3.0, -4.0]), torch.tensor([40.0, 30.0])
    objective = SimpleNamespace()
    torch.testing.assert_close(limited(long, direct, 2.0, objective), torch.tensor([8.0, 6.0]))
    for given in (0.01 * long, 0.2 * long, 0.0 * long):
        torch.testing.assert_close(limited(given, direct, 2.0, objective), given)
    assert torch.equal(limited(0.0 * long, 0.0 * direct, 2.0, objective), 0.0 * long)
    assert limited(long, direct, None, objective) is long
    assert limited(long, 0.0 * direct, 2.0, SimpleNamespace(direct=False)) is long


def test_skipped_pairs_count_as_zero():
    """f divides by all queries: a skipped one has l = 0 and no gradient."""
    problem = problems.preference(0)
    x, response, oracle = setting(problem)
    fragments = oracle.evaluate(x, response).fresh.fragments
    skipped = replace(fragments, outcome=torch.full_like(fragments.outcome, torch.nan))
    assert float(problem.objective.loss(problem, x, skipped).abs().sum()) == 0.0


def test_ridge_critic_finds_a_signal_and_ignores_noise():
    """L on continuous pairs: a loss that depends on the state visited is recovered, pure noise gives a nearly flat L."""
    generator = torch.Generator().manual_seed(0)
    tuples, length = 300, 10
    place = torch.randn(tuples, 2, 1, 1, generator=generator).expand(-1, -1, length, -1)
    states = torch.cat([place, torch.randn(tuples, 2, length, 2, generator=generator)], -1)
    actions = torch.randn(tuples, 2, length, 1, generator=generator)
    alive = torch.ones(tuples, 2, length, dtype=torch.bool)
    fragments = Fragments(states, actions, alive, torch.zeros(tuples))
    probe, still = torch.zeros(50, 3), torch.zeros(50, 1)
    probe[:, 0] = torch.linspace(-2, 2, 50)
    critic = RidgeCritic()
    signal = torch.tanh(place[:, :, 0, 0]).sum(-1) + 0.1 * torch.randn(tuples, generator=generator)
    found = critic.evaluate(critic.fit(None, fragments, signal, generator), probe, still)
    assert float(torch.corrcoef(torch.stack([found, torch.tanh(probe[:, 0])]))[0, 1]) > 0.95
    noise = critic.evaluate(critic.fit(None, fragments, torch.randn(tuples, generator=generator), generator), probe, still)
    assert float(noise.std()) < 0.1 < float(found.std())
    for count, flat in ((4, True), (300, False)):  # with fewer than five tuples there is no fifth to choose the penalty on
        few = take(fragments, slice(count))
        fitted = RidgeCritic(penalties=(1.0, 1e8)).fit(None, few, signal[:count], generator)
        assert (float(fitted.weights.norm()) < 1e-3) == flat
    torch.testing.assert_close(
        *(critic.evaluate(fitted, torch.full((1, 3), far), still[:1]) for far in (1e2, 1e4))
    )  # nothing is known there


@pytest.mark.parametrize("pixels", [False, True])
def test_ridge_critic_reads_choices_and_pixels(pixels):
    """A loss that depends on which action is taken where must be recovered from numbers of actions, and from frames that are kept once."""
    generator = torch.Generator().manual_seed(0)
    tuples, length, world = 400, 5, SimpleNamespace(action_count=3)
    actions = torch.randint(3, (tuples, 2, 1), generator=generator).expand(-1, -1, length)
    place = torch.randint(2, (tuples, 2, 1), generator=generator).expand(-1, -1, length)
    dots = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    dots[0, 0, :6, :6] = dots[1, 0, 6:, 6:] = 255
    table = FrameStacks((dots.flatten(0, 1),), torch.tensor([[0] * 4, [1] * 4])) if pixels else torch.eye(2)
    better = ((actions == 1) == (place == 1)).float()
    loss = better[..., 0].sum(-1) + 0.1 * torch.randn(tuples, generator=generator)
    fragments = Fragments(table[place], actions, torch.ones_like(actions, dtype=torch.bool), torch.zeros(tuples))
    critic = RidgeCritic()
    fitted = critic.fit(SimpleNamespace(world=world), fragments, loss, generator)
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    found = critic.evaluate(fitted, table[cells[:, 0]], cells[:, 1])
    truth = ((cells[:, 1] == 1) == (cells[:, 0] == 1)).float()
    assert float((found - found.mean() - truth + truth.mean()).abs().max()) < 0.2


@pytest.mark.parametrize(
    "options", [{"sensitivity": "own_tail"}, {"window": "late"}, {"batch": 0}, {"history": 0}, {"clip": 0.0}, {"delay": -1}]
)
def test_bad_options_are_refused(options):
    """A misspelt sensitivity must not silently become DRLHF."""
    with pytest.raises(InvalidProblem):
        ScoreFunction(**options)


def test_a_foreign_follower_is_refused():
    """A policy that is not soft-optimal has no scores Σ∇(Q−V)/τ: the implicit term must refuse it, DRLHF need not."""
    problem = problems.preference(0)
    x, response, oracle = setting(problem)
    hard = replace(response, soft=False)
    evaluation = oracle.evaluate(x, hard)
    with pytest.raises(UnsupportedProblem, match="soft"):
        ScoreFunction("exact")(oracle, x, hard, evaluation, ScoreState())
    ScoreFunction(None)(oracle, x, hard, evaluation, ScoreState())
