"""The optimizer of x that most agents on simulators have."""

from __future__ import annotations

import pytest
import torch

from bilevel_gym import checkpoint
from bilevel_gym.agents.adam import Adam
from bilevel_gym.errors import InvalidProblem


def gradients(count: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Some that vary over six orders of magnitude."""
    source = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=source, dtype=dtype) * 10.0 ** (6.0 * torch.rand(count, *shape, generator=source) - 3.0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_it_is_torchs(weight_decay: float, shape: tuple[int, ...]) -> None:
    """Another ε, another bias correction, or a decay that goes through the moments would be another method than the papers'."""
    mine, theirs = (torch.linspace(-1.0, 1.0, 15, dtype=torch.float64)[: torch.Size(shape).numel()].view(shape).clone() for _ in range(2))
    optimizers = Adam([mine], lr=1e-2, weight_decay=weight_decay), torch.optim.AdamW([theirs], lr=1e-2, weight_decay=weight_decay)
    for gradient in gradients(30, *shape, dtype=torch.float64):
        for x, optimizer in zip((mine, theirs), optimizers, strict=True):
            x.grad = gradient.clone()
            optimizer.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_it_goes_on_from_its_state() -> None:
    """Without it a resumed run would start with empty moments, or share them with the run that it was copied from."""
    steps = gradients(20, 6, dtype=torch.float32)
    x = torch.zeros(6)
    optimizer = Adam([x], lr=1e-2, weight_decay=0.1)

    def descend(x: torch.Tensor, optimizer: Adam, part: torch.Tensor) -> torch.Tensor:
        for gradient in part:
            x.grad = gradient
            optimizer.step()
        return x.detach().clone()

    descend(x, optimizer, steps[:10])
    kept, state = x.detach().clone(), checkpoint.unpack(checkpoint.pack(optimizer.state_dict()))
    straight = descend(x, optimizer, steps[10:])
    again = Adam([kept], lr=1.0)
    again.load_state_dict(state)
    assert torch.equal(descend(kept, again, steps[10:]), straight)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": float("nan")}, {"lr": 0.1, "weight_decay": -1.0}])
def test_what_is_no_rate_is_refused(options: dict[str, float]) -> None:
    """Without it x would go uphill, or nowhere."""
    with pytest.raises(InvalidProblem, match="must be"):
        Adam([torch.zeros(2)], **options)
