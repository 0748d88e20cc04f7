"""Agents that act on the outer environment: a few classes, and a named constructor a paper."""

from bilevel_gym.agents.callbacks import (
    BestKeeper,
    Checkpointer,
    CSVLogger,
    Evaluator,
    StopOnBudget,
    StopOnSignal,
    TensorBoardLogger,
    WandbLogger,
    together,
)
from bilevel_gym.agents.ceiling import Ceiling
from bilevel_gym.agents.cma_es import CMAES
from bilevel_gym.agents.evaluation import evaluate_env, evaluate_policy
from bilevel_gym.agents.hypergradient_agent import HypergradientAgent, Optimizer
from bilevel_gym.agents.loop import Agent, Callback
from bilevel_gym.agents.recipes import (
    aid,
    cma_es,
    drlhf,
    exact,
    hpgd,
    m_sobirl,
    parl,
    pbrl,
    random_search,
    sac,
    sobirl,
    stoc_sobirl,
    zero_order,
)
from bilevel_gym.agents.runs import Run, RunSpec
from bilevel_gym.agents.search import RandomSearch, Search, SearchAgent

__all__ = [
    "CMAES",
    "Agent",
    "BestKeeper",
    "CSVLogger",
    "Callback",
    "Ceiling",
    "Checkpointer",
    "Evaluator",
    "HypergradientAgent",
    "Optimizer",
    "RandomSearch",
    "Run",
    "RunSpec",
    "Search",
    "SearchAgent",
    "StopOnBudget",
    "StopOnSignal",
    "TensorBoardLogger",
    "WandbLogger",
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
    "sac",
    "sobirl",
    "stoc_sobirl",
    "together",
    "zero_order",
]
