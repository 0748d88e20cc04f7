"""What a problem has to be for an estimator to fit it, and which one fits where another does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.types import Response, SampledObjective, TabularObjective

__all__ = [
    "action_values_of",
    "not_a_function",
    "not_a_regulator",
    "not_evaluated",
    "not_explicit",
    "not_on_policy",
    "not_sampled",
    "not_softmax",
    "refusal",
    "values_of",
]

Condition = Callable[[Any], str | None]
"""None where a problem meets it, else the reason why not."""

LACKING = "the solver's response is without {0}, which this estimator needs: fill Response.{1}, or choose agents.zero_order, which needs the policy alone"


def not_explicit(problem: Any) -> str | None:
    """Whether world and reward are tables and f is an explicit function of the policy: what ``Exact`` needs."""
    if problem.world is None:
        return "it differentiates a policy of a decision problem, and the lower level is a function g(x, y)"
    if not problem.tabular:
        return "it needs the transition probabilities, and this world has none written down"
    if not isinstance(problem.objective, TabularObjective):
        return f"it differentiates f in the policy, and {type(problem.objective).__name__} has no value(problem, x, policy)"
    closer: Condition | None = getattr(problem.objective, "not_explicit", None)
    return None if closer is None else closer(problem)


def not_softmax(problem: Any) -> str | None:
    """Beyond that, whether ∇Ω*(θ) is a softmax, smooth in its logits θ and positive wherever a policy may be."""
    if reason := not_explicit(problem):
        return reason
    kind = type(problem.regularizer).__name__
    return None if problem.regularizer.entropic else f"it moves the logits of a softmax, and policies under {kind} are none"


def not_a_regulator(problem: Any) -> str | None:
    """Whether the follower is a linear-quadratic one: what ``ExactRiccati`` needs."""
    if not (hasattr(problem.world, "state_matrix") and hasattr(problem.reward, "weights")):
        return "it differentiates the Riccati equation, and this is no linear-Gaussian world with a quadratic cost"
    if not isinstance(problem.regularizer, Shannon):
        return f"the Gaussian policy is the answer under Shannon entropy, not under {type(problem.regularizer).__name__}"
    if not hasattr(problem.objective, "value"):
        return f"it differentiates f in the policy, and {type(problem.objective).__name__} has no value(problem, x, policy)"
    return None


def not_a_function(problem: Any) -> str | None:
    """Whether the lower level is a strongly convex function of y: what ``AID`` needs."""
    if not hasattr(problem, "lower"):
        return "it needs a lower level that is a strongly convex function g(x, y), and this one is a decision problem"
    if not isinstance(problem.objective, TabularObjective):
        return f"it differentiates f in y, and {type(problem.objective).__name__} has no gradient(problem, x, y)"
    return None


def not_evaluated(problem: Any) -> str | None:
    """Whether f has a value at all: what even ``ZeroOrder`` needs."""
    if isinstance(problem.objective, SampledObjective) and getattr(problem.world, "context_weights", None) is not None:
        return "there are several followers (contexts), and fragments do not say whose they are: take one follower, in a world of its own"
    return None


def not_sampled(problem: Any) -> str | None:
    """Whether f is a mean over fragments of one follower: what any ``ScoreFunction`` needs."""
    if not isinstance(problem.objective, SampledObjective):
        return f"it needs an objective E[l] over fragments, and {type(problem.objective).__name__} has no loss(problem, x, fragments)"
    return not_evaluated(problem)


def not_on_policy(problem: Any) -> str | None:
    """Beyond that, whether ∇log P(d; π*) is Σ∇(Q − V)/τ with nothing but r moving in x: what its implicit term needs."""
    if reason := not_sampled(problem):
        return reason
    if not getattr(problem.objective, "on_policy", True):
        return "the fragments are those of a fixed policy, so f does not depend on the follower; sensitivity=None is the whole gradient"
    if getattr(problem.world, "depends_on_x", False):
        return "P depends on x, and the sampled sensitivities differentiate the reward alone"
    if not problem.regularizer.entropic:
        return f"Σ∇(Q−V)/τ is the score for the Shannon entropy and for KL, not for {type(problem.regularizer).__name__}"
    return None


def _of_a_fixed_policy(problem: Any) -> str | None:
    return not_sampled(problem) or ("the fragments are the follower's own" if getattr(problem.objective, "on_policy", True) else None)


_FITTING: dict[str, tuple[str, Condition]] = {
    "hypergradients.Exact": ("exact", not_explicit),
    "hypergradients.ExactRiccati": ("exact", not_a_regulator),
    "hypergradients.AID": ("aid", not_a_function),
    "hypergradients.ScoreFunction": ("sobirl", not_on_policy),
    "hypergradients.ScoreFunction(None)": ("drlhf", _of_a_fixed_policy),
    "hypergradients.ZeroOrder": ("zero_order", not_evaluated),
}
"""Estimators from the best on, with the agent that has each; the first that fits is recommended."""


def refusal(reason: str | None, problem: Any) -> str | None:
    """The reason, and what to use instead where anything fits; None where there is no reason."""
    if reason is None:
        return None
    return next(
        (f"{reason}; use {name} (agents.{agent})" for name, (agent, condition) in _FITTING.items() if condition(problem) is None), reason
    )


def values_of(response: Response) -> Tensor:
    """V of a response: [B, S].

    Raises:
        UnsupportedProblem: its solver gives none.
    """
    if response.value is None:
        raise UnsupportedProblem(LACKING.format("V", "value"))
    return response.value


def action_values_of(response: Response) -> Tensor:
    """Q of a response: [B, S, A].

    Raises:
        UnsupportedProblem: its solver gives none.
    """
    if response.q is None:
        raise UnsupportedProblem(LACKING.format("Q", "q"))
    return response.q
