"""Confounding between groups: features that only encode the group, and effects that differ between levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyro_armed.arrays import ArrayDesign
from pyro_armed.design._arrays import number_array
from pyro_armed.diagnostics._access import dataset_of, fitted, idata_of
from pyro_armed.diagnostics._importance import Importance, importance
from pyro_armed.diagnostics._rows import encoded_rows
from pyro_armed.errors import ArgumentError
from pyro_armed.recipe import remake
from pyro_armed.seeds import stream
from pyro_armed.within_between import BETWEEN, WITHIN

__all__ = ["ProbeAudit", "between_within", "group_probes", "probe_audit"]


@dataclass(frozen=True, eq=False)
class ProbeAudit:
    """What a refitted model makes of features that only encode the group. Prints itself.

    Attributes
    ----------
    table : pandas.DataFrame
        That of `importance`, with ``rank`` (1: the most important) and ``probe``, whether it is one.
    share : numpy.ndarray
        The probes' share in the sum of all importances, one for each posterior draw.
    model : ARMED
        The refitted model.
    """

    table: pd.DataFrame
    share: np.ndarray
    model: Any

    def __str__(self) -> str:
        probes = self.table[self.table["probe"]]
        low, high = np.quantile(self.share, [0.05, 0.95])
        shown = self.table.to_string(float_format=lambda value: f"{value:.3f}")
        return (
            f"{shown}\n\n{len(probes)} probes, which tell only of the group, have {self.share.mean():.1%} of "
            f"the importance (90 % interval {low:.1%} to {high:.1%}); the first has rank "
            f"{probes['rank'].min()} of {len(self.table)}."
        )

    __repr__ = __str__


def probe_audit(
    model: Any,
    data: Any,
    y: Any = None,
    *,
    groups: Any = None,
    n_probes: int = 2,
    factor: str | None = None,
    noise: float = 1.0,
    kind: str = "linear",
    seed: int = 0,
    progressbar: bool = True,
    **fit: Any,
) -> ProbeAudit:
    """Add features that only encode the group, refit, and see how much the prediction hangs on them.

    A probe is the mean response of the row's group plus noise of its own: related to the response between
    groups and to nothing within them. A model that predicts from it has learned to tell groups rather than
    responses.

    Parameters
    ----------
    model : ARMED
        Fitted or not; it is made again with the probes. A network must be of a kind that learns its number
        of inputs from the data, as `networks.MLP` does.
    data : DataFrame or array-like
        Rows to refit with; for a model from arrays the inputs x, one column for each predictor.
    y, groups : optional
        Responses and group labels, for a model from arrays.
    n_probes : int
        Number of probes, called ``audit1``, ``audit2``, ...
    factor : str, optional
        Grouping factor that the probes encode; None: the model's first.
    noise : float
        The probes' noise sd, in units of the sd of the groups' mean responses over rows.
    kind : {"linear", "mean"}
        As for `importance`.
    seed : int
        Seed of the probes, the fit and the importance.
    progressbar : bool
        Whether to show progress.
    **fit
        Arguments of `ARMED.fit`, such as ``guide="mean_field"``.

    Returns
    -------
    ProbeAudit

    Raises
    ------
    ArgumentError
        For models from a file, responses without a mean, groups that all have the same mean response, inputs
        that are no columns, and settings that cannot be used.

    Notes
    -----
    The confounded probes of Nguyen et al. (arXiv 2202.11783). In groups of few rows the mean is close to
    each row's own response, so that a probe is more than the group there.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(8, 20, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame)
    >>> audit = probe_audit(model, frame, n_probes=1, restarts=1, draws=50, progressbar=False)
    >>> sorted(audit.table.index)
    ['audit1', 'x1']
    """
    if not isinstance(n_probes, int) or isinstance(n_probes, bool) or n_probes < 1:
        raise ArgumentError(f"n_probes={n_probes!r} must be a whole number of at least 1.")
    if isinstance(noise, (bool, str)) or not 0.0 < noise < np.inf:
        raise ArgumentError(f"noise={noise!r} must be a number above 0.")
    plain = remake(model, data, y=y, groups=groups)
    probes = group_probes(plain, n_probes, factor, float(noise), seed)
    audited = _with_probes(plain, data, y, groups, probes)
    audited.fit(seed=seed, progressbar=progressbar, **{"log_likelihood": False, **fit})
    found: Importance = importance(audited, kind=kind, seed=seed)
    table = found.table
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    table.insert(1, "probe", table.index.isin(probes.columns))
    return ProbeAudit(table, found.share(list(probes.columns)), audited)


def group_probes(model: Any, n_probes: int, factor: str | None, noise: float, seed: int) -> pd.DataFrame:
    """Features that are the group's mean response plus noise.

    Parameters
    ----------
    model : ARMED
        With its training rows.
    n_probes, factor, noise, seed
        As for `probe_audit`.

    Returns
    -------
    pandas.DataFrame, shape (N, n_probes)
        By position of the rows in the data; NaN where the model left a row out.

    Raises
    ------
    ArgumentError
        See `probe_audit`.
    """
    names = [group.name for group in model.spec.groups]
    if not names or (factor is not None and factor not in names):
        known = ", ".join(names) or "none"
        raise ArgumentError(f"factor={factor!r} is not a grouping factor of the model ({known}).")
    if model.spec.family.response == "categorical":
        raise ArgumentError("probe_audit needs a response with a mean; a categorical one has none.")
    encoded = encoded_rows(model)
    batch = encoded.batch
    response: Any = batch.response
    response = response if batch.trials is None else response / batch.trials
    codes = batch.codes[factor or names[0]].cpu().numpy()
    means = pd.Series(response.cpu().numpy()).groupby(codes).transform("mean").to_numpy()
    spread = float(means.std())
    if spread <= 1e-12 * max(1.0, float(np.abs(means).max())):
        raise ArgumentError(
            "All groups have the same mean response: there is nothing that probes could tell."
        )
    rng = np.random.default_rng(stream(seed, "audit probes"))
    values = np.full((int(encoded.index.max()) + 1, n_probes), np.nan)
    values[encoded.index] = means[:, None] + noise * spread * rng.normal(size=(len(means), n_probes))
    return pd.DataFrame(values, columns=[f"audit{i + 1}" for i in range(n_probes)])


def _with_probes(model: Any, data: Any, y: Any, groups: Any, probes: pd.DataFrame) -> Any:
    """The model with the probes among its predictors."""
    arguments = model._arguments
    if isinstance(model._design, ArrayDesign):
        if model._design.shape is None or len(model._design.shape) != 1:
            raise ArgumentError("probe_audit needs inputs with one column for each predictor, not images.")
        x = number_array(data, "x")
        columns = [*(model._design.columns or [f"x{i}" for i in range(x.shape[1])]), *probes.columns]
        more = {name: arguments[name] for name in ("weights", "offset", "trials")}
        return remake(
            model,
            np.column_stack([x, probes.reindex(range(len(x))).to_numpy()]),
            y=y,
            groups=groups,
            columns=columns,
            **more,
        )
    if taken := [name for name in probes.columns if name in data.columns]:
        raise ArgumentError(f"data have a column {taken[0]!r}, as a probe is called; rename it.")
    new = {name: probes[name].reindex(range(len(data))).to_numpy() for name in probes.columns}
    formula = arguments["formula"]
    first, *rest = [formula] if isinstance(formula, str) else formula
    return remake(model, data.assign(**new), formula=[" + ".join([first, *probes.columns]), *rest])


def between_within(model: Any) -> pd.DataFrame:
    """Whether predictors have another effect between groups than within them.

    Where they do, something at the level of the groups is related to both the predictor and the response: an
    effect that mixes the two levels is confounded by it.

    Parameters
    ----------
    model : ARMED
        Fitted, with a linear predictor and ``within_between=[...]``.

    Returns
    -------
    pandas.DataFrame
        One row for each predictor that is split: ``predictor``, ``group``, ``within`` and ``between`` (the
        coefficients' posterior means), ``difference`` (between minus within), its ``sd``, ``q5``, ``q95``,
        and ``probability``, the posterior probability that it is above 0. With an interaction, coefficients
        are those where the other column is 0.

    Raises
    ------
    ArgumentError
        For models that split no predictor, with a network, or with a categorical response.

    Notes
    -----
    Mundlak, Econometrica 46, 1978; Bell, Fairbrother, Jones, Quality & Quantity 53, 2019. The difference is
    the contextual effect; its interval stands in the place of Hausman's test.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> frame = pa.simulate.mixed_model(8, 20, seed=0).frame
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", frame, within_between=["x1"])
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> between_within(model)["predictor"].tolist()
    ['x1']
    """
    model = fitted(model, "between_within")
    split = getattr(getattr(model._design, "_columns", None), "split", None)
    if split is None:
        raise ArgumentError("The model splits no predictor: make it with within_between=['x'].")
    if model.spec.mu.network or model.spec.n_predictors > 1:
        raise ArgumentError(
            "between_within compares two coefficients; use a linear predictor and a response with one mean."
        )
    posterior = dataset_of(idata_of(model), "posterior")
    rows = []
    for name, group in split.factors.items():
        within, between = (posterior[name + suffix].to_numpy().ravel() for suffix in (WITHIN, BETWEEN))
        difference = between - within
        rows.append(
            (
                name,
                ":".join(group),
                within.mean(),
                between.mean(),
                difference.mean(),
                difference.std(ddof=1),
                *np.quantile(difference, [0.05, 0.95]),
                float((difference > 0).mean()),
            )
        )
    columns = ["predictor", "group", "within", "between", "difference", "sd", "q5", "q95", "probability"]
    return pd.DataFrame(rows, columns=columns)
