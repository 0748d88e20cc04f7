"""Fragments of trajectories, teachers who compare them, and the queue of what was compared."""

from bilevel_gym.preferences.buffer import PreferenceBuffer
from bilevel_gym.preferences.fragments import Cut, concatenate, draw_places, gather, take, window_sum
from bilevel_gym.preferences.teachers import BradleyTerry, Teacher, cross_entropy

__all__ = [
    "BradleyTerry",
    "Cut",
    "PreferenceBuffer",
    "Teacher",
    "concatenate",
    "cross_entropy",
    "draw_places",
    "gather",
    "take",
    "window_sum",
]
