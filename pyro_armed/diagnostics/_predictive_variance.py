"""Where the uncertainty of a prediction comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.diagnostics._access import fitted
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.new_groups import Mode
from pyro_armed.partial_conditional import draw_free_effects
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.predict import Evaluated, evaluated_rows, extended_chains
from pyro_armed.seeds import generator_for, seeded, stream

__all__ = ["predictive_variance"]

_DRAWS = 1000
_NAMES = ("noise", "parameters", "total")


@torch.no_grad()
def predictive_variance(
    model: Any,
    data: Any = None,
    *,
    groups: Any = None,
    offset: Any = None,
    trials: Any = None,
    new_groups: str = "error",
    support: Any = None,
    draws: int = _DRAWS,
    replicates: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Split the predictive variance of each row into noise, effects of each grouping factor, and parameters.

    Parameters
    ----------
    model : ARMED
        Fitted, with a response of numbers or of two outcomes.
    data : pandas.DataFrame or array-like, optional
        Rows; for a model from arrays the inputs x. None: the training rows.
    groups, offset, trials, new_groups, support
        As for `ARMED.predict`.
    draws : int
        Posterior draws to use, over all chains.
    replicates : int
        Draws of the group effects for each of them; at least 2.
    seed : int
        Seed of the effects.

    Returns
    -------
    pandas.DataFrame
        On the scale of the response squared, a line for each row, indexed by its position (``__obs__``):
        ``noise``, a column for each grouping factor with effects on the mean, ``parameters`` (everything that
        groups share), and ``total``, their sum, which is the variance of ``predict(kind="response")``.

    Raises
    ------
    ArgumentError
        For categorical and ordinal responses, which are not numbers; fewer than two replicates; a loaded
        model where rows are of seen groups, whose effects need the training rows; and a grouping factor that
        is called like one of the other columns.

    Notes
    -----
    The law of total variance, twice, with theta the parameters and u the group effects::

        Var(y) = E[Var(y | u, theta)] + E[Var(E[y | u, theta] | theta)] + Var(E[y | theta])

    The second term, by nested sampling, is the effects': u is drawn several times for each draw of theta,
    for a seen group from its conditional given theta and the group's training rows, for a new one as
    ``new_groups`` says. The third is the variance of the means over u, less what their number of draws adds.
    With several grouping factors the effects' part is split as their covariances with the sum of effects in
    the linear predictor are, which is exact for an identity link. With M draws and R replicates the
    effects' part has a relative Monte Carlo error of about sqrt(2 / (M (R - 1))).

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(8, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=50, progressbar=False)
    >>> new = data.frame.head(2).assign(group="new")
    >>> predictive_variance(model, new, new_groups="marginal").columns.tolist()
    ['noise', 'group', 'parameters', 'total']
    """
    model = fitted(model, "predictive_variance")
    names = _checked(model, draws, replicates)
    encoded = model._training
    if data is not None:
        encoded = model._encode(data, groups, offset=offset, trials=trials)
    elif encoded is None:
        raise ArgumentError("data is needed: a loaded model does not have its training rows.")
    posterior, mode = model._fitted(), model._mode(new_groups, support)
    each = min(posterior.n_draws, max(1, draws // len(posterior.chains)))
    copies = [
        _redrawn(posterior, model._training, encoded, mode, each, stream(seed, "replicate", r))
        for r in range(replicates)
    ]
    sums = _Sums(names, encoded.batch.size, replicates)
    for position, chain in enumerate(posterior.chains):
        with local_parameters():
            hidden = chain.module.eval().hidden(encoded.batch)
        parts = zip(*(evaluated_rows([copy[position]], encoded.batch) for copy in copies), strict=True)
        for some in parts:
            sums.add(some, replace(encoded.batch, rows=None), hidden)
    index = encoded.index if len(encoded.index) == encoded.batch.size else np.arange(encoded.batch.size)
    return pd.DataFrame(sums.table(), index=pd.Index(index, name="__obs__"))


def _checked(model: Any, draws: Any, replicates: Any) -> list[str]:
    """The grouping factors with effects on the mean."""
    for name, value, least in (("draws", draws, 1), ("replicates", replicates, 2)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least {least}.")
    if model.spec.family.response in ("categorical", "ordinal"):
        raise ArgumentError(
            "predictive_variance needs a response of numbers or two outcomes; "
            f"that of family {model.spec.family.name!r} has levels."
        )
    if model.spec.layers:
        raise ArgumentError(
            "predictive_variance draws the effects of the predictor again given the network; this model has "
            "group effects within its network (ScaleBias) too."
        )
    names = list(dict.fromkeys(block.group for block in model.spec.mu.blocks))
    if clash := [name for name in names if name in _NAMES]:
        raise ArgumentError(
            f"The grouping factor {clash[0]!r} is called like a column of the result; rename it."
        )
    return names


def _redrawn(
    posterior: Posterior, training: Encoded | None, encoded: Encoded, mode: Mode, draws: int, seed: int
) -> list[Chain]:
    """The chains with other draws of the group effects, those of new groups included."""
    kept = torch.linspace(0, posterior.n_draws - 1, draws, dtype=torch.float64).round().long()
    spec = posterior.chains[0].module.spec
    names = list(dict.fromkeys(block.group for block in spec.blocks))
    seen = {
        name: (codes := encoded.batch.codes[name].unique())[codes < spec.group(name).size] for name in names
    }
    chains = []
    with seeded(stream(seed, "conditional")):
        for position, chain in enumerate(posterior.chains):
            values = {name: value[kept] for name, value in chain.values.items()}
            if any(len(codes) for codes in seen.values()):
                if training is None:
                    raise ArgumentError(
                        "The rows are of groups that training had, and a loaded model does not have the "
                        "training rows that their effects depend on; fit it here."
                    )
                batch, free = _conditioned_on(training.batch, seen, spec)
                generator = generator_for(seed, "effects", position)
                drawn = draw_free_effects(Chain(chain.module, values), batch, free, generator)
                for block in spec.blocks:
                    for term in block.terms:
                        name = block.effect_name(term)
                        values[name] = values[name].index_copy(1, free[block.group], drawn[name])
            chains.append(Chain(chain.module, values))
    return extended_chains(Posterior(chains), encoded, mode, seed=seed)


def _conditioned_on(
    training: Batch, seen: Mapping[str, Tensor], spec: Any
) -> tuple[Batch, dict[str, Tensor]]:
    """Training rows, and the groups whose effects are drawn given them: with one factor those at hand."""
    if len(seen) == 1:
        ((name, codes),) = seen.items()
        return training.select(torch.isin(training.codes[name], codes).nonzero()[:, 0]), {name: codes}
    return training, {name: torch.arange(spec.group(name).size) for name in seen}


class _Sums:
    """Running sums over draws of theta, of shape (N,)."""

    def __init__(self, names: Sequence[str], n_rows: int, replicates: int):
        self.replicates, self.count = replicates, 0
        self.noise, self.within = torch.zeros(n_rows), torch.zeros(n_rows)
        self.mean, self.square = torch.zeros(n_rows), torch.zeros(n_rows)
        self.shares = {name: torch.zeros(n_rows) for name in names}

    def add(self, parts: Sequence[Evaluated], batch: Batch, hidden: Any) -> None:
        """Take in some draws of theta, with all replicates of the effects."""
        laws = [p.chain_object.module.response_distribution(p.etas, p.values, batch) for p in parts]
        size = len(parts[0].etas["mu"])
        means = torch.stack([law.mean.expand(size, batch.size) for law in laws])
        self.noise = self.noise + sum(law.variance.expand(size, batch.size).sum(0) for law in laws)
        self.within = self.within + means.var(0).sum(0)
        center = means.mean(0)
        # Welford's update, by blocks: sums of squares of large means would lose their digits.
        new, total = center.mean(0), self.count + size
        shift = new - self.mean
        self.square = (
            self.square + (center - new).square().sum(0) + shift.square() * (self.count * size / total)
        )
        self.mean, self.count = self.mean + shift * (size / total), total
        if len(self.shares) > 1:
            self._add_shares(parts, batch, hidden)

    def _add_shares(self, parts: Sequence[Evaluated], batch: Batch, hidden: Any) -> None:
        module = parts[0].chain_object.module
        deviations = {}
        for name in self.shares:
            blocks = [block for block in module.spec.mu.blocks if block.group == name]
            effect: Tensor = sum(  # type: ignore[assignment]
                torch.stack([module.block_contribution(block, p.values, batch, hidden) for p in parts])
                for block in blocks
            )
            deviations[name] = effect - effect.mean(0)
        together = sum(deviations.values())
        for name, deviation in deviations.items():
            self.shares[name] = self.shares[name] + (deviation * together).sum((0, 1))

    def table(self) -> dict[str, np.ndarray]:
        """The columns of the result."""
        random = self.within / self.count
        between = self.square / max(1, self.count - 1) - random / self.replicates
        noise = self.noise / (self.count * self.replicates)
        columns = {"noise": noise}
        total = sum(self.shares.values(), torch.zeros(1))
        for name, share in self.shares.items():
            part = share / torch.where(total == 0, 1.0, total) if len(self.shares) > 1 else 1.0
            columns[name] = random * part
        columns["parameters"] = between.clamp_min(0.0)
        columns["total"] = sum(columns.values(), torch.zeros(1))
        return {name: value.double().cpu().numpy() for name, value in columns.items()}
