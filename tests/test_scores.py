"""Scores of successive rows as those of all: groups are known by their labels, not by their codes."""

import numpy as np
import pandas as pd
import pytest

from pyro_armed import families
from pyro_armed.scores import ScoredRows, Scores, joined_scores, score_table

LABELS = ["a", "b", "c", "d"]


def scored(values, groups, labels, weights=None):
    values = np.asarray(values, dtype=float)
    empty = np.empty(0)
    scores = Scores(values, values**2, values + 1, np.tile(values > 0, (3, 1)).T.astype(float), empty, empty)
    codes = {"g": np.array([labels.index(group) for group in groups])}
    return ScoredRows(scores, values, weights, codes, {"g": labels}, 10)


def test_parts_make_the_table_of_the_whole():
    random = np.random.default_rng(0)
    values, groups = random.normal(size=90), random.choice(LABELS, 90).tolist()
    whole = score_table(scored(values, groups, LABELS), families.get("gaussian"), "error", seed=0)
    parts = []
    for number in range(3):
        own, rows = LABELS[number:] + LABELS[:number], slice(30 * number, 30 * number + 30)
        parts.append(scored(values[rows], groups[rows], own))
    joined = joined_scores(parts)
    assert [joined.labels["g"][code] for code in joined.codes["g"]] == groups
    found = score_table(joined, families.get("gaussian"), "error", seed=0)
    pd.testing.assert_frame_equal(found, whole)
    assert found.attrs == {"n_rows": 90, "n_draws": 10, "new_groups": "error", "seed": 0}


def test_weights_are_joined_and_count():
    heavy, light = np.array([1.0, 3.0]), np.array([0.0])
    parts = [scored([1.0, 2.0], ["a", "b"], LABELS, heavy), scored([100.0], ["c"], LABELS, light)]
    table = score_table(joined_scores(parts), families.get("gaussian"), "error", seed=0)
    assert table.set_index("metric").loc["nlpd", "value"] == pytest.approx(7 / 4)


def test_one_group_is_no_cluster():
    assert scored([1.0, 2.0], ["a", "a"], LABELS).clusters == []
