"""From posterior draws to xarray datasets, wrapped for ArviZ last.

Names follow Bambi: ``1|district`` with dimension ``district__factor_dim``, rows are ``__obs__``, restarts are
``chain``. The object is an `arviz.InferenceData` on ArviZ 0.x and an `xarray.DataTree` on ArviZ 1.x.
"""

from pyro_armed.export._idata import build_idata, prediction_idata, prior_idata
from pyro_armed.export._parameters import (
    posterior_dataset,
    prior_chain,
    prior_dataset,
    sample_stats_dataset,
)
from pyro_armed.export._rows import constant_dataset, observed_dataset, pointwise
from pyro_armed.export._tables import to_arviz, variable_name
from pyro_armed.export._written import write_posterior

__all__ = [
    "build_idata",
    "constant_dataset",
    "observed_dataset",
    "pointwise",
    "posterior_dataset",
    "prediction_idata",
    "prior_chain",
    "prior_dataset",
    "prior_idata",
    "sample_stats_dataset",
    "to_arviz",
    "variable_name",
    "write_posterior",
]
