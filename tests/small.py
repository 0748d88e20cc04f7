"""Registered ids and their agents at their smallest, for the tables that go through all of them."""

from __future__ import annotations

import inspect

from bilevel_gym.agents.making import RECIPES, make_agent, make_env
from bilevel_gym.registration import CATALOGUE

__all__ = ["small_agent", "small_env"]

FEW = {"updates_per_step": 2, "warmup_updates": 2, "batch": 4}


def small_env(name):
    """An id in its smallest preset."""
    return make_env(name, {"preset": "tiny"} if CATALOGUE[name].simulated else {})


def small_agent(agent, name, env):
    """A named agent; on simulators, where an update goes through a network, it makes few of them."""
    takes = inspect.signature(RECIPES[agent]).parameters
    return make_agent(agent, env, {key: value for key, value in FEW.items() if key in takes and CATALOGUE[name].simulated})
