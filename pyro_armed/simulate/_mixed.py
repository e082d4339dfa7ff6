"""Mixed models of one grouping factor, with known coefficients, effects and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_armed.errors import ArgumentError
from pyro_armed.simulate._checks import group_sizes, labels, positive_integer, stream, vector
from pyro_armed.simulate._responses import auxiliary_parameters, respond

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MixedData:
    """Grouped data and the truth behind them.

    Attributes
    ----------
    frame : pandas.DataFrame
        Predictors, one column of labels per grouping factor, and the response ``y``, N rows.
    formula : str
        The formula of the model that made the data.
    family : str
        Response family.
    coefficients : pandas.Series
        Common effects by term name (``Intercept``, ``x1``, ...).
    sds : dict of str to pandas.Series
        For each grouping factor the sd of its effects by term (``1``, ``x1``, ...).
    effects : dict of str to pandas.DataFrame
        For each grouping factor its groups' effects, one row per group and one column per term.
    correlation : dict of str to pandas.DataFrame
        For each grouping factor the correlations of its effects.
    auxiliary : dict
        The family's other parameters, such as ``sigma``.
    linear_predictor : numpy.ndarray
        The noiseless linear predictor of each row, shape (N,).
    """

    frame: pd.DataFrame
    formula: str
    family: str
    coefficients: pd.Series
    sds: dict[str, pd.Series]
    effects: dict[str, pd.DataFrame]
    correlation: dict[str, pd.DataFrame]
    auxiliary: dict[str, Any]
    linear_predictor: Floats


@dataclass(frozen=True, eq=False)
class MixedModelData(MixedData):
    """What :func:`mixed_model` returns: :class:`MixedData` that can be continued with new groups."""

    settings: dict[str, Any]
    first_group: int

    def new_groups(
        self, n_groups: int, *, rows_per_group: int | Sequence[int] | None = None, seed: int = 0
    ) -> MixedModelData:
        """Simulate further groups of the same population; their labels go on where these end.

        Parameters
        ----------
        n_groups : int
            How many.
        rows_per_group : int or sequence of int, optional
            As before when omitted.
        seed : int
            The seed of the first groups may be used again: it gives other groups here.

        Raises
        ------
        ArgumentError
            If a count or the seed is not usable.

        Examples
        --------
        >>> data = mixed_model(n_groups=2, rows_per_group=3, seed=0)
        >>> list(data.new_groups(2, seed=0).effects["group"].index)
        ['g02', 'g03']
        """
        settings = dict(self.settings)
        if rows_per_group is not None:
            settings["rows_per_group"] = rows_per_group
        first = self.first_group + len(self.effects["group"])
        return _mixed_model(n_groups, seed=seed, first_group=first, **settings)


def mixed_model(
    n_groups: int = 50,
    rows_per_group: int | Sequence[int] = 20,
    *,
    fixed: Sequence[float] = (0.0, 1.0),
    sds: Sequence[float] = (1.0,),
    correlation: float | Sequence[Sequence[float]] | NDArray[Any] | None = None,
    family: str = "gaussian",
    sigma: float = 1.0,
    auxiliary: Mapping[str, Any] | None = None,
    unbalanced: bool = False,
    seed: int = 0,
) -> MixedModelData:
    """Simulate a mixed model with one grouping factor.

    Predictors ``x1``, ``x2``, ... are standard normal, each row on its own. Links are those of the families'
    defaults: identity for gaussian and student_t, log for poisson, negative_binomial and gamma, logit for
    bernoulli, beta and ordinal.

    Parameters
    ----------
    n_groups : int
        Number of groups.
    rows_per_group : int or sequence of int
        Rows of every group, or of each.
    fixed : sequence of float
        Intercept and the coefficients of ``x1``, ``x2``, ...
    sds : sequence of float
        Standard deviations of the group's intercept and of its slopes on ``x1``, ``x2``, ...; no longer than
        ``fixed``.
    correlation : float or array, optional
        Correlation of the group's effects: one number for all pairs, or a matrix. None: independent.
    family : str
        gaussian, student_t, bernoulli, poisson, negative_binomial, gamma, beta or ordinal.
    sigma : float
        Residual scale of gaussian and student_t.
    auxiliary : mapping, optional
        Other parameters of the family: nu (4), alpha (2), kappa (10), threshold ((-1, 0, 1)).
    unbalanced : bool
        Let the groups' sizes differ widely (each at least 1), with the same total.
    seed : int
        Same seed, same data.

    Returns
    -------
    MixedModelData
        The data and the truth.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or the correlations are not those of any distribution.

    Examples
    --------
    >>> data = mixed_model(n_groups=3, rows_per_group=4, fixed=(1.0, -0.5), sds=(1.0, 0.5), seed=0)
    >>> data.formula
    'y ~ x1 + (1 + x1 | group)'
    >>> data.effects["group"].shape
    (3, 2)
    """
    return _mixed_model(
        n_groups,
        rows_per_group=rows_per_group,
        fixed=fixed,
        sds=sds,
        correlation=correlation,
        family=family,
        sigma=sigma,
        auxiliary=auxiliary,
        unbalanced=unbalanced,
        seed=seed,
        first_group=0,
    )


def _mixed_model(n_groups: int, *, seed: int, first_group: int, **settings: Any) -> MixedModelData:
    n_groups = positive_integer("n_groups", n_groups)
    beta = vector("fixed", settings["fixed"])
    scale = vector("sds", settings["sds"], 0.0)
    if scale.size > beta.size:
        raise ArgumentError(
            f"sds has {scale.size} entries but fixed only {beta.size}; give fixed one per term."
        )
    auxiliary = auxiliary_parameters(settings["family"], settings["sigma"], settings["auxiliary"])
    matrix = _correlation_matrix(settings["correlation"], scale.size)
    rng = stream(seed, first_group)
    sizes = group_sizes(rng, n_groups, settings["rows_per_group"], settings["unbalanced"])
    effects = rng.standard_normal((n_groups, scale.size)) @ np.linalg.cholesky(matrix).T * scale
    code = np.repeat(np.arange(n_groups), sizes)
    design = design_matrix(rng, code.size, beta.size)
    eta = design @ beta + (design[:, : scale.size] * effects[code]).sum(1)
    names = labels("g", n_groups, first_group)
    xs = [f"x{j}" for j in range(1, beta.size)]
    terms = ["1", *xs[: scale.size - 1]]
    columns = dict(zip(xs, design[:, 1:].T, strict=True))
    y = respond(rng, settings["family"], eta, auxiliary)
    return MixedModelData(
        frame=pd.DataFrame({**columns, "group": names[code], "y": y}),
        formula=f"y ~ {' + '.join(xs) or '1'} + ({' + '.join(terms)} | group)",
        family=settings["family"],
        coefficients=pd.Series(beta, index=["Intercept", *xs], name="coefficient"),
        sds={"group": pd.Series(scale, index=terms, name="sd")},
        effects={"group": effects_table("group", names, terms, effects)},
        correlation={"group": pd.DataFrame(matrix, index=terms, columns=terms)},
        auxiliary=auxiliary,
        linear_predictor=eta,
        settings=settings,
        first_group=first_group,
    )


def design_matrix(rng: np.random.Generator, rows: int, terms: int) -> Floats:
    """Return an intercept and standard normal predictors, shape (rows, terms)."""
    return np.column_stack([np.ones(rows), rng.standard_normal((rows, terms - 1))])


def effects_table(factor: str, names: NDArray[np.str_], terms: list[str], effects: Floats) -> pd.DataFrame:
    """Return effects (C, terms) as a table with the groups as its index."""
    return pd.DataFrame(effects, index=pd.Index(names, name=factor), columns=terms)


def _correlation_matrix(correlation: Any, size: int) -> Floats:
    """Return the (size, size) correlation matrix that the argument means."""
    if correlation is None:
        return np.eye(size)
    given = np.asarray(correlation, dtype=float)
    matrix = np.full((size, size), float(given)) if given.ndim == 0 else given
    if given.ndim == 0:
        np.fill_diagonal(matrix, 1.0)
    proper = (
        matrix.shape == (size, size) and np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1)
    )
    if not proper or np.linalg.eigvalsh(matrix).min() <= 0:
        raise ArgumentError(
            f"correlation has to be one number or a positive definite {size} x {size} matrix with ones on "
            f"its diagonal (one row per entry of sds), but is {correlation!r}."
        )
    return matrix
