"""Adam for x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem

__all__ = ["Adam"]


class Adam:
    """AdamW, or Adam without a decay: the kernel below ``torch.optim.AdamW(fused=True)``, without its 50 µs of bookkeeping a step.

    An upper step makes tens to hundreds of updates of x by pairs in a queue, which take little longer than that each.

    Source: Kingma & Ba (ICLR 2015); Loshchilov & Hutter (ICLR 2019) for the decay.

    Args:
        parameters: one tensor with a ``grad``, [D] or [N, D].
        lr: β > 0.
        weight_decay: λ ≥ 0; each step takes β λ of x away.

    Raises:
        InvalidProblem: β is not positive and finite, or λ is negative.
    """

    def __init__(self, parameters: list[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        if not 0.0 < lr < float("inf"):
            raise InvalidProblem(f"the learning rate is {lr}: it must be positive and finite, such as 3e-4")
        if not 0.0 <= weight_decay < float("inf"):
            raise InvalidProblem(f"the weight decay is {weight_decay}: it must be finite and not negative, 0 decays nothing")
        (self.parameter,), self.lr, self.weight_decay = parameters, lr, weight_decay
        self.mean, self.square = torch.zeros_like(self.parameter), torch.zeros_like(self.parameter)
        self.clock = torch.zeros((), device=self.parameter.device)

    @torch.no_grad()
    def step(self) -> None:
        """One step, in place."""
        assert self.parameter.grad is not None
        self.clock.add_(1.0)
        torch._fused_adamw_(
            [self.parameter], [self.parameter.grad], [self.mean], [self.square], [], [self.clock],
            lr=self.lr, beta1=0.9, beta2=0.999, weight_decay=self.weight_decay, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The rate and the decay, the running means of the gradient and of its square, and the number of steps so far."""
        tensors = {"mean": self.mean, "square": self.square, "clock": self.clock}
        return {"lr": self.lr, "weight_decay": self.weight_decay, **{name: tensor.clone() for name, tensor in tensors.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to it."""
        self.lr, self.weight_decay = float(state["lr"]), float(state["weight_decay"])
        for name, tensor in (("mean", self.mean), ("square", self.square), ("clock", self.clock)):
            tensor.copy_(state[name])
