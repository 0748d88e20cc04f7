"""Fragments of trajectories, teachers who compare them, and the queue of what was compared."""

from bilevel_gym.preferences.buffer import PreferenceBuffer
from bilevel_gym.preferences.datasets import from_minari, to_minari
from bilevel_gym.preferences.files import load_comparisons, save_comparisons
from bilevel_gym.preferences.fragments import Cut, as_samples, concatenate, draw_fragments, draw_places, gather, misfit, take, window_sum
from bilevel_gym.preferences.queries import Query, Rule, labels_due
from bilevel_gym.preferences.teachers import BradleyTerry, Teacher, compare, cross_entropy, pair_loss

__all__ = [
    "BradleyTerry",
    "Cut",
    "PreferenceBuffer",
    "Query",
    "Rule",
    "Teacher",
    "as_samples",
    "compare",
    "concatenate",
    "cross_entropy",
    "draw_fragments",
    "draw_places",
    "from_minari",
    "gather",
    "labels_due",
    "load_comparisons",
    "misfit",
    "pair_loss",
    "save_comparisons",
    "take",
    "to_minari",
    "window_sum",
]
