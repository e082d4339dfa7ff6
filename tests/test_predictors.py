import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_armed.errors import DataError
from pyro_armed.predictors import PredictorColumns


def learned(data: dict[str, Any], fill: bool = False) -> tuple[PredictorColumns, pd.DataFrame]:
    columns = PredictorColumns(list(data), fill)
    return columns, columns.learn(pd.DataFrame(data))


def test_training_and_new_rows_are_cleaned_alike() -> None:
    data = {"x": [1, 2, 3], "s": ["b", "a", "b"], "c": pd.Categorical([3, 1, 3])}
    columns, clean = learned(data)
    assert clean["x"].tolist() == [1.0, 2.0, 3.0]
    assert columns.levels == {"s": ["a", "b"], "c": ["1", "3"]}
    pd.testing.assert_frame_equal(columns.apply(pd.DataFrame(data)), clean)
    again = PredictorColumns.from_config(json.loads(json.dumps(columns.to_config())))
    pd.testing.assert_frame_equal(again.apply(pd.DataFrame(data)), clean)


@pytest.mark.parametrize("values", [[1, 3], [1.0, 3.0], ["1", "3"], [b"1", "3"], pd.Categorical([1, 3])])
def test_levels_are_known_by_their_text(values: Any) -> None:
    columns, _ = learned({"c": pd.Categorical([3, 1, 3])})
    assert columns.apply(pd.DataFrame({"c": values}))["c"].tolist() == ["1", "3"]


def test_one_new_row_has_all_levels() -> None:
    columns, clean = learned({"s": ["b", "a", "c"]})
    new = columns.apply(pd.DataFrame({"s": ["b"]}))
    assert new["s"].dtype == clean["s"].dtype
    assert new["s"].cat.codes.tolist() == [1]


def test_unseen_levels() -> None:
    columns, _ = learned({"s": ["b", "a"]})
    new = pd.DataFrame({"s": ["b", "z", "y"]})
    with pytest.raises(DataError, match=r"did not have: 'y', 'z'. Known levels: 'a', 'b'.*'baseline'"):
        columns.apply(new)
    assert columns.apply(new, "baseline")["s"].tolist() == ["b", "a", "a"]


def test_missing_predictors_are_filled_and_marked() -> None:
    data = {"x": [1.0, None, 4.0, 4.0], "s": ["b", "a", "b", None], "full": [1, 2, 3, 4]}
    columns, clean = learned(data, fill=True)
    assert columns.fills == {"x": 3.0, "s": "b"}
    assert clean["x"].tolist() == [1.0, 3.0, 4.0, 4.0]
    assert clean["x_missing"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert clean["s"].tolist() == ["b", "a", "b", "b"]
    assert "full_missing" not in clean
    assert columns.fillable({"x", "full", "other"}, training=True) == {"x", "full"}
    assert columns.fillable({"x", "full", "other"}, training=False) == {"x"}
    again = PredictorColumns.from_config(json.loads(json.dumps(columns.to_config())))
    new = again.apply(pd.DataFrame({"x": [None, 7.0], "s": [None, "a"], "full": [1, 1]}))
    assert new["x"].tolist() == [3.0, 7.0]
    assert new["x_missing"].tolist() == [1.0, 0.0]
    assert new["s"].tolist() == ["b", "a"]


def test_nothing_is_filled_unasked() -> None:
    columns, clean = learned({"x": [1.0, None]})
    assert columns.fillable({"x"}, training=True) == set()
    assert np.isnan(clean["x"].iloc[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": [1.0, np.inf]}, "'x' has 1 infinite value;"),
        ({"x": [None, None]}, "no values at all"),
        ({"x": [1.0, None], "x_missing": [0, 1]}, "'x_missing', which the formula uses already"),
        ({"x": [1.0, None, np.inf]}, "infinite"),
    ],
)
def test_what_cannot_be_learned(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        learned(data, fill=True)


def test_numbers_that_became_text() -> None:
    columns, _ = learned({"x": [1.0, 2.0]})
    with pytest.raises(DataError, match="held numbers in training and holds text now"):
        columns.apply(pd.DataFrame({"x": ["1", "2"]}))
    with pytest.raises(DataError, match="infinite"):
        columns.apply(pd.DataFrame({"x": [np.inf]}))
    assert columns.apply(pd.DataFrame({"x": [True]}))["x"].tolist() == [1.0]


def test_a_column_that_is_missing_altogether_in_new_rows() -> None:
    columns, _ = learned({"x": [1.0, 3.0, None], "s": ["a", "b", None]}, fill=True)
    new = columns.apply(pd.DataFrame({"x": [None, None], "s": pd.Series([None, None], dtype=object)}))
    assert new["x"].tolist() == [2.0, 2.0]
    assert new["s"].tolist() == ["a", "a"]
