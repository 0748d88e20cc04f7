"""Agents that act on the outer environment: a few classes, and a named constructor a paper."""

from bilevel_gym.agents.callbacks import Checkpointer, CSVLogger, StopOnSignal, TensorBoardLogger, together
from bilevel_gym.agents.evaluation import evaluate_env, evaluate_policy
from bilevel_gym.agents.hypergradient_agent import HypergradientAgent, Optimizer
from bilevel_gym.agents.loop import Agent, Callback
from bilevel_gym.agents.recipes import aid, drlhf, exact, m_sobirl, parl, pbrl, sobirl
from bilevel_gym.agents.runs import Run, RunSpec

__all__ = [
    "Agent",
    "CSVLogger",
    "Callback",
    "Checkpointer",
    "HypergradientAgent",
    "Optimizer",
    "Run",
    "RunSpec",
    "StopOnSignal",
    "TensorBoardLogger",
    "aid",
    "drlhf",
    "evaluate_env",
    "evaluate_policy",
    "exact",
    "m_sobirl",
    "parl",
    "pbrl",
    "sobirl",
    "together",
]
