"""Membership of all grouping factors, and the mode of prediction that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.membership._factor import FactorMembership, fit_factor
from pyro_armed.module import MixedEffectsModule
from pyro_armed.new_groups import Mode, draw_marginal
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.spec import ModelSpec

__all__ = ["Membership", "fit_membership"]


class Membership(Mode):
    """Effects of the seen groups that a new group's rows resemble, or of none of them.

    Attributes
    ----------
    module : MixedEffectsModule
        Whose hidden features the classifiers see, with the draws of whichever chain.
    factors : dict of str to FactorMembership
        By grouping factor.
    refused : dict of str to str
        Grouping factors for which there is none, and why, in a sentence.
    """

    name = "membership"

    def __init__(
        self,
        module: MixedEffectsModule,
        factors: Mapping[str, FactorMembership],
        refused: Mapping[str, str],
    ):
        self.module = module
        self.factors, self.refused = dict(factors), dict(refused)

    def check(self, encoded: Encoded) -> None:
        """Refuse new groups of factors that have no classifier.

        Raises
        ------
        ArgumentError
            Saying why.
        """
        for group, labels in encoded.new_groups.items():
            if labels and group in self.refused:
                raise ArgumentError(self.refused[group])

    def effects(self, chain: Chain, encoded: Encoded, generator: torch.Generator) -> dict[str, Tensor]:
        """In each draw those of one seen group, or a draw from Normal(0, Sigma); see `Mode.effects`."""
        spec = chain.module.spec
        sizes = {group: len(encoded.new_groups.get(group, ())) for group in spec.effect_groups}
        made = draw_marginal(chain, sizes, generator)
        for group in [name for name, size in sizes.items() if size]:
            factor = self.factors[group]
            probabilities = self._probabilities(group, encoded)
            drawn = torch.multinomial(
                torch.as_tensor(probabilities), chain.n_draws, replacement=True, generator=generator
            ).T
            none = drawn == len(factor.candidates)
            codes = torch.as_tensor(np.append(factor.candidates, 0))[drawn]
            draws = torch.arange(chain.n_draws)[:, None]
            # One choice for all effects of a group, those of other predictors such as sigma's included.
            for name in spec.effect_names(group):
                seen = chain.values[name][draws, codes]
                here = none.reshape(*none.shape, *[1] * (seen.ndim - 2)).to(seen.device)
                made[name] = torch.where(here, made[name], seen)
        return made

    def table(self, spec: ModelSpec, encoded: Encoded, top: int) -> pd.DataFrame:
        """The probabilities; see `ARMED.membership`."""
        self.check(encoded)
        parts = []
        for group, factor in self.factors.items():
            new = encoded.new_groups.get(group, [])
            known = spec.group(group)
            if not new:
                continue
            found = self._probabilities(group, encoded)
            rows = torch.bincount(encoded.batch.codes[group].cpu(), minlength=known.size + len(new))
            for place, label in enumerate(new):
                seen = np.argsort(-found[place, :-1], kind="stable")[:top]
                parts += [
                    (group, label, int(rows[known.size + place]), known.labels[code], probability)
                    for code, probability in zip(factor.candidates[seen], found[place, seen], strict=True)
                ]
                parts.append((group, label, int(rows[known.size + place]), None, found[place, -1]))
        return pd.DataFrame(parts, columns=["factor", "group", "rows", "seen", "probability"])

    def _probabilities(self, group: str, encoded: Encoded) -> NDArray[np.float64]:
        known = self.module.spec.group(group).size
        new = len(encoded.new_groups[group])
        return self.factors[group].probabilities(self.module, encoded.batch, known, new)

    def quality(self) -> pd.DataFrame:
        """What held-out rows say of each classifier; see `ARMED.fit_membership`."""
        rows: list[dict[str, Any]] = [
            {"factor": group, **factor.quality, **vars(factor.tempering), "note": ""}
            for group, factor in self.factors.items()
        ]
        return pd.DataFrame([*rows, *({"factor": k, "note": why} for k, why in self.refused.items())])

    def pack(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """A JSON-able description; arrays go to ``tensors``."""
        factors = [
            factor.pack(f"membership.{number}.", tensors)
            for number, factor in enumerate(self.factors.values())
        ]
        return {"factors": factors, "refused": self.refused}

    @classmethod
    def unpack(
        cls, module: MixedEffectsModule, described: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Membership:
        """From what `pack` gave."""
        factors = [
            FactorMembership.unpack(factor, f"membership.{number}.", tensors)
            for number, factor in enumerate(described["factors"])
        ]
        return cls(module, {factor.group: factor for factor in factors}, described["refused"])


def fit_membership(
    posterior: Posterior, module: MixedEffectsModule, training: Batch, *, seed: int, progressbar: bool = True
) -> Membership:
    """One classifier for each grouping factor with effects.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    module : MixedEffectsModule
        Whose hidden features the classifiers see.
    training : Batch
        Training rows.
    seed : int
        Seed of everything.
    progressbar : bool
        Whether to show the classifiers' training.

    Returns
    -------
    Membership
    """
    factors, refused = {}, {}
    for group in module.spec.effect_groups:
        try:
            factors[group] = fit_factor(
                posterior, module, training, group, seed=seed, progressbar=progressbar
            )
        except ArgumentError as error:
            refused[group] = str(error)
    return Membership(module, factors, refused)
