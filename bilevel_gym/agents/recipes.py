"""One constructor a paper: each a few lines of composition."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import torch

from bilevel_gym.agents.hypergradient_agent import HypergradientAgent
from bilevel_gym.hypergradients import Exact, Implicit

__all__ = ["exact", "m_sobirl"]


def exact(env: gym.Env[Any, Any], *, learning_rate: float = 8e-3) -> HypergradientAgent:
    """Gradient descent on φ with the exact hyper-gradient (``hypergradients.Exact``; mathematics §3).

    Args:
        env: a tabular outer environment, best with ``solver="policy_iteration"``.
        learning_rate: β.
    """
    return HypergradientAgent(env, Exact(), partial(torch.optim.SGD, lr=learning_rate))


def m_sobirl(
    env: gym.Env[Any, Any], *, learning_rate: float = 8e-3, step_size: float | None = None, initial: Any = None, adjoint_steps: int = 1
) -> HypergradientAgent:
    """M-SoBiRL (Yang, Gao, Yuan, AISTATS 2025), the model-based algorithm: ``hypergradients.Implicit`` and gradient descent.

    With ``solvers.SoftValueIteration(sweeps=N)`` as the environment's solver this is the paper's algorithm line by line: the
    estimator updates w_k and reads V_k, the optimizer makes x_{k+1}, ``env.step`` sweeps N times and makes π_{k+1} (mathematics §4).

    Args:
        env: a tabular outer environment.
        learning_rate: β; the paper's synthetic run takes 8e-3.
        step_size: ξ; the paper's takes .5, None the largest that is safe.
        initial: w_0 [S], zeros by default.
        adjoint_steps: steps on w in each outer iteration.
    """
    return HypergradientAgent(env, Implicit(step_size, initial, adjoint_steps), partial(torch.optim.SGD, lr=learning_rate))
