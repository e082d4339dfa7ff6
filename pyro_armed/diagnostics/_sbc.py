"""Simulation-based calibration: parameters from the prior, data from the model, ranks in the posterior.

Talts, Betancourt, Simpson, Vehtari, Gelman, arXiv 1804.06788; ECDF bands as in Säilynoja, Bürkner, Vehtari,
Statistics and Computing 32, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from pyro_armed.batch import Batch
from pyro_armed.diagnostics._access import scalar_draws
from pyro_armed.errors import ArgumentError
from pyro_armed.export import posterior_dataset, prior_chain
from pyro_armed.inference import infer
from pyro_armed.inference_settings import InferenceSettings, Ingredients
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.predict import evaluated_rows
from pyro_armed.seeds import seeded, stream

if TYPE_CHECKING:
    from pyro_armed.armed import ARMED

__all__ = ["SBC", "sbc"]

_EXPECTED = 5


@dataclass(frozen=True, eq=False)
class SBC:
    """Ranks of true parameters among posterior draws.

    Attributes
    ----------
    ranks : pandas.DataFrame
        One row for each simulation and scalar parameter: ``simulation``, ``parameter``, ``truth``, ``mean``
        and ``sd`` of the posterior, and ``rank``, the number of posterior draws below the truth.
    fits : pandas.DataFrame
        One row for each simulation: ``simulation``, ``khat``, ``converged``.
    draws : int
        Posterior draws S; ranks go from 0 to S.
    """

    ranks: pd.DataFrame
    fits: pd.DataFrame
    draws: int

    def test(self, bins: int | None = None) -> pd.DataFrame:
        """Chi-square tests of uniform ranks.

        Parameters
        ----------
        bins : int, optional
            Bins of equal numbers of ranks as far as possible; None: at most 20, with five expected in each.

        Returns
        -------
        pandas.DataFrame
            For each parameter: ``chi2``, ``df``, ``p_value``; and ``p_value_adjusted``, Holm's correction for
            the number of parameters.
        """
        n = self.ranks["simulation"].nunique()
        if bins is None:
            bins = min(20, max(2, n // _EXPECTED))
        if not isinstance(bins, int) or not 2 <= bins <= self.draws + 1:
            raise ArgumentError(f"bins={bins!r} must be a whole number from 2 to {self.draws + 1}.")
        which = np.arange(self.draws + 1) * bins // (self.draws + 1)
        expected = n * np.bincount(which, minlength=bins) / (self.draws + 1)
        rows = []
        for name, part in self.ranks.groupby("parameter", sort=False):
            observed = np.bincount(which[part["rank"].to_numpy()], minlength=bins)
            chi2 = float(((observed - expected) ** 2 / expected).sum())
            rows.append((name, chi2, bins - 1, float(stats.chi2.sf(chi2, bins - 1))))
        table = pd.DataFrame(rows, columns=["parameter", "chi2", "df", "p_value"])
        return table.assign(p_value_adjusted=_holm(table["p_value"].to_numpy()))

    def ecdf(self, probability: float = 0.95) -> pd.DataFrame:
        """Empirical distribution of the ranks, less the uniform one, with a simultaneous band.

        Parameters
        ----------
        probability : float
            With which a calibrated parameter's curve stays within the band everywhere.

        Returns
        -------
        pandas.DataFrame
            Columns ``parameter``, ``u`` (fractional rank), ``difference``, ``low``, ``high``, ``inside``.
        """
        if not 0.0 < probability < 1.0:
            raise ArgumentError(f"probability={probability!r} must lie between 0 and 1.")
        n = self.ranks["simulation"].nunique()
        u = np.arange(1, self.draws + 1) / (self.draws + 1)
        low, high = _band(n, u, probability)
        parts = []
        for name, part in self.ranks.groupby("parameter", sort=False):
            below = np.sort(part["rank"].to_numpy())
            count = np.searchsorted(below, np.arange(1, self.draws + 1), side="left")
            parts.append(
                pd.DataFrame(
                    {
                        "parameter": name,
                        "u": u,
                        "difference": count / n - u,
                        "low": low / n - u,
                        "high": high / n - u,
                        "inside": (count >= low) & (count <= high),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def __str__(self) -> str:
        test = self.test()
        worst = test.loc[test["p_value"].idxmin()]
        return (
            f"{len(self.fits)} simulations, {self.draws} draws each, {len(test)} parameters: smallest "
            f"p-value {worst['p_value']:.3g} ({worst['parameter']}), "
            f"after Holm {worst['p_value_adjusted']:.3g}; "
            f"{int((~self.fits['converged']).sum())} fits had not converged."
        )


def sbc(
    model: ARMED | Callable[[], ARMED],
    n: int = 200,
    *,
    draws: int = 99,
    guide: str = "structured",
    inference: str = "svi",
    seed: int = 0,
    progressbar: bool = True,
) -> SBC:
    """Simulation-based calibration of a model's inference.

    Parameters
    ----------
    model : ARMED or callable
        A model with a linear predictor, fitted or not, or a function that makes one. Its rows give
        predictors and groups; the response in them is replaced. Its priors (as they are for that response:
        the default ones follow its scale) are simulated from, so they should be such that data from them
        are possible data: ``priors={"1|group_sigma": dist.HalfNormal(1.0), ...}``.
    n : int
        Simulations.
    draws : int
        Posterior draws of each fit; ranks take draws + 1 values.
    guide, inference
        As for `ARMED.fit`.
    seed : int
        Same seed, same ranks.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    SBC
        With the ranks, and ``.test()`` and ``.ecdf()``.

    Raises
    ------
    ArgumentError
        For models with a network (its weights have no prior) or row weights, and for priors so wide that
        responses overflow.

    Notes
    -----
    Where posterior draws are right, ranks are uniform. Draws of the structured guide are independent; those
    of ``inference="nuts"`` are not, which makes the test reject too often unless draws are thinned.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 5, seed=0)
    >>> model = pa.ARMED("y ~ 1 + (1 | group)", data.frame)
    >>> result = sbc(model, n=2, draws=9, progressbar=False)
    >>> result.ranks.columns.tolist()
    ['simulation', 'parameter', 'truth', 'mean', 'sd', 'rank']
    """
    for name, value in (("n", n), ("draws", draws)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    made: Any = model() if callable(model) and not hasattr(model, "spec") else model
    batch = _check(made)
    truth = prior_chain(made.module, n, stream(seed, "sbc"))
    responses = _responses(truth, batch, seed)
    true_values = _scalars(truth)
    ingredients = Ingredients(made.spec, made._user_priors, None, batch)
    tables, fits = [], []
    for i in tqdm(range(n), desc="SBC", disable=not progressbar, leave=False):
        settings = InferenceSettings(
            inference=inference,
            guide=guide,
            restarts=1,
            draws=draws,
            seed=stream(seed, "sbc", i) % 2**31,
            progressbar=False,
        )
        result = infer(replace(ingredients, data=replace(batch, response=responses[i])), settings)
        tables.append(_ranks(i, {k: v[i] for k, v in true_values.items()}, result.posterior.chains[0]))
        attributes = result.posterior.attributes
        fits.append((i, attributes.get("khat", np.nan), bool(attributes.get("converged", True))))
    ranks = pd.concat(tables, ignore_index=True)
    return SBC(ranks, pd.DataFrame(fits, columns=["simulation", "khat", "converged"]), draws)


def _check(model: Any) -> Batch:
    if getattr(model, "_training", None) is None:
        raise ArgumentError("model must be an ARMED with its training rows (a loaded one has none).")
    if model._plan is not None:
        raise ArgumentError("sbc needs a linear predictor: the weights of a network have no prior.")
    if model._training.batch.weights is not None:
        raise ArgumentError("sbc needs rows without weights; leave out weights=.")
    batch: Batch = model._training.batch
    return batch


def _responses(truth: Chain, batch: Batch, seed: int) -> Tensor:
    """A response for each draw of the prior, shape (n, N)."""
    parts = []
    with seeded(stream(seed, "sbc responses")):
        for part in evaluated_rows([truth], batch):
            drawn = truth.module.response_distribution(part.etas, part.values, batch).sample()
            parts.append(drawn.to(batch.response.dtype))  # type: ignore[union-attr]
    responses = torch.cat(parts)
    bad = int((~responses.isfinite()).any(-1).sum())
    if bad:
        raise ArgumentError(
            f"{bad} of {len(responses)} simulated responses are not finite: pass narrower priors=..."
        )
    return responses


def _ranks(simulation: int, truth: dict[str, float], chain: Chain) -> pd.DataFrame:
    rows = []
    for name, draws in _scalars(chain).items():
        value = truth[name]
        rows.append((simulation, name, value, draws.mean(), draws.std(ddof=1), int((draws < value).sum())))
    return pd.DataFrame(rows, columns=["simulation", "parameter", "truth", "mean", "sd", "rank"])


def _scalars(chain: Chain) -> dict[str, np.ndarray]:
    """Draws (S,) of each scalar parameter, by ArviZ's labels."""
    dataset = posterior_dataset(Posterior([chain]))
    return {name: values[0] for name, values in scalar_draws(dataset)}


def _band(
    n: int, u: np.ndarray, probability: float, simulations: int = 4000
) -> tuple[np.ndarray, np.ndarray]:
    """Counts within which n uniform values stay at all of ``u`` with a probability, by simulation."""
    rng = np.random.default_rng(n)
    sample = np.sort(rng.random((simulations, n)), axis=1)
    counts = np.stack([np.searchsorted(row, u, side="left") for row in sample])
    tails = np.minimum(stats.binom.cdf(counts, n, u), stats.binom.sf(counts - 1, n, u)).min(axis=1)
    gamma = np.quantile(tails, 1 - probability)
    low = stats.binom.ppf(gamma, n, u)
    high = stats.binom.isf(gamma, n, u)
    return low, high


def _holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted
