"""What happens after each upper step: measurements, logs, checkpoints, and an end in good time.

Each class here is a ``Callback``: hand one to ``agent.learn`` or ``Run.train``, or several of them joined by ``together``.
"""

from bilevel_gym.agents.callbacks.evaluator import Evaluator
from bilevel_gym.agents.callbacks.keepers import BestKeeper, Checkpointer
from bilevel_gym.agents.callbacks.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from bilevel_gym.agents.callbacks.stops import StopOnBudget, StopOnSignal
from bilevel_gym.agents.callbacks.together import together

__all__ = [
    "BestKeeper",
    "CSVLogger",
    "Checkpointer",
    "Evaluator",
    "StopOnBudget",
    "StopOnSignal",
    "TensorBoardLogger",
    "WandbLogger",
    "together",
]
