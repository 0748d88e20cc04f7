"""f(x, π): what the upper level minimises."""

from bilevel_gym.objectives.enumeration import LARGEST_ENUMERATION, Enumeration, enumerate_fragments, fragments_of
from bilevel_gym.objectives.likelihood import DemonstrationLikelihood
from bilevel_gym.objectives.policy import ExplicitObjective, QuadraticObjective
from bilevel_gym.objectives.preference import PreferenceMemory, PreferenceObjective
from bilevel_gym.objectives.regulation import RegulationCost
from bilevel_gym.objectives.returns import ReturnObjective
from bilevel_gym.objectives.sampled_return import SampledReturn

__all__ = [
    "LARGEST_ENUMERATION",
    "DemonstrationLikelihood",
    "Enumeration",
    "ExplicitObjective",
    "PreferenceMemory",
    "PreferenceObjective",
    "QuadraticObjective",
    "RegulationCost",
    "ReturnObjective",
    "SampledReturn",
    "enumerate_fragments",
    "fragments_of",
]
