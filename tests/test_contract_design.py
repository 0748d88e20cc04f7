"""Contract design: the dynamic programme's least payments, and a linear programme for every plan of the agent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from bilevel_gym import agents
from bilevel_gym.envs import ContractTree, contract_design, draw_contract_tree
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.testing import check_hypergradient, phi


def best_commitment(tree):
    """The largest profit under any contract: for each plan of the agent the cheapest payments that make it optimal, all nodes at once."""
    states, outcomes, costs = len(tree.effort), tree.outcomes, tree.costs
    best = -np.inf
    for plan in itertools.product((0, 1), repeat=states):
        agent, principal = np.zeros((2, 2 * states + 1, 2 * states + 1))  # affine in x: coefficients, then the constant
        less, slack = [], []
        for s in reversed(range(states)):
            options = tree.discount * outcomes @ agent[2 * s + 1 : 2 * s + 3]
            options[:, 2 * s : 2 * s + 2] += outcomes
            options[:, -1] -= costs[s]
            chosen, other = options[plan[s]], options[1 - plan[s]]
            less.append(other[:-1] - chosen[:-1])
            slack.append(chosen[-1] - other[-1])
            principal[s] = tree.discount * outcomes[plan[s]] @ principal[2 * s + 1 : 2 * s + 3]
            principal[s, 2 * s : 2 * s + 2] -= outcomes[plan[s]]
            principal[s, -1] += outcomes[plan[s]] @ tree.worth[s]
            agent[s] = chosen
        found = linprog(-principal[0, :-1], A_ub=np.array(less), b_ub=slack, bounds=(0, None))
        if found.status == 0:
            best = max(best, principal[0, -1] - found.fun)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_certificate_by_dynamic_programming(seed):
    """As τ → 0, φ at the least payments plus a margin is the programme's value: a misplaced payment, cost or outcome breaks it."""
    tree = draw_contract_tree(np.random.default_rng(seed))
    _, value = tree.least_payments()
    for margin in (0.05, 0.01):
        x, with_margin = tree.least_payments(margin)
        assert value - 10 * margin < with_margin < value
        errors = [
            abs(float(phi(tree.problem(temperature=tau, max_payment=1.0), torch.as_tensor(x))) + with_margin)
            for tau in (margin / 3, margin / 10, margin / 30)
        ]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-10


def test_without_a_margin_the_agent_is_indifferent():
    """At least payment itself φ does not tend to the value, whatever τ: this is why the certificate has a margin."""
    tree = draw_contract_tree(np.random.default_rng(0))
    x, value = tree.least_payments()
    for tau in (1e-2, 1e-4):
        assert -float(phi(tree.problem(temperature=tau, max_payment=1.0), torch.as_tensor(x))) < value - 0.03


@pytest.mark.parametrize("seed", range(4))
def test_no_contract_does_much_better(seed):
    """The programme is within 2 % of the best contract of all (commitment to later rents gains a little), found by linear programmes."""
    tree = draw_contract_tree(np.random.default_rng(seed), depth=2)
    best, (_, value) = best_commitment(tree), tree.least_payments()
    assert 0.98 * best <= value <= best + 1e-9
    if seed == 0:
        single = ContractTree(tree.worth[:1], tree.effort[:1], tree.accuracy, tree.discount)
        np.testing.assert_allclose(single.least_payments()[1], best_commitment(single), atol=1e-9)


def test_exact_gradient():
    """x in the reward and in f: a payment that the principal does not pay, or the agent does not get, breaks it."""
    env = contract_design(depth=2, temperature=0.05)
    env.reset(seed=4)
    check_hypergradient(env.problem, env.x, Exact(), tolerance=1e-7)


def test_reference_value():
    """The docstring's numbers for seed 0: descent at τ = .02 ends above the contract of the programme with a margin."""
    env = contract_design()
    env.reset(seed=0)
    before = float(env.evaluation.value)
    agents.exact(env, learning_rate=0.1).learn(200)
    np.testing.assert_allclose((before, float(env.evaluation.value)), (-0.6251, -1.3297), atol=1e-4)
    x, _ = draw_contract_tree(np.random.default_rng(0)).least_payments(0.05)
    assert float(phi(env.problem, torch.as_tensor(x))) > float(env.evaluation.value) + 0.02


def test_bad_trees_are_refused():
    """An incomplete tree, or one in which aiming changes nothing, has no contract worth looking for."""
    with pytest.raises(InvalidProblem, match=r"2\^depth"):
        ContractTree(np.ones((2, 2)), np.ones(2), 0.8, 0.9)
    with pytest.raises(InvalidProblem, match="make a difference"):
        contract_design(accuracy=0.5)
    with pytest.raises(InvalidProblem, match="depth is 11"):
        contract_design(depth=11)
    with pytest.raises(InvalidProblem, match="box"):
        contract_design(max_payment=0.0)
