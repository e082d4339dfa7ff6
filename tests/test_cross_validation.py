"""Folds, scores of rows that were left out against fits by hand, summaries, conformal intervals."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_armed as pa
from pyro_armed import metrics
from pyro_armed.conformal import Predictive
from pyro_armed.cross_validation import score_rows
from pyro_armed.cross_validation._conformal import combined_regions
from pyro_armed.cross_validation._data import take
from pyro_armed.cross_validation._folds import held_out
from pyro_armed.errors import ArgumentError, ArmedWarning, DataError
from pyro_armed.seeds import stream

# Fits as short as these have not converged.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning")

FIT = {"guide": "mean_field", "restarts": 1, "epochs": 30, "draws": 60}
QUIET = {"progressbar": False, **FIT}
FORMULA = "y ~ x1 + (1 | group)"


@pytest.fixture(scope="module")
def frame():
    data = pa.simulate.mixed_model(9, 7, seed=0).frame
    return data.assign(b=(data["y"] > data["y"].median()).astype(int), w=np.arange(63) % 3 + 1.0)


@pytest.fixture(scope="module")
def both(frame):
    return pa.cross_predict(pa.ARMED(FORMULA, frame), frame, by="both", folds=3, seed=2, **QUIET)


# --- folds -------------------------------------------------------------------------------------------------


def unequal_groups(seed):
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(11), rng.integers(1, 12, 11)))


@pytest.mark.parametrize("folds", [3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_row_is_left_out_once(folds, seed):
    codes = unequal_groups(seed)
    whole, rows = (held_out(codes, by, folds, seed) for by in ("cluster", "row"))
    for parts in (whole, rows):
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(codes)))
    for part in whole:
        assert set(codes[part]) & set(np.delete(codes, part)) == set()
    assert np.ptp([len(np.unique(codes[part])) for part in whole]) <= 1
    assert np.ptp([len(part) for part in rows]) <= 1
    for code in range(11):
        assert np.ptp([np.sum(codes[part] == code) for part in rows]) <= 1


@pytest.mark.parametrize("folds", [3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_leaves_each_row_out_once_with_and_once_without_its_group(folds, seed):
    codes = np.repeat(np.arange(11), 4 * folds)
    times = {True: np.zeros(len(codes)), False: np.zeros(len(codes))}
    for part in held_out(codes, "both", folds, seed):
        new = ~np.isin(codes[part], np.delete(codes, part))
        times[True][part[new]] += 1
        times[False][part[~new]] += 1
    assert (times[True] == 1).all()
    assert (times[False] == 1).all()


def test_folds_depend_on_the_seed_alone(unmoved_rng):
    codes = unequal_groups(0)
    with unmoved_rng():
        first, again, other = (held_out(codes, "row", 4, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("by", "folds", "message"),
    [
        ("site", 5, "by='site' is not one of 'cluster', 'row', 'both'"),
        ("cluster", 1, "at least 2"),
        ("both", 2, "at least 3"),
        ("row", 2.0, "whole number"),
        ("cluster", 6, "folds=6 is more than the 5 groups"),
        ("row", 21, "folds=21 is more than the 20 rows"),
    ],
)
def test_folds_that_cannot_be(by, folds, message):
    with pytest.raises(ArgumentError, match=message):
        held_out(np.repeat(np.arange(5), 4), by, folds, 0)


def test_too_few_groups_to_leave_any_out():
    with pytest.raises(ArgumentError, match="use by='row'"):
        held_out(np.repeat([0, 1], 9), "cluster", 2, 0)
    with pytest.raises(ArgumentError, match="use more folds"):
        held_out(np.repeat([0, 1, 2], 9), "cluster", 2, 0)


# --- rows --------------------------------------------------------------------------------------------------


def test_rows_are_scored_by_models_that_were_not_fitted_to_them(frame, both):
    group = pd.Categorical(frame["group"])
    parts = held_out(group.codes.astype(np.int64), "both", 3, seed=2)
    for k, rows in enumerate(parts, start=1):
        model = pa.ARMED(FORMULA, frame.iloc[np.setdiff1d(np.arange(63), rows)])
        model.fit(**QUIET, log_likelihood=False, seed=stream(2, "fold", k) % 2**31)
        test = frame.iloc[rows]
        scores = model.evaluate(test, new_groups="marginal", seed=stream(2, "scores", k))
        expected = scores.set_index("metric")["value"]
        found = both[both["fold"] == k]
        assert sorted(found["row"]) == sorted(rows)
        new = ~test["group"].isin(model.spec.group("group").labels)
        assert sorted(found.loc[found["split"] == "new", "row"]) == sorted(rows[new])
        assert found["nlpd"].mean() == pytest.approx(expected["nlpd"])
        assert math.sqrt(found["squared_error"].mean()) == pytest.approx(expected["rmse"])
        assert found["covered_80"].mean() == pytest.approx(expected["coverage_80"])
    np.testing.assert_array_equal(both["y"], frame["y"].to_numpy()[both["row"]])
    assert (both["group"].to_numpy() == frame["group"].to_numpy()[both["row"]]).all()
    assert both["nlpd_joint"].notna().to_numpy().tolist() == (both["split"] == "new").tolist()


def test_the_seed_repeats_everything_and_a_function_is_a_model(frame, unmoved_rng):
    options = {"by": "row", "folds": 2, **QUIET}
    fitted = pa.ARMED(FORMULA, frame)
    fitted.fit(progressbar=False, **FIT)
    with unmoved_rng():
        first = pa.cross_predict(fitted, frame, seed=5, **options)
    again = pa.cross_predict(lambda rows: pa.ARMED(FORMULA, rows), frame, seed=5, **options)
    pd.testing.assert_frame_equal(first, again)
    other = pa.cross_predict(fitted, frame, seed=6, **options)
    assert not np.array_equal(first["nlpd"], other["nlpd"])
    assert first["split"].unique().tolist() == ["seen"]


def test_predictors_are_learned_from_the_training_rows_alone(frame):
    # A level that one group alone has: where that group is left out, the fold has not learned it.
    usual = np.array(["common", "other"])[np.arange(63) % 2]
    data = frame.assign(kind=np.where(frame["group"] == frame["group"].iloc[0], "rare", usual))
    model = pa.ARMED("y ~ x1 + kind + (1 | group)", data)
    with pytest.raises(DataError, match=r"In fold \d: Column 'kind' has levels that training did not have"):
        pa.cross_predict(model, data, folds=3, **QUIET)
    found = pa.cross_predict(model, data, folds=3, unseen_levels="baseline", **QUIET)
    assert len(found) == len(data)


def test_missing_rows_weights_and_other_groups(frame):
    data = frame.copy()
    data.loc[[3, 40], "x1"] = np.nan
    data["site"] = np.arange(63) % 4
    model = pa.ARMED("y ~ x1 + (1 | group) + (1 | site)", data, missing="drop", weights="w")
    with pytest.raises(ArgumentError, match=r"several grouping factors; pass group=\.\.\. \(group, site\)"):
        pa.cross_predict(model, data, **QUIET)
    found = pa.cross_predict(model, data, group="site", folds=2, **QUIET)
    assert sorted(found["row"]) == [row for row in range(63) if row not in (3, 40)]
    assert set(found["group"]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found["weight"], data["w"].to_numpy()[found["row"]])
    same = found.groupby("group")["nlpd_joint"].nunique()
    assert (same == 1).all()


def test_a_model_without_group_effects_needs_the_name_of_a_column(frame):
    model = pa.ARMED("y ~ x1", frame)
    with pytest.raises(ArgumentError, match="say with group= which column"):
        pa.cross_predict(model, frame, **QUIET)
    found = pa.cross_predict(model, frame, group="group", folds=2, **QUIET)
    assert set(found["split"]) == {"new"}
    assert found["nlpd_joint"].notna().all()
    with pytest.raises(DataError, match="missing labels"):
        pa.cross_predict(model, frame.assign(g2=[None] + ["a", "b"] * 31), group="g2", **QUIET)
    with pytest.raises(DataError, match="is called 'all'"):
        pa.cross_predict(model, frame.assign(g2=["all", "b", "c"] * 21), group="g2", **QUIET)


def arrays(frame):
    return frame[["x1"]].to_numpy().copy(), frame["b"].to_numpy(), {"site": frame["group"].to_numpy()}


@pytest.mark.parametrize("kind", ["tuple", "weights", "function"])
def test_models_from_arrays(frame, kind):
    x, y, groups = arrays(frame)
    weights = frame["w"].to_numpy() if kind == "weights" else None
    model = pa.ARMED.from_arrays(
        torch.as_tensor(x), y, groups, family="bernoulli", network=pa.networks.MLP((4,)), weights=weights
    )
    data = (x, y, groups) if weights is None else {"x": x, "y": y, "groups": groups, "weights": weights}
    source = model
    if kind == "function":

        def source(rows):
            return pa.ARMED.from_arrays(**rows, family="bernoulli", network=pa.networks.MLP((4,)))

    found = pa.cross_predict(source, data, by="both", folds=3, **QUIET)
    assert found.groupby("split")["row"].apply(lambda rows: sorted(rows) == list(range(63))).all()
    np.testing.assert_array_equal(found["y"], y[found["row"]])
    assert found["expected"].between(0, 1).all()
    if weights is not None:
        np.testing.assert_array_equal(found["weight"], weights[found["row"]])
        with pytest.raises(ArgumentError, match="The model's weights belong to the rows that it has"):
            pa.cross_predict(model, (x, y, groups), **QUIET)


def test_rows_of_any_kind_are_taken():
    rows = np.array([2, 0])
    data = {
        "x": torch.arange(3), "y": [1, 2, 3], "groups": {"g": pd.Series(list("abc"), index=[5, 6, 7])},
        "trials": 4, "offset": None, "weights": pd.Categorical(list("xyz")),
    }  # fmt: skip
    found = take(data, rows)
    assert found["x"].tolist() == [2, 0]
    assert found["y"] == [3, 1]
    assert found["groups"]["g"].tolist() == ["c", "a"]
    assert (found["trials"], found["offset"]) == (4, None)
    assert list(found["weights"]) == ["z", "x"]


def test_bad_input(frame):
    model = pa.ARMED(FORMULA, frame)
    with pytest.raises(ArgumentError, match="data must be a data frame"):
        pa.cross_validate(model, [1, 2])
    with pytest.raises(ArgumentError, match="data must be a data frame for this model"):
        pa.cross_validate(model, arrays(frame))
    with pytest.raises(ArgumentError, match=r"data must be \(x, y, groups\) for this model"):
        pa.cross_validate(pa.ARMED.from_arrays(*arrays(frame), family="bernoulli"), frame)
    with pytest.raises(
        ArgumentError, match=r"restart= is no argument of fit\(\); it has inference, guide, rest"
    ):
        pa.cross_validate(model, frame, restart=1)
    with pytest.raises(ArgumentError, match="must be an ARMED, or a function"):
        pa.cross_validate("y ~ x1", frame)
    with pytest.raises(ArgumentError, match="group='site' is not a grouping factor"):
        pa.cross_validate(model, frame, group="site")
    with pytest.raises(
        DataError, match="rows has no column 'fold'; pass the table that cross_predict returns"
    ):
        score_rows(frame)


# --- summaries ---------------------------------------------------------------------------------------------


def test_a_tidy_table_of_scores(both):
    scores = score_rows(both)
    assert list(scores.columns) == ["fold", "split", "group", "metric", "value", "se"]
    assert not scores.duplicated(["fold", "split", "group", "metric"]).any()
    value = scores.set_index(["fold", "split", "group", "metric"])["value"]
    se = scores.set_index(["fold", "split", "group", "metric"])["se"]
    for split in ("new", "seen"):
        rows = both[both["split"] == split]
        assert value["all", split, "all", "nlpd"] == pytest.approx(rows["nlpd"].mean())
        assert value["all", split, "all", "rmse"] == pytest.approx(rows["squared_error"].mean() ** 0.5)
        robust = metrics.mean_score(rows["nlpd"], clusters=rows["group"]).se
        assert se["all", split, "all", "nlpd"] == pytest.approx(
            max(robust, metrics.mean_score(rows["nlpd"]).se)
        )
        assert value[2, split, "all", "crps"] == pytest.approx(rows.loc[rows["fold"] == 2, "crps"].mean())
        label = rows["group"].iloc[-1]
        one = rows[rows["group"] == label]
        assert value["all", split, label, "coverage_95"] == pytest.approx(one["covered_95"].mean())
        assert se["all", split, label, "nlpd"] == pytest.approx(metrics.mean_score(one["nlpd"]).se)
        errors = [abs(rows[f"covered_{p}"].mean() - p / 100) for p in (50, 80, 95)]
        assert value["all", split, "all", "calibration_error"] == pytest.approx(np.mean(errors))
        assert se["all", split, "all", "calibration_error"] > 0
    new = both[both["split"] == "new"]
    assert value["all", "new", "all", "nlpd_joint"] == pytest.approx(new["nlpd_joint"].mean())
    assert ("all", "seen", "all", "nlpd_joint") not in value.index
    assert np.isnan(se["all", "new", new["group"].iloc[0], "nlpd_joint"])
    assert scores.set_index("metric")["value"].drop("calibration_error").notna().all()


def test_rows_of_a_group_are_less_surprising_together(frame, both):
    """The effect is shared: what the first rows say of it helps with the others."""
    score = score_rows(both).query("fold == 'all' and group == 'all' and split == 'new'").set_index("metric")
    assert score.loc["nlpd_joint", "value"] < score.loc["nlpd", "value"]


@pytest.mark.parametrize(
    ("response", "family", "expected"),
    [
        ("b", "bernoulli", ["nlpd", "nlpd_joint", "auroc", "brier", "ece"]),
        ("kind", "categorical", ["nlpd", "nlpd_joint", "accuracy", "brier"]),
    ],
)
def test_scores_of_other_responses(frame, response, family, expected):
    data = frame.assign(kind=np.array(["p", "q", "r"])[np.arange(63) % 3])
    model = pa.ARMED(f"{response} ~ x1 + (1 | group)", data, family=family)
    scores = pa.cross_validate(model, data, folds=3, **QUIET)
    overall = scores.query("fold == 'all' and group == 'all'")
    assert overall["metric"].tolist() == expected
    assert np.isfinite(overall[["value", "se"]].to_numpy()).all()


# --- conformal ---------------------------------------------------------------------------------------------


def by_hand(scores, groups, parts, level, grid, row):
    """The set of Barber et al.: values that are stranger than too few of the scores."""
    codes = np.concatenate(groups)
    k = len(np.unique(codes))
    kept = []
    for y in grid:
        mass = 0.0
        for s, c, part in zip(scores, groups, parts, strict=True):
            strange = max(
                (part.center[row] - y) / (part.center[row] - part.low[row]),
                (y - part.center[row]) / (part.high[row] - part.center[row]),
            )
            mass += sum(
                (1.0 / np.sum(codes == code)) * (strange > one) for one, code in zip(s, c, strict=True)
            )
        if mass < level * (k + 1):
            kept.append(y)
    return kept


def test_regions_of_folds_contain_the_set_by_hand():
    rng = np.random.default_rng(0)
    groups = [np.repeat([0, 1, 2], [1, 4, 2]), np.repeat([3, 4, 5, 6], [3, 1, 5, 2])]
    scores = [rng.exponential(size=len(codes)) for codes in groups]
    empty = np.empty((0, 0))

    def part():
        center = rng.normal(size=4)
        return Predictive(
            center,
            center - rng.exponential(size=4),
            center + rng.exponential(size=4),
            np.full(4, np.inf),
            empty,
        )

    parts = [part(), part()]
    found = combined_regions(scores, groups, parts, 0.8, pa.families.get("gaussian"))
    grid = np.linspace(-12, 12, 601)
    for row in range(4):
        kept = by_hand(scores, groups, parts, 0.8, grid, row)
        assert found.lower[row] <= min(kept)
        assert found.upper[row] >= max(kept)
        # One model alone: the interval is the set.
        same = combined_regions(scores, groups, [parts[0]] * 2, 0.8, pa.families.get("gaussian"))
        kept = by_hand(scores, groups, [parts[0]] * 2, 0.8, grid, row)
        assert same.lower[row] == pytest.approx(min(kept), abs=0.041)
        assert same.upper[row] == pytest.approx(max(kept), abs=0.041)
    wide = combined_regions(scores, groups, parts, 0.9, pa.families.get("gaussian"))
    assert np.isinf(wide.upper).all()  # 7 groups are too few


def test_cross_conformal_of_numbers_and_levels(frame):
    new = frame.head(5).assign(group="new")
    model = pa.ARMED(FORMULA, frame)
    found = pa.cross_conformal(model, frame, new, level=0.8, folds=2, seed=1, **QUIET)
    assert (found["lower"] < found["upper"]).all()
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    pd.testing.assert_frame_equal(
        found, pa.cross_conformal(model, frame, new, level=0.8, folds=2, seed=1, **QUIET)
    )
    x, y, groups = arrays(frame)
    binary = pa.ARMED.from_arrays(x, y, groups, family="bernoulli")
    found = pa.cross_conformal(
        binary, (x, y, groups), (x[:5], {"site": ["new"] * 5}), level=0.8, folds=2, **QUIET
    )
    assert found.columns.tolist() == [0, 1]
    assert found.any(axis=1).all()
    with pytest.raises(ArgumentError, match=r"\(x, groups\) for a model from arrays"):
        pa.cross_conformal(binary, (x, y, groups), x, level=0.8, folds=2, **QUIET)
    with pytest.raises(ArgumentError, match="level=90"):
        pa.cross_conformal(model, frame, new, level=90)


def test_cross_conformal_says_where_it_promises_nothing(frame):
    model = pa.ARMED(FORMULA, frame)
    with pytest.warns(ArmedWarning) as caught:
        found = pa.cross_conformal(model, frame, frame.head(3), level=0.95, folds=2, **QUIET)
    said = [str(one.message) for one in caught]
    assert any("9 groups of 'group' are too few for level=0.95" in text and "19" in text for text in said)
    assert any("3 of 3 new rows are of groups of 'group' that data has" in text for text in said)
    assert np.isinf(found.to_numpy()).all()


@pytest.mark.slow
def test_coverage_of_cross_conformal_intervals():
    """20 groups, heavy tails: at least 2 x .9 - 1, and close to .9 in fact."""
    rng = np.random.default_rng(3)

    def simulate(n_groups, rows):
        code = np.repeat(np.arange(n_groups), rows)
        x = rng.normal(size=len(code))
        y = x + rng.normal(size=n_groups)[code] + rng.standard_t(2.5, len(code))
        return pd.DataFrame({"x": x, "g": [f"g{c}" for c in code], "y": y})

    covered = []
    for repeat in range(6):
        data, new = simulate(20, 6), simulate(300, 1)
        new["g"] = "n" + new["g"]
        model = pa.ARMED("y ~ x + (1 | g)", data)
        found = pa.cross_conformal(
            model, data, new, folds=3, restarts=1, draws=300, seed=repeat, progressbar=False
        )
        covered.append(((new["y"] >= found["lower"]) & (new["y"] <= found["upper"])).mean())
    se = np.std(covered) / math.sqrt(6)
    print(np.round(covered, 3), np.mean(covered).round(3), se.round(3))
    assert 0.9 - 3 * se < np.mean(covered) < 0.9 + 2 / 20 + 3 * se


# --- several specifications --------------------------------------------------------------------------------


def test_models_are_compared_row_by_row_on_the_same_folds(frame, both):
    models = {"null": pa.ARMED("y ~ 1 + (1 | group)", frame), "x1": pa.ARMED(FORMULA, frame)}
    table = pa.cross_validation.compare(models, frame, folds=3, seed=2, **QUIET)
    assert table.columns.tolist() == ["split", "model", "nlpd", "se", "worse", "worse_se"]
    assert table["split"].tolist() == ["new", "new", "seen", "seen"]
    null = pa.cross_predict(models["null"], frame, by="both", folds=3, seed=2, **QUIET)
    for split, part in table.groupby("split"):
        rows = {"x1": both[both["split"] == split], "null": null[null["split"] == split]}
        assert part["nlpd"].is_monotonic_increasing
        best = part["model"].iloc[0]
        for line in part.itertuples():
            gap = rows[line.model]["nlpd"] - rows[best]["nlpd"]
            assert line.nlpd == pytest.approx(rows[line.model]["nlpd"].mean(), rel=1e-10)
            assert line.worse == pytest.approx(gap.mean(), abs=1e-10)
            codes = pd.factorize(rows["x1"]["group"])[0]
            expected = metrics.mean_score(gap.to_numpy(), None, codes).se
            assert line.worse_se >= expected - 1e-12
    assert table.attrs["best"] == table.groupby("model")["nlpd"].sum().idxmin()


def test_what_cannot_be_compared(frame):
    with pytest.raises(ArgumentError, match="must be a mapping"):
        pa.cross_validation.compare([pa.ARMED(FORMULA, frame)], frame)
    other = pa.ARMED("b ~ x1 + (1 | group)", frame, family="bernoulli")
    models = {"y": pa.ARMED(FORMULA, frame), "b": other}
    with pytest.raises(ArgumentError, match=r"models\['b'\] has another response"):
        pa.cross_validation.compare(models, frame, by="row", folds=2, **QUIET)
