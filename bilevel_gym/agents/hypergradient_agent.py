"""The agent that descends a hyper-gradient: nearly all agents are this one with other parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from math import isfinite
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym import checkpoint
from bilevel_gym.agents.identity import described, refuse_other
from bilevel_gym.agents.loop import Agent, OuterEnv, unwrapped
from bilevel_gym.envs import BilevelEnv, BilevelVectorEnv
from bilevel_gym.errors import InvalidAction, InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import PerProblem
from bilevel_gym.types import Estimator, Evaluation, Hypergradient

__all__ = ["HypergradientAgent", "Optimizer"]


class Optimizer(Protocol):
    """What the agent asks of an optimizer; every one of ``torch.optim`` has it."""

    def step(self) -> Any:
        """Change x in place, from its ``grad``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go back to it."""
        ...


class HypergradientAgent(Agent):
    """x ← Π_X( x − β ∇̂φ(x) ), then ``env.step(x)``.

    The parts are independent: an estimator says what ∇̂φ is, a torch optimizer how it is descended, the environment how the follower
    answers. The environment may be wrapped, as long as each x reaches it unchanged.

    Args:
        env: an outer environment, or wrappers around one; or N of them as one batch, whose x's are then descended side by side.
        estimator: how ∇φ is estimated.
        optimizer: what makes an optimizer of x, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        updates_per_step: updates of x between two steps of the environment; each estimates anew at the current x, the response stays.
            A function of the evaluation says how many, such as one for each batch in its queue.
        warmup_updates: further updates before the first step, such as epochs over the first pairs.

    Raises:
        UnsupportedProblem: the estimator does not fit the problem; the message names the reason.
        InvalidProblem: a count that is not positive, or an environment that is not a bilevel one.
    """

    def __init__(
        self,
        env: OuterEnv,
        estimator: Estimator,
        optimizer: Callable[[list[Tensor]], Optimizer],
        *,
        updates_per_step: int | Callable[[Evaluation], int] = 1,
        warmup_updates: int = 0,
    ) -> None:
        bilevel = unwrapped(env)
        if not isinstance(bilevel, BilevelEnv | BilevelVectorEnv):
            raise InvalidProblem(
                f"the environment is a {type(bilevel).__name__}, not a bilevel one: a hyper-gradient needs its problem; make it with gym.make('bilevel/…')"
            )
        if reason := estimator.supports(bilevel.problem):
            raise UnsupportedProblem(f"{type(estimator).__name__} does not fit this problem: {reason}")
        if warmup_updates < 0 or (isinstance(updates_per_step, int) and updates_per_step < 1):
            raise InvalidProblem(f"updates_per_step is {updates_per_step} and warmup_updates {warmup_updates}: at least 1 and 0")
        super().__init__(env)
        count = (bilevel.num_envs,) if isinstance(bilevel, BilevelVectorEnv) else ()
        self.estimator = PerProblem(estimator) if count and not getattr(estimator, "batched", True) else estimator
        self.updates_per_step, self.warmup_updates = updates_per_step, warmup_updates
        self.x_updates = 0
        self.hypergradient: Hypergradient | None = None
        domain = bilevel.problem.domain
        self.x = torch.zeros(*count, domain.dimension, dtype=domain.dtype, device=domain.device)
        low, high = domain.bounds
        self._low, self._high = (torch.as_tensor(side, dtype=self.x.dtype, device=self.x.device) for side in (low, high))
        self.optimizer = optimizer([self.x])
        self._estimator_state: Any = None
        self._before: tuple[int, Any, dict[str, Any]] | None = None

    @torch.no_grad()
    def act(self, observation: Any = None, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """The next x, from where the environment stands; the environment must have been reset.

        Args:
            observation: not read, the estimator asks the environment's oracle.
            info: not read.

        Returns:
            [D], inside the action space; [N, D] for a batch.

        Raises:
            InvalidAction: the estimate has a NaN or an infinity; optimizer and estimator are as they were.
        """
        bilevel = self.bilevel
        if bilevel.x is None:
            raise gym.error.ResetNeeded("call env.reset() before agent.act()")
        self.x.copy_(bilevel.x)
        self._before = (self.x_updates, self._estimator_state, deepcopy(self.optimizer.state_dict()))
        try:
            self._update()
        except BaseException:
            self.take_back()
            raise
        x: np.ndarray = self.x.cpu().numpy().copy()
        return x

    def take_back(self) -> None:
        """Undo the last ``act``: optimizer, estimator and counter are as they were, and x is where the environment stands."""
        if self._before is not None:
            self.x_updates, self._estimator_state, optimizer = self._before
            self.optimizer.load_state_dict(optimizer)
            self.x.copy_(self.bilevel.x)
            self._before = None

    def _update(self) -> None:
        """All updates of x between two steps of the environment."""
        bilevel = self.bilevel
        oracle, response, evaluation = bilevel.oracle, bilevel.response, bilevel.evaluation
        if self._estimator_state is None:
            self._estimator_state = (self.estimator.init(oracle),)
        count = self.updates_per_step if isinstance(self.updates_per_step, int) else self.updates_per_step(evaluation)
        for _ in range(count + (self.warmup_updates if self.x_updates == 0 else 0)):
            self.hypergradient, after = self.estimator(oracle, self.x, response, evaluation, self._estimator_state[0])
            if not isfinite(float(self.hypergradient.value.sum())):
                raise InvalidAction(
                    "the hyper-gradient is not finite, and the environment was not stepped: lower the learning rate or the adjoint's step size, or raise the temperature"
                )
            self._estimator_state = (after,)
            self.x.grad = self.hypergradient.value
            self.optimizer.step()
            self.x.clamp_(self._low, self._high)
            self.x_updates += 1

    def tell(self, x: np.ndarray, reward: float | np.ndarray) -> None:
        """See that x has arrived: a hyper-gradient at another x would be of no use.

        Raises:
            InvalidAction: a wrapper has changed x on its way to the environment.
        """
        assert self.bilevel.x is not None
        self._before = None
        if not torch.equal(self.bilevel.x, self.x):
            raise InvalidAction(
                "the environment did not receive the x that the agent sent: a wrapper changes actions; take it away, or use an agent that acts through it"
            )

    def metrics(self) -> dict[str, float]:
        """The norms of ∇̂φ, its two parts and x (means over a batch), what the estimator reports, and the number of updates."""
        assert self.hypergradient is not None
        parts = {
            "hypergradient": self.hypergradient.value,
            "direct": self.hypergradient.direct,
            "implicit": self.hypergradient.implicit,
            "x": self.x,
        }
        norms = {f"norm_{name}": float(part.norm(dim=-1).mean()) for name, part in parts.items()}
        return {**norms, **self.hypergradient.stats, "x_updates": float(self.x_updates)}

    def get_state(self) -> dict[str, Any]:
        """Optimizer, estimator state and counters as plain data; the environment's state is its own."""
        return {
            "estimator": described(self.estimator),
            "dimension": self.x.numel(),
            "x_updates": self.x_updates,
            "optimizer": checkpoint.pack(self.optimizer.state_dict()),
            "estimator_state": checkpoint.pack(self._estimator_state),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``get_state`` returned.

        Raises:
            CheckpointError: the state is of another estimator, of one with other fields, or of another dimension; nothing has changed.
        """
        refuse_other((state["estimator"], state["dimension"]), (described(self.estimator), self.x.numel()))
        updates, estimator_state = int(state["x_updates"]), checkpoint.unpack(state["estimator_state"])
        self.optimizer.load_state_dict(checkpoint.unpack(state["optimizer"]))
        self.x_updates, self._estimator_state = updates, estimator_state
