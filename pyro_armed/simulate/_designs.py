"""Mixed models with two grouping factors, and with a group-level confounder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.errors import ArgumentError
from pyro_armed.simulate._checks import labels, number, positive_integer, stream, vector
from pyro_armed.simulate._mixed import Floats, MixedData, design_matrix, effects_table
from pyro_armed.simulate._responses import auxiliary_parameters, respond


def crossed(
    n_subjects: int = 30,
    n_items: int = 20,
    rows_per_cell: int = 1,
    *,
    fixed: Sequence[float] = (0.0, 1.0),
    subject_sd: float = 1.0,
    item_sd: float = 0.5,
    observed: float = 1.0,
    family: str = "gaussian",
    sigma: float = 1.0,
    auxiliary: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> MixedData:
    """Simulate two crossed grouping factors: every subject meets every item.

    Parameters
    ----------
    n_subjects, n_items, rows_per_cell : int
        Numbers of subjects, of items and of rows of each pair.
    fixed, family, sigma, auxiliary, seed
        See :func:`mixed_model`.
    subject_sd, item_sd : float
        Standard deviations of the random intercepts.
    observed : float
        Share of the rows kept, at random, in (0, 1]; at least one row stays.

    Returns
    -------
    MixedData
        Grouping factors ``subject`` and ``item``; the effects of all, met or not.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> data = crossed(n_subjects=3, n_items=2, seed=0)
    >>> list(data.frame.columns), len(data.frame), data.formula
    (['x1', 'subject', 'item', 'y'], 6, 'y ~ x1 + (1 | subject) + (1 | item)')
    """
    counts = {
        "subject": positive_integer("n_subjects", n_subjects),
        "item": positive_integer("n_items", n_items),
    }
    cell = np.repeat(
        np.arange(counts["subject"] * counts["item"]), positive_integer("rows_per_cell", rows_per_cell)
    )
    if not 0 < number("observed", observed) <= 1:
        raise ArgumentError(f"observed has to be in (0, 1], but is {observed!r}.")
    rng = stream(seed)
    if observed < 1:
        kept = max(1, round(observed * cell.size))
        cell = np.sort(rng.choice(cell, kept, replace=False))
    factors = {
        "subject": _Factor(labels("s", n_subjects), cell // n_items, number("subject_sd", subject_sd, 0.0)),
        "item": _Factor(labels("i", n_items), cell % n_items, number("item_sd", item_sd, 0.0)),
    }
    return _random_intercepts(rng, factors, fixed, family, sigma, auxiliary, "(1 | subject) + (1 | item)")


def nested(
    n_schools: int = 20,
    classes_per_school: int = 4,
    rows_per_class: int = 10,
    *,
    fixed: Sequence[float] = (0.0, 1.0),
    school_sd: float = 1.0,
    classroom_sd: float = 0.5,
    family: str = "gaussian",
    sigma: float = 1.0,
    auxiliary: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> MixedData:
    """Simulate classes in schools.

    Column ``classroom`` has labels that are unique across schools; column ``class_number`` numbers the
    classes within each school, as data often come (``(1 | school/class_number)``).

    Parameters
    ----------
    n_schools, classes_per_school, rows_per_class : int
        Numbers of schools, of classes in each and of pupils in each class.
    fixed, family, sigma, auxiliary, seed
        See :func:`mixed_model`.
    school_sd, classroom_sd : float
        Standard deviations of the random intercepts.

    Returns
    -------
    MixedData
        Grouping factors ``school`` and ``classroom``.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> data = nested(n_schools=2, classes_per_school=3, rows_per_class=4, seed=0)
    >>> data.frame.groupby("school")["classroom"].nunique().tolist()
    [3, 3]
    """
    schools = positive_integer("n_schools", n_schools)
    classes = positive_integer("classes_per_school", classes_per_school)
    code = np.repeat(np.arange(schools * classes), positive_integer("rows_per_class", rows_per_class))
    school, number_in_school = labels("s", schools), labels("c", classes)
    rooms = np.array([f"{s}.{c}" for s in school for c in number_in_school])
    factors = {
        "school": _Factor(school, code // classes, number("school_sd", school_sd, 0.0)),
        "classroom": _Factor(rooms, code, number("classroom_sd", classroom_sd, 0.0)),
    }
    result = _random_intercepts(
        stream(seed), factors, fixed, family, sigma, auxiliary, "(1 | school) + (1 | classroom)"
    )
    result.frame.insert(
        result.frame.columns.get_loc("classroom"), "class_number", number_in_school[code % classes]
    )
    return result


def within_between(
    n_groups: int = 50,
    rows_per_group: int = 20,
    *,
    within: float = 1.0,
    between: float = -1.0,
    intercept: float = 0.0,
    group_sd: float = 0.5,
    x_sd: float = 1.0,
    x_mean_sd: float = 1.0,
    family: str = "gaussian",
    sigma: float = 1.0,
    auxiliary: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> MixedData:
    """Simulate a predictor whose slope between groups differs from its slope within them.

    With ``x1_mean`` the mean of ``x1`` over the group's rows, the linear predictor is
    ``intercept + within * (x1 - x1_mean) + between * x1_mean + group effect``. A model of ``x1`` alone takes
    the group effects for independent of ``x1``, which they are not here, and gets a mixture of both slopes.

    Parameters
    ----------
    n_groups, rows_per_group : int
        Number of groups and of rows in each.
    within, between, intercept : float
        Slopes within and between groups, and the intercept.
    group_sd : float
        Standard deviation of the group's intercept around the line between groups.
    x_sd, x_mean_sd : float
        Standard deviations of ``x1`` within a group, and of the groups' means.
    family, sigma, auxiliary, seed
        See :func:`mixed_model`.

    Returns
    -------
    MixedData
        Coefficients ``Intercept``, ``x1`` (within) and ``x1_mean`` (between minus within), as in the formula
        ``y ~ x1 + x1_mean + (1 | group)``.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> data = within_between(n_groups=3, rows_per_group=4, within=1.0, between=-1.0, seed=0)
    >>> data.coefficients.to_dict()
    {'Intercept': 0.0, 'x1': 1.0, 'x1_mean': -2.0}
    """
    n_groups = positive_integer("n_groups", n_groups)
    code = np.repeat(np.arange(n_groups), positive_integer("rows_per_group", rows_per_group))
    within, between = number("within", within), number("between", between)
    rng = stream(seed)
    centre = rng.normal(0.0, number("x_mean_sd", x_mean_sd, 0.0), n_groups)
    x = centre[code] + rng.normal(0.0, number("x_sd", x_sd, 0.0), code.size)
    mean = (np.bincount(code, x) / rows_per_group)[code]
    factors = {"group": _Factor(labels("g", n_groups), code, number("group_sd", group_sd, 0.0))}
    fixed = (number("intercept", intercept), within, between - within)
    columns = {"x1": x, "x1_mean": mean}
    return _random_intercepts(rng, factors, fixed, family, sigma, auxiliary, "(1 | group)", columns)


@dataclass(frozen=True)
class _Factor:
    """Labels (C,), each row's code (N,) and the sd of the intercepts of one grouping factor."""

    labels: NDArray[np.str_]
    code: NDArray[np.int64]
    sd: float


def _random_intercepts(
    rng: np.random.Generator,
    factors: dict[str, _Factor],
    fixed: Sequence[float],
    family: str,
    sigma: float,
    auxiliary: Mapping[str, Any] | None,
    random_terms: str,
    columns: dict[str, Floats] | None = None,
) -> MixedData:
    """Draw intercepts of all factors and the response; predictors x1, ... unless given."""
    beta = vector("fixed", fixed)
    aux = auxiliary_parameters(family, sigma, auxiliary)
    rows = next(iter(factors.values())).code.size
    if columns is None:
        design = design_matrix(rng, rows, beta.size)
        columns = {f"x{j}": design[:, j] for j in range(1, beta.size)}
    eta = beta[0] + sum((b * x for b, x in zip(beta[1:], columns.values(), strict=True)), np.zeros(rows))
    effects = {name: rng.normal(0.0, f.sd, f.labels.size) for name, f in factors.items()}
    for name, factor in factors.items():
        eta = eta + effects[name][factor.code]
    groups = {name: f.labels[f.code] for name, f in factors.items()}
    return MixedData(
        frame=pd.DataFrame({**columns, **groups, "y": respond(rng, family, eta, aux)}),
        formula=f"y ~ {' + '.join(columns) or '1'} + {random_terms}",
        family=family,
        coefficients=pd.Series(beta, index=["Intercept", *columns], name="coefficient"),
        sds={name: pd.Series([f.sd], index=["1"], name="sd") for name, f in factors.items()},
        effects={
            name: effects_table(name, f.labels, ["1"], effects[name][:, None]) for name, f in factors.items()
        },
        correlation={name: pd.DataFrame([[1.0]], index=["1"], columns=["1"]) for name in factors},
        auxiliary=aux,
        linear_predictor=eta,
    )
