"""A fit in one table and a few sentences."""

import numpy as np
import pytest
from hand_made import frame

import pyro_armed as pa
from pyro_armed.errors import NotFittedError
from pyro_armed.summary import summarize


@pytest.fixture(scope="module")
def fitted():
    data = pa.simulate.mixed_model(12, 6, fixed=(0.0, 1.0), sds=(1.0, 0.5), correlation=0.3, seed=1)
    model = pa.ARMED("y ~ x1 + (1 + x1 | group)", data.frame)
    model.fit(restarts=2, draws=150, seed=0, progressbar=False)
    return model


def test_summary_is_that_of_the_draws(fitted):
    summary = fitted.summary()
    draws = fitted.idata["posterior"]["x1"].to_numpy()
    row = summary.table.loc["x1"]
    assert row["mean"] == pytest.approx(draws.mean())
    assert row["sd"] == pytest.approx(draws.std(ddof=1))
    assert row["q5"] == pytest.approx(np.quantile(draws, 0.05))
    assert 100 < row["ess"] < 900
    assert summary.table.index.tolist() == [
        "Intercept",
        "x1",
        "sigma",
        "1|group_sigma",
        "x1|group_sigma",
        "group_corr[1, x1]",
    ]
    assert summary.table.notna().all().all()
    effects = fitted.summary(effects=True).table
    assert effects.index[-1] == "x1|group[g11]"
    values = fitted.idata["posterior"]["x1|group"].sel(group__factor_dim="g11")
    assert effects.iloc[-1]["mean"] == pytest.approx(float(values.mean()))
    assert "x1|group_sigma" in repr(summary)
    assert "<td>" in summary._repr_html_()


def test_one_restart_has_no_r_hat_but_all_else(fitted):
    """Correlations come with their axes in another order."""
    table = summarize(fitted.idata.isel(chain=[0]), fitted.spec).table
    assert table.index.tolist() == fitted.summary().table.index.tolist()
    assert table["r_hat"].isna().all()
    assert table["ess"].notna().all()


def test_summary_says_when_groups_are_few(fitted):
    spec = pa.ARMED("y ~ x + (1 + z | g) + (1 | h)", frame()).spec
    notes = summarize(fitted.idata, spec).notes
    assert "The sds of 1|g, z|g rest on 5 groups only: the prior matters." in notes
    assert "The sd of 1|h rests on 3 groups only: the prior matters." in notes
    assert not fitted.summary().notes


def test_summary_before_fit():
    with pytest.raises(NotFittedError):
        pa.ARMED("y ~ x + (1 | g)", frame()).summary()
