"""f(x, π): what the upper level minimises."""

from bilevel_gym.objectives.enumeration import Enumeration, enumerate_fragments
from bilevel_gym.objectives.likelihood import DemonstrationLikelihood
from bilevel_gym.objectives.policy import ExplicitObjective, QuadraticObjective
from bilevel_gym.objectives.preference import PreferenceMemory, PreferenceObjective
from bilevel_gym.objectives.regulation import RegulationCost
from bilevel_gym.objectives.returns import ReturnObjective

__all__ = [
    "DemonstrationLikelihood",
    "Enumeration",
    "ExplicitObjective",
    "PreferenceMemory",
    "PreferenceObjective",
    "QuadraticObjective",
    "RegulationCost",
    "ReturnObjective",
    "enumerate_fragments",
]
