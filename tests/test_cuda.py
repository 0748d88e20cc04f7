"""The same code on a GPU; skipped, with the reason, where there is none."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import agents
from tests.reward_models import KINDS, fragments, generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def test_tabular_run_agrees_with_the_cpu():
    """A table left on the other device, or another order of reductions that matters, shows as a different x."""
    found = []
    for device in ("cpu", "cuda"):
        env = gym.make("bilevel/RandomMDP-v0", device=device)
        env.reset(seed=0, options={"x": np.full(100, 0.3)})
        found.append(agents.m_sobirl(env).learn(50).x.cpu())
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["RandomMDP", "FourRoomsIncentive", "StackelbergGame"])
def test_batched_solves_agree_with_the_cpu(name):
    """Batched LU, block elimination and x-dependent P of many problems at once: a table or an index left on the other device shows."""
    found = []
    for device in ("cpu", "cuda"):
        envs = gym.make_vec(f"bilevel/{name}-v0", num_envs=4, device=device, solver="policy_iteration")
        envs.reset(seed=0)
        x = np.random.default_rng(0).uniform(-1.0, 1.0, envs.action_space.shape)
        envs.step(x)
        agent = agents.exact(envs)
        agent.act()
        inner = envs.unwrapped
        found.append((inner.response.policy.cpu(), inner.evaluation.value.cpu(), agent.hypergradient.value.cpu()))
    for on_cpu, on_cuda in zip(*found, strict=True):
        torch.testing.assert_close(on_cpu, on_cuda, rtol=1e-7, atol=1e-9)


def test_preference_run_stays_on_the_device():
    """A generator, a replay or a network on the other device is an error in some step of a run."""
    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny", device="cuda")
    env.reset(seed=0)
    agent = agents.sobirl(env).learn(2)
    assert agent.x.is_cuda
    assert env.unwrapped.response.policy.parameters.is_cuda
    assert bool(agent.x.isfinite().all())


@pytest.mark.parametrize("name", list(KINDS))
def test_reward_networks_agree_with_the_cpu(name):
    """Statistics, a generator or a corner of the box on the other device is an error, another order of sums a small difference."""
    found = []
    for device in ("cpu", "cuda"):
        kind = KINDS[name]
        reward = kind.make(device=device)
        x = kind.make().initial(generator()).to(device)
        look = fragments(kind)
        look = replace(look, **{part: getattr(look, part).to(device) for part in ("states", "actions", "alive", "outcome")})
        reward = reward.absorb(x, look)
        leaf = x.clone().requires_grad_()
        rewards = reward.along(leaf, look.states, look.actions)
        found.append((rewards.detach().cpu(), torch.autograd.grad(rewards.sum(), leaf)[0].cpu()))
        assert bool(reward.training(torch.Generator(device=device)).along(x, look.states, look.actions).isfinite().all())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
