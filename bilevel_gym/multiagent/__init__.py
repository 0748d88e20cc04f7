"""Bilevel problems as games of several agents, in PettingZoo's two forms, and back.

Importing it enters the ``bilevel/…`` games into PettingZoo's registry.
"""

from bilevel_gym.errors import require

require("pettingzoo", "pettingzoo")  # before the imports that would fail without saying what to install

from bilevel_gym.multiagent.commons_incentive import commons_incentive  # noqa: E402
from bilevel_gym.multiagent.game import FOLLOWER, LEADER, Game  # noqa: E402
from bilevel_gym.multiagent.game_solvers import IndependentTables, SoftGameIteration  # noqa: E402
from bilevel_gym.multiagent.game_world import GameWorld, Steps, TablePolicy  # noqa: E402
from bilevel_gym.multiagent.ids import register_games  # noqa: E402
from bilevel_gym.multiagent.incentives import DesignObjective, IncentiveProblem, Incentives, SocialCost, incentive_design  # noqa: E402
from bilevel_gym.multiagent.independent_networks import IndependentNetworks, IndependentState  # noqa: E402
from bilevel_gym.multiagent.leader_follower import LeaderFollowerAEC, LeaderFollowerParallel, leader_follower  # noqa: E402
from bilevel_gym.multiagent.reduction import PlayedRounds, follower_of, play_rounds, to_outer  # noqa: E402
from bilevel_gym.multiagent.tabular_game import TabularGame, commons, prisoners_dilemma  # noqa: E402

__all__ = [
    "FOLLOWER",
    "LEADER",
    "DesignObjective",
    "Game",
    "GameWorld",
    "IncentiveProblem",
    "Incentives",
    "IndependentNetworks",
    "IndependentState",
    "IndependentTables",
    "LeaderFollowerAEC",
    "LeaderFollowerParallel",
    "PlayedRounds",
    "SocialCost",
    "SoftGameIteration",
    "Steps",
    "TablePolicy",
    "TabularGame",
    "commons",
    "commons_incentive",
    "follower_of",
    "incentive_design",
    "leader_follower",
    "play_rounds",
    "prisoners_dilemma",
    "register_games",
    "to_outer",
]

register_games()
