"""An agent goes on from a checkpoint of the same parts only."""

from __future__ import annotations

import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from bilevel_gym.agents import HypergradientAgent
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.agents.identity import described, refuse_other
from bilevel_gym.errors import CheckpointError
from bilevel_gym.hypergradients import Exact, Implicit, Momentum, ScoreFunction, TableCritic

ESTIMATORS = {
    "step_size": (Implicit(step_size=0.5), Implicit()),
    "initial": (Implicit(initial=np.zeros(10)), Implicit(initial=np.ones(10))),
    "inner.window": (Momentum(ScoreFunction("critic", "frozen")), Momentum(ScoreFunction("critic", "reset"))),
    "critic": (ScoreFunction("critic", critic=TableCritic()), ScoreFunction("critic")),
    "critic.prior": (ScoreFunction("critic", critic=TableCritic(2.0)), ScoreFunction("critic", critic=TableCritic(3.0))),
}


@pytest.mark.parametrize("field", ESTIMATORS)
def test_an_estimator_of_other_fields_is_refused(field):
    """Without it the w_k of one ξ would be carried on under another, and the run be neither the one nor the other."""
    first, second = ESTIMATORS[field]
    env = gym.make("bilevel/TabularPreference-v0")
    env.reset(seed=0)

    def made(estimator):
        return HypergradientAgent(env, estimator, partial(GradientDescent, lr=0.1))

    state, other = made(first).get_state(), made(second)
    with pytest.raises(
        CheckpointError, match=rf"another {type(first).__name__} than this agent's: {re.escape(field)} \(.* there, .* here\)"
    ):
        other.set_state({**state, "x_updates": 7})
    assert other.x_updates == 0
    made(first).set_state(state)
    with pytest.raises(CheckpointError, match=f"of {type(first).__name__} in dimension 8, this agent is Exact"):
        made(Exact()).set_state(state)


def test_components_of_somebodys_own_are_known_by_their_class():
    """An estimator that is no dataclass can still be resumed, as before, and is told from another class."""

    class Mine:
        pass

    class Other:
        pass

    refuse_other((described(Mine()), 3), (described(Mine()), 3))
    with pytest.raises(CheckpointError, match="of Mine in dimension 3, this agent is Other"):
        refuse_other((described(Mine()), 3), (described(Other()), 3))
    with pytest.raises(CheckpointError, match="of Mine in dimension 3, this agent is Exact"):
        refuse_other((described(Mine()), 3), (described(Exact()), 3))
