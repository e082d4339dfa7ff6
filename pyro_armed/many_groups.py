"""What fitted models do with more groups than memory has room for the draws of."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from pyro_armed.arrays import ArrayDesign
from pyro_armed.batch import Batch
from pyro_armed.design import SAMPLE, Encoded, FormulaDesign
from pyro_armed.errors import ArgumentError, NotFittedError, UnseenGroupError
from pyro_armed.export import build_idata, write_posterior
from pyro_armed.groups import GroupIndex, group_labels
from pyro_armed.module import MixedEffectsModule
from pyro_armed.new_rows import encode_rows
from pyro_armed.posterior import Posterior
from pyro_armed.seeds import generator_for
from pyro_armed.some_groups import posterior_of, recoded
from pyro_armed.spec import ModelSpec

__all__ = ["ManyGroups"]


class ManyGroups:
    """The part of `ARMED` that concerns posteriors whose effects are not held."""

    spec: ModelSpec
    _design: FormulaDesign | ArrayDesign
    _module: MixedEffectsModule
    _posterior: Posterior | None
    _idata: Any

    def of_groups(self, groups: Mapping[str, Any]) -> Self:
        """The fitted model of some of the groups.

        After a fit with the mean-field guide and very many groups the draws of their effects are not held:
        they are made when they are needed, and are the same each time.

        Parameters
        ----------
        groups : mapping of str to sequence
            Labels of the groups of some or all grouping factors; all groups of the others.

        Returns
        -------
        ARMED
            Predicts as this model does; the other groups are new to it. Its ``.idata`` has the effects of
            these groups, and no rows. It cannot be fitted again.

        Raises
        ------
        UnseenGroupError
            For labels that training did not have.
        ArgumentError
            For names that are no grouping factors, and too many groups.
        NotFittedError
            Before `fit`.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> data = pa.simulate.mixed_model(8, 20, seed=0)
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
        >>> _ = model.fit(restarts=1, draws=10, seed=0, progressbar=False)
        >>> some = model.of_groups({"group": data.frame["group"].unique()[:2]})
        >>> dict(some.idata["posterior"]["1|group"].sizes)
        {'chain': 1, 'draw': 10, 'group__factor_dim': 2}
        """
        posterior, design = self._any_posterior(), self._design
        known = {group.name for group in self.spec.groups}
        codes: dict[str, torch.Tensor] = {}
        for name, labels in groups.items():
            if name not in known:
                names = ", ".join(map(repr, sorted(known))) or "none"
                raise ArgumentError(
                    f"groups has {name!r}, which is no grouping factor of the model: {names}."
                )
            found = design.group_index(name).encode(np.unique(group_labels(labels, name)))
            if (found < 0).any():
                raise UnseenGroupError(
                    f"groups has labels of '{name}' that training did not have; leave them out."
                )
            codes[name] = torch.as_tensor(np.sort(found))
        some = self._with_groups(posterior, design, codes)
        some._idata = build_idata(
            some._any_posterior(),
            Batch(size=0, n_rows=some.spec.n_rows),
            seed=int(posterior.attributes.get("seed", 0)),
            prior_draws=0,
            log_likelihood=False,
            attributes={"formula": design.describe(), **posterior.attributes},
        )
        return some

    def write_posterior(
        self, path: str | os.PathLike[str], *, dtype: str = "float32", progressbar: bool = True
    ) -> None:
        """Write the posterior draws to a netCDF file or a Zarr folder, the effects of some groups at a time.

        For very many groups, whose draws do not fit into memory; other models have `idata.to_netcdf`. Open
        the file with ``xarray.open_dataset(path, group="posterior")``, which reads what is asked for, or
        whole with `arviz.from_netcdf`; a Zarr folder with ``xarray.open_zarr(path, group="posterior")``.

        Parameters
        ----------
        path : path-like
            Where to: Zarr where the name ends in ``.zarr`` (extra ``zarr``), else netCDF. What stands there
            is replaced once the new one is complete.
        dtype : {"float32", "float64"}
            Precision in the file.
        progressbar : bool
            Whether to show progress.

        Raises
        ------
        ArgumentError
            For another precision.
        FileNotFoundError
            Where the folder does not exist.
        MissingDependencyError
            For Zarr without its package.
        NotFittedError
            Before `fit`.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(8, 20, seed=0).frame)
        >>> _ = model.fit(restarts=1, draws=10, seed=0, progressbar=False)
        >>> model.write_posterior("posterior.nc", progressbar=False)
        >>> import xarray as xr
        >>> with xr.open_dataset("posterior.nc", group="posterior", engine="h5netcdf") as posterior:
        ...     posterior["1|group"].shape
        (1, 10, 8)
        """
        write_posterior(self._any_posterior(), path, dtype=dtype, progressbar=progressbar)

    # --- inside ------------------------------------------------------------------------------------------

    def _any_posterior(self) -> Posterior:
        if self._posterior is None:
            raise NotFittedError("The model has no posterior yet: call fit() first.")
        return self._posterior

    def _fitted(self) -> Posterior:
        """The posterior with the draws of all groups."""
        posterior = self._any_posterior()
        if not posterior.is_held:
            most = max(group.size for group in self.spec.groups)
            raise ArgumentError(
                f"Draws of the effects of {most} groups are not held: take some of them, "
                "model.of_groups({'group': labels}), or write all to a file, model.write_posterior(path)."
            )
        return posterior

    def _holding(self, *parts: Any) -> Self:
        """The model itself, or that of the groups in some rows, whose draws fit into memory.

        Parts are data frames; for a model from arrays group labels, or supports with such.
        """
        posterior = self._any_posterior()
        if posterior.is_held:
            return self
        found: dict[str, list[torch.Tensor]] = {group.name: [] for group in self.spec.groups}
        for part in parts:
            for name, own in self._codes(part).items():
                found[name].append(own[(own >= 0) & (own < self.spec.group(name).size)])
        codes = {name: torch.cat(own).unique() for name, own in found.items() if own}
        return self._with_groups(posterior, self._design, codes)

    def _codes(self, part: Any) -> dict[str, torch.Tensor]:
        """Codes of the groups in some rows; what cannot be read is left to those who use it."""
        if isinstance(self._design, FormulaDesign):
            if not isinstance(part, pd.DataFrame):
                return {}
            return encode_rows(self._design, part, unseen_levels="baseline").batch.codes
        if isinstance(part, tuple) and len(part) == 3:
            part = part[2]
        if isinstance(part, Mapping) and isinstance(part.get("groups"), Mapping):
            part = part["groups"]
        if isinstance(part, pd.DataFrame):
            part = {str(name): part.iloc[:, i] for i, name in enumerate(part.columns)}
        if not isinstance(part, Mapping):
            return {}
        known = {group.name for group in self.spec.groups}
        return {
            name: torch.as_tensor(self._design.group_index(name).encode(group_labels(labels, name)))
            for name, labels in part.items()
            if name in known
        }

    def _with_groups(
        self,
        posterior: Posterior,
        design: FormulaDesign | ArrayDesign,
        codes: Mapping[str, torch.Tensor],
    ) -> Self:
        some = copy.copy(self)
        some._posterior = posterior_of(posterior, codes)
        position = next(i for i, chain in enumerate(posterior.chains) if chain.module is self._module)
        some._module = some._posterior.chains[position].module
        some.spec = some._module.spec
        some._design = design.with_groups(
            {g.name: GroupIndex(g.name, g.labels, g.counts) for g in some.spec.groups if g.name in codes}
        )
        some.__dict__.update(
            _guide=None, _idata=None, _training=None, _sample=None, _added=None, _membership=None
        )
        return some

    def _shown(self, posterior: Posterior, rows: Encoded, seed: int) -> tuple[Posterior, Encoded]:
        """The posterior of all groups, or of those of a sample of rows, which are recoded to it."""
        if posterior.is_held:
            return posterior, rows
        if rows.batch.size > SAMPLE:
            order = torch.randperm(rows.batch.size, generator=generator_for(seed, "shown rows"))
            chosen = order[:SAMPLE].sort().values
            sample = replace(rows.batch.select(chosen), rows=None)
            rows = replace(rows, batch=sample, index=rows.index[chosen.numpy()])
            posterior.attributes["sampled_rows"] = SAMPLE
        codes = {name: found.unique() for name, found in rows.batch.codes.items()}
        some = posterior_of(posterior, codes)
        shown = Encoded(recoded(rows.batch, self.spec, codes), rows.new_groups, rows.index)
        sizes = ", ".join(f"{g.name}: {len(codes[g.name])} of {g.size}" for g in self.spec.groups)
        some.attributes["shown_groups"] = sizes
        return some, shown
