"""The preset ``aistats2025`` and the command beside it, line by line against the published settings of the SoBiRL authors' Atari run."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.agents.making import make_agent
from bilevel_gym.cli import _options
from bilevel_gym.envs import PIXELS, atari_preference
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.preferences import PreferenceBuffer
from bilevel_gym.types import Evaluation, Fragments

pytest.importorskip("ale_py")
SOLVER = PIXELS["aistats2025"].discrete
COMMAND = re.search(r"bilevel-gym train .*?\n\n", atari_preference.__doc__ or "", re.DOTALL)


def arguments() -> dict[str, Any]:
    """What the documented command tells the agent."""
    assert COMMAND is not None
    words = shlex.split(COMMAND[0])
    return _options("--agent-set", [after for word, after in itertools.pairwise(words) if word == "--agent-set"])


def queue(pairs: int) -> Evaluation:
    """An evaluation whose queue has so many pairs."""
    zeros = torch.zeros(pairs, 2, 1)
    held = Fragments(zeros, zeros, zeros == 0, zeros[:, 0, 0])
    return Evaluation(value=torch.zeros(()), memory=PreferenceBuffer(3000, held))


@pytest.fixture(scope="module")
def published() -> Any:
    """BeamRider as the command makes it, with the agent that the command makes."""
    env = gym.make("bilevel/BeamRiderPreference-v0", preset="aistats2025")
    agent = make_agent("sobirl", env, arguments())
    yield env.unwrapped, agent
    env.close()


TABLE: dict[str, tuple[Any, Any]] = {
    # the follower
    "convolutions": ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], lambda e, a: [tuple(layer) for layer in network(e).layers]),
    "hidden units": ((512,), lambda e, a: network(e).hidden),
    "Adam's ε": (1e-4, lambda e, a: e.solver.adam_epsilon),
    "learning rate": (1e-4, lambda e, a: e.solver._rate(0)),
    "half of it halfway": (0.5e-4, lambda e, a: e.solver._rate(4_000_000)),
    "none of it after 8e6 steps": (0.0, lambda e, a: e.solver._rate(8_000_000)),
    "buffer": (1_000_000, lambda e, a: e.solver.capacity),
    "γ": (0.99, lambda e, a: e.problem.world.discount),
    "batch": (64, lambda e, a: e.solver.batch_size),
    "learning starts": (20_000, lambda e, a: e.solver.learning_starts),
    "steps of an update": (4, lambda e, a: 1 / e.solver.updates_per_step),
    "environments": (1, lambda e, a: e.solver.num_envs),
    "steps of a round": (4, lambda e, a: e.solver.update_every),
    "hard copies": (1.0, lambda e, a: e.solver.polyak),
    "steps of a target copy": (8000, lambda e, a: e.solver.target_every / e.solver.updates_per_step),
    "entropy aimed at, of log A": (0.89, lambda e, a: e.solver.target_entropy),
    "steps of an upper step": (10_000, lambda e, a: e.solver.steps),
    # r_x
    "its convolutions": ([(16, 7, 3), (16, 5, 2), (16, 3, 1), (16, 3, 1)], lambda e, a: [tuple(layer) for layer in plain(e).layers]),
    "its slope": (0.01, lambda e, a: plain(e).slope),
    "its hidden units": (64, lambda e, a: plain(e).hidden),
    "its outputs": (9, lambda e, a: plain(e).outputs),
    "its norm": ("BatchNormalized", lambda e, a: type(e.problem.reward.network).__name__),
    "its dropout": (0.5, lambda e, a: e.problem.reward.network.dropout),
    "its clip": (("clip", 1.0), lambda e, a: (e.problem.reward.squash, e.problem.reward.scale)),
    # the upper level
    "fragments": (25, lambda e, a: e.problem.objective.length),
    "initial pairs": (600, lambda e, a: e.problem.objective.initial_pairs),
    "queue": (3000, lambda e, a: e.problem.objective.capacity),
    "pairs after 4e6 steps": (3000, lambda e, a: 600 + e.problem.objective.pairs * 4_000_000 // e.solver.steps),
    "labels are drawn": ((1.0, 0.0, 0.0), lambda e, a: [judge(e).rationality, judge(e).equal_within, judge(e).mistake]),
    "from clipped rewards": (True, lambda e, a: e.problem.world.clip_rewards),
    # the agent
    "AdamW": ((3e-4, 0.01), lambda e, a: [a.optimizer.lr, a.optimizer.weight_decay]),
    "pairs of a batch": (64, lambda e, a: a.estimator.batch),
    "one epoch of an upper step": ((10, 24, 47), lambda e, a: [a.updates_per_step(queue(pairs)) for pairs in (600, 1536, 3000)]),
    "warm-up epochs": (512, lambda e, a: a.warmup_updates / a.updates_per_step(queue(600))),
    "sensitivity": (("one_step", True), lambda e, a: (a.estimator.sensitivity, a.estimator.stale)),
    "steps without an implicit term": (100_000, lambda e, a: a.estimator.delay * e.solver.steps),
    "its clip in the agent": (None, lambda e, a: a.estimator.clip),
}
"""What is published, and where it is here."""


def network(env: Any) -> Any:
    """The actor's."""
    return env.solver._setting(env.problem).actor


def plain(env: Any) -> Any:
    """The layers of r_x."""
    return env.problem.reward.network.convolutions


def judge(env: Any) -> Any:
    """The teacher."""
    return env.problem.objective.teacher


@pytest.mark.parametrize("setting", TABLE)
def test_is_as_published(published: Any, setting: str) -> None:
    """Without it the preset could drift away from the run that it is named after."""
    wanted, found = TABLE[setting]
    here = found(*published)
    assert (tuple(here) if isinstance(wanted, tuple) else here) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)


def test_others_are_told_nothing_of_it(published: Any) -> None:
    """Without it every agent's x would decay, or an update for each batch of no size would be asked for."""
    for recipe in (agents.sobirl, agents.drlhf):
        agent = recipe(published[0])
        assert (agent.optimizer.weight_decay, agent.updates_per_step) == (0.0, 50)
        assert recipe(published[0], weight_decay=0.1, updates_per_step=None).optimizer.weight_decay == 0.1
        with pytest.raises(InvalidProblem, match="batch"):
            recipe(published[0], updates_per_step=None, batch=None)
        with pytest.raises(InvalidProblem, match="updates_per_step"):
            recipe(published[0], updates_per_step=0)


def test_the_implicit_part_is_shorter_on_pixels(published: Any) -> None:
    """Without it r_x would be a constant at its bound after some upper steps of a first run on Atari; or the study on flat tasks not be ours any more."""
    pixels, flat = published[0], gym.make("bilevel/CartPolePreference-v0", preset="tiny")
    for env, clip in ((pixels, 0.1), (flat, 1.0)):
        assert agents.sobirl(env).estimator.clip == clip
        assert agents.hpgd(env).estimator.clip == clip
        assert agents.stoc_sobirl(env, sensitivity="one_step", window="frozen").estimator.inner.clip == 0.1  # one update a look
        assert [agents.sobirl(env, clip=given).estimator.clip for given in (None, 0.7)] == [None, 0.7]
        assert agents.stoc_sobirl(env, sensitivity="one_step", window="frozen", implicit_clip=0.7).estimator.inner.clip == 0.7
    flat.close()


def test_runs_when_made_small() -> None:
    """Without it nobody would see before they rent a GPU that the parts of the preset do not fit together."""
    sizes = {"initial_pairs": 3, "pairs": 2, "held_out_pairs": 2, "steps": 30, "trajectories": 2}
    follower = replace(SOLVER, steps=24, learning_starts=12, batch_size=4, capacity=50, target_every=2)
    env = gym.make("bilevel/BeamRiderPreference-v0", preset="aistats2025", horizon=30, objective=sizes, solver=follower)
    env.reset(seed=0)
    agent = agents.sobirl(env, **{**arguments(), "warmup_updates": 1, "batch": 4, "delay": 1})
    begun = env.unwrapped.x.clone()
    agent.learn(2)
    assert agent.x_updates == 1 + 1 + 2  # the queue has three pairs, then five, and a batch has four
    assert agent.hypergradient is not None
    assert float(agent.hypergradient.implicit.norm()) > 0, "it has set in"
    assert not torch.equal(env.unwrapped.x, begun)
    assert env.unwrapped.response.temperature != 1.0, "τ is tuned"
    env.close()
