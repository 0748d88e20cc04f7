"""Agents that act on the outer environment: a few classes, and a named constructor a paper."""

from bilevel_gym.agents.callbacks import Checkpointer, CSVLogger, StopOnSignal, TensorBoardLogger, together
from bilevel_gym.agents.cma_es import CMAES
from bilevel_gym.agents.evaluation import evaluate_env, evaluate_policy
from bilevel_gym.agents.hypergradient_agent import HypergradientAgent, Optimizer
from bilevel_gym.agents.loop import Agent, Callback
from bilevel_gym.agents.recipes import aid, cma_es, drlhf, exact, hpgd, m_sobirl, parl, pbrl, random_search, sobirl, stoc_sobirl, zero_order
from bilevel_gym.agents.runs import Run, RunSpec
from bilevel_gym.agents.search import RandomSearch, Search, SearchAgent

__all__ = [
    "CMAES",
    "Agent",
    "CSVLogger",
    "Callback",
    "Checkpointer",
    "HypergradientAgent",
    "Optimizer",
    "RandomSearch",
    "Run",
    "RunSpec",
    "Search",
    "SearchAgent",
    "StopOnSignal",
    "TensorBoardLogger",
    "aid",
    "cma_es",
    "drlhf",
    "evaluate_env",
    "evaluate_policy",
    "exact",
    "hpgd",
    "m_sobirl",
    "parl",
    "pbrl",
    "random_search",
    "sobirl",
    "stoc_sobirl",
    "together",
    "zero_order",
]
