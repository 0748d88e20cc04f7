"""Every regularizer: conjugate, policy, Hessian product and Lipschitz constant against each other, and in the solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelProblem, checkpoint
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import backup
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import KullbackLeibler, Shannon, Tsallis
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.types import Budget
from bilevel_gym.worlds import TabularWorld
from tests import problems

STATES, ACTIONS, TAU = 5, 4, 0.4
REFERENCE = problems.rows(np.random.default_rng(7), STATES, ACTIONS)
FORBIDDEN = REFERENCE * (np.arange(ACTIONS) != np.arange(STATES)[:, None])
FORBIDDEN /= FORBIDDEN.sum(-1, keepdims=True)

REGULARIZERS = {
    "shannon": Shannon(TAU),
    "kl": KullbackLeibler(TAU, REFERENCE),
    "kl-forbidden": KullbackLeibler(TAU, FORBIDDEN),
    "tsallis": Tsallis(TAU),
}
each = pytest.mark.parametrize("regularizer", REGULARIZERS.values(), ids=REGULARIZERS)

EXACT = SoftPolicyIteration(tolerance=1e-13)


def values(seed=0, scale=1.0):
    """Random q [B, S, A]."""
    return scale * torch.as_tensor(np.random.default_rng(seed).standard_normal((3, STATES, ACTIONS)))


@each
def test_conjugate_is_the_maximum(regularizer):
    """τΩ*(q/τ) = max_p ⟨p, q⟩ − τΩ(p), attained at π: an error in any of conjugate, policy and penalty parts the two sides."""
    q = values()
    policy = regularizer.policy(q)
    torch.testing.assert_close(policy.sum(-1), torch.ones_like(q[..., 0]), rtol=0, atol=1e-14)
    assert bool((policy >= 0).all())
    found = regularizer.conjugate(q)
    torch.testing.assert_close(found, (policy * q).sum(-1) - regularizer.penalty(policy), rtol=0, atol=1e-13)
    rng = np.random.default_rng(1)
    for near in (0.0, 0.9, 0.999):
        other = torch.as_tensor(problems.rows(rng, 200, 3, STATES, ACTIONS))
        if isinstance(regularizer, KullbackLeibler):
            other = other * (regularizer.reference > 0)
            other = other / other.sum(-1, keepdim=True)
        other = near * policy + (1 - near) * other
        assert bool(((other * q).sum(-1) - regularizer.penalty(other) <= found + 1e-13).all())


@each
def test_derivatives_of_the_conjugate(regularizer):
    """∇Ω* is the policy and ∇²Ω* the Hessian product, whether by backward passes or by central differences."""
    q, h = values(2), values(3)
    leaf = q.clone().requires_grad_()
    (by_q,) = torch.autograd.grad(regularizer.conjugate(leaf).sum(), leaf)
    policy = regularizer.policy(q)
    torch.testing.assert_close(by_q, policy, rtol=0, atol=1e-13)
    product = regularizer.hessian_product(policy, h) / regularizer.temperature
    (by_autograd,) = torch.autograd.grad((regularizer.policy(leaf) * h).sum(), leaf)
    torch.testing.assert_close(by_autograd, product, rtol=0, atol=1e-13)
    step = 1e-6
    differences = (regularizer.policy(q + step * h) - regularizer.policy(q - step * h)) / (2 * step)
    torch.testing.assert_close(differences, product, rtol=0, atol=1e-8)


@each
def test_extreme_logits(regularizer):
    """Logits of 1e5 at τ = .001: what is near the maximum is answered to 9 digits, what is far off overflows nothing."""
    cold = regularizer.at(0.001)
    assert cold.temperature == 0.001
    near = values(4, 0.001)
    torch.testing.assert_close(cold.policy(near + 100.0), cold.policy(near), rtol=0, atol=1e-9)
    torch.testing.assert_close(cold.conjugate(near + 100.0), cold.conjugate(near) + 100.0, rtol=0, atol=1e-12)
    leaf = values(5, 100.0).requires_grad_()
    policy, value = cold.policy(leaf), cold.conjugate(leaf)
    torch.testing.assert_close(policy.sum(-1), torch.ones_like(value), rtol=0, atol=1e-14)
    reached = (leaf if not isinstance(cold, KullbackLeibler) else leaf.masked_fill(cold.reference == 0, -torch.inf)).amax(-1)
    torch.testing.assert_close(value, reached, rtol=0, atol=0.01)
    for output in (policy.square(), value, cold.penalty(policy)):
        assert bool(torch.autograd.grad(output.sum(), leaf, retain_graph=True)[0].isfinite().all())


@each
def test_lipschitz_constant(regularizer):
    """‖π(q) − π(q')‖_2 ≤ L ‖q − q'‖_∞, near and far: the certificate of the policy stands on it."""
    q = values(6)
    for seed in range(200):
        shift = values(100 + seed, 10.0 ** -(seed % 5))
        moved = (regularizer.policy(q + shift) - regularizer.policy(q)).square().sum(-1).sqrt()
        assert bool((moved <= regularizer.lipschitz(ACTIONS) * shift.abs().amax(-1) * (1 + 1e-9)).all())


def test_lipschitz_constant_of_sparsemax_is_attained():
    """Half of the actions up, half down: √A/τ is the best constant for an even A, and softmax's would be too small."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    moved = float((Tsallis(TAU).policy(0.01 * signs) - Tsallis(TAU).policy(0 * signs)).norm())
    np.testing.assert_allclose(moved, Tsallis(TAU).lipschitz(4) * 0.01)


def test_sparsemax_closed_forms():
    """Two actions: ½ + (q₁ − q₂)/2τ, clipped; any number: the one support that satisfies the optimality conditions."""
    gap = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    policy = Tsallis(TAU).policy(torch.stack([gap, torch.zeros_like(gap)], -1))
    torch.testing.assert_close(policy[:, 0], (0.5 + gap / (2 * TAU)).clamp(0, 1), rtol=0, atol=1e-15)
    for z in values(8).flatten(0, 1) / TAU:
        found = []
        for chosen in range(1, 2**ACTIONS):
            support = torch.tensor([chosen >> a & 1 == 1 for a in range(ACTIONS)])
            threshold = (z[support].sum() - 1) / support.sum()
            if bool((z[support] > threshold).all()) and bool((z[~support] <= threshold).all()):
                found.append(torch.where(support, z - threshold, 0.0))
        assert len(found) == 1
        torch.testing.assert_close(Tsallis(TAU).policy(z * TAU), found[0], rtol=0, atol=1e-14)


def test_penalties_in_closed_form():
    """Ω is 0 at every vertex for both entropies, and lowest at the uniform policy: its constant is part of V, of bounds and of PBRL's penalty."""
    uniform = torch.full((ACTIONS,), 1 / ACTIONS, dtype=torch.float64)
    for regularizer, lowest in ((Shannon(TAU), -TAU * np.log(ACTIONS)), (Tsallis(TAU), -TAU * (1 - 1 / ACTIONS) / 2)):
        assert bool((regularizer.penalty(torch.eye(ACTIONS, dtype=torch.float64)) == 0).all())
        np.testing.assert_allclose(regularizer.penalty(uniform), lowest, rtol=1e-14)


def test_a_uniform_reference_is_shannon():
    """KL to the uniform policy is Shannon's entropy plus log A: τ log μ misplaced, or its sign, shows here."""
    q, uniform = values(), KullbackLeibler(TAU, np.full(ACTIONS, 1 / ACTIONS))
    constant = TAU * np.log(ACTIONS)
    torch.testing.assert_close(uniform.policy(q), Shannon(TAU).policy(q), rtol=0, atol=1e-14)
    torch.testing.assert_close(uniform.conjugate(q), Shannon(TAU).conjugate(q) - constant, rtol=0, atol=1e-14)
    torch.testing.assert_close(uniform.penalty(uniform.policy(q)), Shannon(TAU).penalty(uniform.policy(q)) + constant, rtol=0, atol=1e-14)


def test_forbidden_actions_are_never_played():
    """Where μ is zero π is exactly zero, nothing is NaN there, forwards or backwards, and any other policy is infinitely expensive."""
    regularizer = REGULARIZERS["kl-forbidden"]
    q = values(9).requires_grad_()
    policy = regularizer.policy(q)
    assert bool((policy[..., regularizer.reference == 0] == 0).all())
    torch.testing.assert_close(
        policy,
        torch.softmax(q / TAU, -1) * regularizer.reference / (torch.softmax(q / TAU, -1) * regularizer.reference).sum(-1, keepdim=True),
    )
    leaf = policy.detach().requires_grad_()
    (by_policy,) = torch.autograd.grad(regularizer.penalty(leaf).sum(), leaf)
    inside = policy > 0
    expected = TAU * (1 + (policy[inside] / regularizer.reference.expand_as(policy)[inside]).log())
    torch.testing.assert_close(by_policy[inside], expected.detach())
    assert bool((by_policy[~inside] == 0).all())
    assert bool(regularizer.penalty(torch.full((STATES, ACTIONS), 1 / ACTIONS, dtype=torch.float64))[:ACTIONS].isinf().all())


@pytest.mark.parametrize("shape", [(ACTIONS,), (STATES, ACTIONS), (3, STATES, ACTIONS)], ids=["A", "SA", "CSA"])
def test_reference_for_all_states_each_state_or_each_context(shape):
    """A reference of fewer axes is the same for all that it does not name."""
    reference = problems.rows(np.random.default_rng(3), *shape)
    full = KullbackLeibler(TAU, np.broadcast_to(reference, (3, STATES, ACTIONS)))
    torch.testing.assert_close(KullbackLeibler(TAU, reference).policy(values()), full.policy(values()))


def test_a_reference_survives_cooling_and_a_checkpoint():
    """Another temperature, or a file, keeps μ; a list is as good as a tensor."""
    regularizer = KullbackLeibler(TAU, FORBIDDEN.tolist())
    torch.testing.assert_close(regularizer.reference, torch.as_tensor(FORBIDDEN))
    for other in (regularizer.at(0.1), checkpoint.unpack(checkpoint.pack(regularizer.at(0.1)))):
        assert torch.equal(other.reference, regularizer.reference)
        assert torch.equal(other.policy(values()), KullbackLeibler(0.1, FORBIDDEN).policy(values()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KullbackLeibler(0.0, REFERENCE), "temperature is 0.0"),
        (lambda: Tsallis(float("inf")), "temperature is inf"),
        (lambda: Shannon(1.0).at(-1.0), "temperature is -1.0"),
        (lambda: KullbackLeibler(1.0, [[0.5, 0.5], [0.0, 0.0]]), "empty support"),
        (lambda: KullbackLeibler(1.0, [1.5, -0.5]), "negative"),
        (lambda: KullbackLeibler(1.0, [float("nan"), 1.0]), "not a number"),
        (lambda: KullbackLeibler(1.0, [[0.5, 0.5], [0.5, 0.500001]]), "sums to 1.000001"),
        (lambda: KullbackLeibler(1.0, [float("inf"), 0.6]), "sums to inf"),
        (lambda: KullbackLeibler(1.0, 1.0), r"\[A\], \[S, A\] or \[C, S, A\]"),
        (lambda: KullbackLeibler(1.0, np.zeros((2, 0))), r"\[A\], \[S, A\] or \[C, S, A\]"),
        (lambda: problems.linear(0).under(KullbackLeibler(1.0, REFERENCE)), "same states and actions"),
        (lambda: REGULARIZERS["kl"].conjugate(values()[:, :2]), "same states and actions"),
    ],
)
def test_bad_regularizers_are_refused(make, words):
    """A reference that is no policy, or one of another world, must be refused where it enters."""
    with pytest.raises(InvalidProblem, match=words):
        make()


# ---------------------------------------------------------------------------------------------- in the solvers


@pytest.mark.parametrize("kind", problems.UNDER)
def test_both_solvers_find_the_fixed_point(kind):
    """V = τΩ*((r + γPV)/τ) and its policy, by sweeps and by Newton: conjugate and policy must belong to the same Ω."""
    for seed in range(6):
        problem = problems.UNDER[kind](problems.quadratic(seed))
        x = problems.point(problem, seed)
        for solver in (EXACT, SoftValueIteration(tolerance=1e-13)):
            response = solver.solve(problem, x)
            q = backup(problem.at(x), response.value)
            assert response.converged
            torch.testing.assert_close(problem.regularizer.conjugate(q), response.value, rtol=0, atol=1e-11)
            torch.testing.assert_close(problem.regularizer.policy(q), response.policy, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", problems.UNDER)
@pytest.mark.parametrize("temperature", [1.0, 0.03, 0.001])
def test_newton_is_monotone_from_any_start(kind, temperature):
    """F is a maximum over policies, so Newton's iterates rise after the first, cold or not, also where sparsemax has kinks (γ = .99)."""
    for seed in range(8):
        problem = problems.UNDER[kind](problems.quadratic(seed, discount=0.99, temperature=temperature))
        x = problems.point(problem, seed)
        start = EXACT.start(problem)
        for warm in (start, EXACT.solve(problem, -2 * x)):
            response, previous = warm, None
            for _ in range(12):
                response = SoftPolicyIteration(sweeps=1).solve(problem, x, warm=response, budget=Budget(steps=1))
                assert previous is None or bool((response.value >= previous - 1e-9).all())
                if response.converged:
                    break
                previous = response.value
            assert response.converged


def undecided(tied, actions, kind):
    """In many states half of the actions lead to bliss, half to misery, and pay so that all are equal: policies are most sensitive there."""
    discount, temperature = 0.99, 0.01
    transition, reward = np.zeros((tied + 2, actions, tied + 2)), np.zeros((tied + 2, actions))
    transition[:tied, ::2, tied] = transition[:tied, 1::2, tied + 1] = 1.0
    transition[tied, :, tied] = transition[tied + 1, :, tied + 1] = 1.0
    reward[tied], reward[tied + 1] = 1.0, -1.0
    reward[:tied, ::2], reward[:tied, 1::2] = -discount / (1 - discount), discount / (1 - discount)
    world = TabularWorld(transition, np.full(tied + 2, 1 / (tied + 2)), discount)
    problem = BilevelProblem(world, LinearReward(reward[..., None]), Shannon(temperature), QuadraticObjective())
    return problems.UNDER[kind](problem) if kind != "kl" else problem.under(KullbackLeibler(temperature, np.full(actions, 1 / actions)))


@pytest.mark.parametrize(("kind", "actions", "sharp"), [("shannon", 2, 0.3), ("kl", 2, 0.3), ("tsallis", 2, 0.7), ("tsallis", 6, 0.7)])
def test_certified_policy_error_where_it_is_largest(kind, actions, sharp):
    """‖π − π*‖² ≤ ε is certified from the residual by each regularizer's Lipschitz constant; at these ties a smaller one certifies too early."""
    problem, x = undecided(20, actions, kind), torch.ones(1, dtype=torch.float64)
    response = SoftValueIteration(policy_tolerance=1e-3).solve(problem, x)
    distance = float((response.policy - EXACT.solve(problem, x).policy).square().sum())
    assert response.converged
    assert sharp * 1e-3 < distance <= 1e-3


@pytest.mark.parametrize("kind", problems.UNDER)
@pytest.mark.parametrize("solver", [SoftValueIteration, SoftPolicyIteration])
def test_certified_policy_error(kind, solver):
    """On random problems, too, the certified distance must bound the true one."""
    for seed in range(8):
        problem = problems.UNDER[kind](problems.quadratic(seed, temperature=0.1))
        x = problems.point(problem, seed)
        response = solver(policy_tolerance=1e-4, tolerance=None).solve(problem, x)
        assert response.converged
        assert float((response.policy - EXACT.solve(problem, x).policy).square().sum()) <= 1e-4
