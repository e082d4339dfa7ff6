"""What adaptation is worth: spirals beside their Bayes limits, and two real data sets. Slow."""

import numpy as np
import pytest

import pyro_armed as pa
from pyro_armed.evaluation import pointwise

pytestmark = [
    pytest.mark.slow,
    # Accuracy needs the middle of the mean-field posterior, whose width the warning is about.
    pytest.mark.filterwarnings("ignore::pyro_armed.errors.ConvergenceWarning"),
]


def in_random_order(frame, group, seed=0):
    """Rows shuffled, numbered within their group by ``k``."""
    shuffled = frame.sample(frac=1, random_state=seed)
    return shuffled.assign(k=shuffled.groupby(group).cumcount())


def test_spirals_of_new_groups_come_near_the_bayes_limits():
    """A third of the README's rows and short training: up to .02 is missing from the shares given there."""
    data = pa.simulate.spirals(20, 300, seed=2)
    new = data.new_groups(10, rows_per_group=400, seed=2)
    model = pa.ARMED(
        "y ~ x1 + x2 + (1 + features | group)",
        data.frame,
        family="bernoulli",
        network=pa.networks.MLP(hidden=(16, 16, 16)),
    )
    quick = {"restarts": 1, "draws": 50, "epochs": 120, "log_likelihood": False, "progressbar": False}
    model.fit(guide="mean_field", **quick)
    rows = in_random_order(new.frame, "group")
    test = rows[rows["k"] >= 50]

    def accuracy(**options):
        probability = model.predict(test, **options)["predictions"]["y"].mean(("chain", "draw")).to_numpy()
        return np.mean((probability > 0.5) == (test["y"].to_numpy() == 1))

    assert accuracy(new_groups="marginal") > 0.95 * new.bayes_accuracy(test, known_radius=False)
    limit = new.bayes_accuracy(test)
    assert accuracy(new_groups="adapt", support=rows[rows["k"] < 10]) > 0.93 * limit
    assert accuracy(new_groups="adapt", support=rows[rows["k"] < 50]) > 0.95 * limit


@pytest.mark.parametrize(
    ("name", "formula", "family", "group"),
    [
        ("contraception", "use ~ age + urban + livch + (1 + urban | district)", "bernoulli", "district"),
        ("hsb82", "mAch ~ cses + meanses + sx + minrty + (1 + cses | school)", "gaussian", "school"),
    ],
)
def test_five_labelled_rows_beat_the_average_group(name, formula, family, group):
    data = pa.datasets.load(name)
    labels = data[group].unique()
    held_out = np.random.default_rng(0).choice(labels, round(0.3 * len(labels)), replace=False)
    model = pa.ARMED(formula, data[~data[group].isin(held_out)], family=family)
    model.fit(restarts=1, draws=200, log_likelihood=False, progressbar=False)
    gains = []
    for seed in range(4):  # which rows are the labelled ones
        rows = in_random_order(data[data[group].isin(held_out)], group, seed)
        encoded = model._encode(rows[rows["k"] >= 5], response=True)
        adapt = model._mode("adapt", rows[rows["k"] < 5])
        population, adapted = (
            pointwise(model._fitted(), encoded, mode, seed=seed)["nlpd"] for mode in ("population", adapt)
        )
        gains.append(population.mean() - adapted.mean())
    assert np.mean(gains) > 0
