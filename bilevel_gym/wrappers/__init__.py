"""What surrounds an outer environment: ordinary Gymnasium wrappers, which compose with Gymnasium's own.

What makes an outer environment out of one of yours is ``bilevel_gym.wrap_env``. For actions in [−1, 1] there is Gymnasium's
``RescaleAction``; an agent that needs to know where its x arrives, such as ``agents.HypergradientAgent``, says so where one of these
changes it.
"""

from bilevel_gym.wrappers.budget import LowerBudget
from bilevel_gym.wrappers.delta import DeltaX
from bilevel_gym.wrappers.hypergradient import HypergradientInfo
from bilevel_gym.wrappers.record import RecordUpperSteps

__all__ = ["DeltaX", "HypergradientInfo", "LowerBudget", "RecordUpperSteps"]
