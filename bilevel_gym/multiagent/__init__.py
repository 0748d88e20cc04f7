"""Bilevel problems as games of several agents, in PettingZoo's two forms, and back.

Importing it enters the ``bilevel/…`` games into PettingZoo's registry.
"""

from bilevel_gym.errors import require

require("pettingzoo", "pettingzoo")  # before the imports that would fail without saying what to install

from bilevel_gym.multiagent.game import FOLLOWER, LEADER, Game  # noqa: E402
from bilevel_gym.multiagent.ids import register_games  # noqa: E402
from bilevel_gym.multiagent.leader_follower import LeaderFollowerAEC, LeaderFollowerParallel, leader_follower  # noqa: E402
from bilevel_gym.multiagent.reduction import PlayedRounds, follower_of, play_rounds, to_outer  # noqa: E402

__all__ = [
    "FOLLOWER",
    "LEADER",
    "Game",
    "LeaderFollowerAEC",
    "LeaderFollowerParallel",
    "PlayedRounds",
    "follower_of",
    "leader_follower",
    "play_rounds",
    "register_games",
    "to_outer",
]

register_games()
