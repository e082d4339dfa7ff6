"""A design of rows in files is that of the same rows in a data frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_armed import families
from pyro_armed.design import FormulaDesign, StreamedDesign
from pyro_armed.design._running import RunningMoments
from pyro_armed.design._structure import moments_of
from pyro_armed.errors import ArgumentError, ArmedError, DataError, FormulaError
from pyro_armed.parquet import ParquetRows


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    random, rows = np.random.default_rng(0), 3000
    return pd.DataFrame(
        {
            "y": random.normal(3, 2, rows),
            "b": random.integers(0, 2, rows),
            "k": random.poisson(2, rows),
            "x1": random.normal(5, 2, rows),
            "x2": random.integers(0, 2, rows),
            "t": random.choice(["u", "v", "w"], rows),
            "g": random.choice([f"s{i}" for i in range(40)], rows),
            "h": random.integers(0, 30, rows),
            "w": random.random(rows),
            "c": pd.Categorical(
                random.choice(["lo", "mid", "hi"], rows), categories=["lo", "mid", "hi", "none"], ordered=True
            ),
        }
    )


@pytest.fixture(scope="module")
def path(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    frame.to_parquet(file, row_group_size=700)
    return file


def streamed(
    path: Path, formula: str | list[str], family: str = "gaussian", **options: Any
) -> StreamedDesign:
    formulas = [formula] if isinstance(formula, str) else formula
    return StreamedDesign(formulas, ParquetRows(path), families.get(family), **options)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return round(value, 9) if isinstance(value, float) else value


CASES = [
    (["y ~ x1*t + x2 + c + np.log(x1**2) + (1 + x1 | g) + (1 | h)", "sigma ~ x1"], "gaussian", None, False),
    (["y ~ x1 + x2 + t + (1 | g)"], "gaussian", "w", True),
    (["b ~ x1 + (1 | g:h)"], "bernoulli", None, False),
    (["t['u'] ~ x1 + (1 | h)"], "bernoulli", None, False),
    (["k ~ x1 + offset(x2) + (1 | g)"], "poisson", "w", False),
    (["y ~ x1 + (0 + c | h)"], "gaussian", "w", False),
    (["t ~ x1 + (1 | h)"], "categorical", None, False),
    (["c ~ x1 + (1 | h)"], "ordinal", None, False),
    (["p(b, 3) ~ x1 + (1 | h)"], "binomial", None, False),
    (["np.exp(y / 9) ~ x1 + (1 | h)"], "gamma", None, False),
]


@pytest.mark.parametrize(("formulas", "family", "weights", "network"), CASES, ids=lambda v: str(v)[:40])
def test_specification_and_rows_are_those_of_a_data_frame(
    frame: pd.DataFrame, path: Path, formulas: list[str], family: str, weights: str | None, network: bool
) -> None:
    whole = FormulaDesign(formulas, frame, families.get(family), weights=weights, network=network)
    found = streamed(path, formulas, family, weights=weights, network=network)
    assert rounded(found.spec.to_config()) == rounded(whole.spec.to_config())
    expected, sample = whole.training.batch.tensors(), found.training.batch.tensors()
    assert found.training.batch.size == 2000
    assert len(np.unique(found.training.index)) == 2000
    for name, values in expected.items():
        np.testing.assert_allclose(sample[name], values[found.training.index], rtol=1e-9, atol=1e-9)
    config = rounded(whole.to_config())
    assert {**rounded(found.to_config()), "spec": 0} == {**config, "spec": 0}


def test_incomplete_rows_are_counted_or_left_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    holes = frame.copy()
    holes.loc[[3, 800, 801], "x1"] = np.nan
    holes.loc[[3, 2999], "g"] = None
    holes.to_parquet(tmp_path / "rows.parquet", row_group_size=700)
    with pytest.raises(
        DataError, match=r"'x1' has 3 missing values; 'g' has 2 missing values.*missing='drop'"
    ):
        streamed(tmp_path / "rows.parquet", "y ~ x1 + (1 | g)")
    found = streamed(tmp_path / "rows.parquet", "y ~ x1 + (1 | g)", missing="drop")
    whole = FormulaDesign(["y ~ x1 + (1 | g)"], holes, families.get("gaussian"), missing="drop")
    assert found.spec.n_rows == 2996
    assert found.kept == [699, 698, 700, 700, 199]
    assert rounded(found.spec.to_config()) == rounded(whole.spec.to_config())


@pytest.mark.parametrize(
    ("formula", "options", "error", "words"),
    [
        ("y ~ scale(x1) + (1 | g)", {}, FormulaError, "scale.x1.*needs all rows at once"),
        ("y ~ bs(x1, df=4) + (1 | g)", {}, FormulaError, "bs.x1, df"),
        ("y ~ C(h) + (1 | g)", {}, FormulaError, "levels of numbers"),
        ("y ~ I(x1 - np.mean(x1)) + (1 | g)", {}, FormulaError, "np.mean"),
        ("scale(y) ~ x1 + (1 | g)", {}, FormulaError, "response"),
        ("y ~ x1 + (1 | g)", {"missing": "indicator"}, ArgumentError, "missing='drop'"),
        ("y ~ x1 + (1 | g)", {"within_between": ["x1"]}, ArgumentError, "within_between"),
        ("y ~ z + (1 | g)", {}, DataError, "Column 'z'"),
        ("y ~ x1 + (1 | g)", {"family": "bernoulli"}, DataError, "labels"),
    ],
)
def test_what_needs_all_rows_is_refused(
    path: Path, formula: str, options: dict[str, Any], error: type[ArmedError], words: str
) -> None:
    with pytest.raises(error, match=words):
        streamed(path, formula, **options)


def test_a_constant_response_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.assign(y=2.0).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="constant"):
        streamed(tmp_path / "rows.parquet", "y ~ x1 + (1 | g)")


def test_new_rows_are_encoded_as_ever(frame: pd.DataFrame, path: Path) -> None:
    formulas = ["y ~ x1 + t + (1 + x1 | g)"]
    new = frame.head(20).assign(g=["s1", "new"] * 10)
    whole = FormulaDesign(formulas, frame, families.get("gaussian")).encode(new, response=True)
    found = streamed(path, formulas).encode(new, response=True)
    assert found.new_groups == whole.new_groups == {"g": ["new"]}
    for name, values in whole.batch.tensors().items():
        np.testing.assert_allclose(found.batch.tensors()[name], values, rtol=1e-9)


def test_a_design_of_some_groups_takes_the_others_for_new(path: Path) -> None:
    from pyro_armed.groups import GroupIndex

    design = streamed(path, "y ~ x1 + (1 | g)")
    some = design.with_groups({"g": GroupIndex("g", ["s1", "s2"], [10, 20])})
    encoded = some.encode(pd.DataFrame({"x1": [1.0, 2.0], "g": ["s2", "s3"]}))
    assert encoded.batch.codes["g"].tolist() == [1, 2]
    assert encoded.new_groups == {"g": ["s3"]}
    assert some.spec.group("g").counts == (10, 20)
    assert design.spec.group("g").size == 40


def test_running_moments_are_the_moments_of_all() -> None:
    random = np.random.default_rng(1)
    columns = np.stack(
        [1e6 + random.normal(size=500), random.integers(0, 2, 500), np.full(500, 7.0), np.zeros(500)], axis=1
    )
    weights = random.random(500)
    weights[:50] = 0.0
    for w in (None, weights):
        running = RunningMoments()
        for part in np.split(np.arange(500), [10, 30, 31, 400]):
            running.add(columns[part], None if w is None else w[part])
        found, expected = running.moments(), moments_of("x", columns, w)
        np.testing.assert_allclose(found.center, expected.center, rtol=1e-12)
        np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-9, atol=1e-12)
        for name in ("constant", "zero", "plain"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()
