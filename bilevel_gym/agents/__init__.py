"""Agents that act on the outer environment: one class, and a named constructor a paper."""

from bilevel_gym.agents.hypergradient_agent import Callback, HypergradientAgent, Optimizer
from bilevel_gym.agents.recipes import exact, m_sobirl

__all__ = ["Callback", "HypergradientAgent", "Optimizer", "exact", "m_sobirl"]
