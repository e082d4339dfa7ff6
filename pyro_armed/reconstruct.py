"""Inputs as the network reconstructs them, by the average group and by each row's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import xarray as xr
from torch import Tensor

from pyro_armed.design import Encoded
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.module import OBSERVATIONS, MixedEffectsModule
from pyro_armed.new_groups import Mode
from pyro_armed.passes import single_draws
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.predict import extended_chains
from pyro_armed.training import single_thread

__all__ = ["reconstruct_rows"]


@torch.no_grad()
def reconstruct_rows(
    posterior: Posterior, encoded: Encoded, mode: str | Mode, *, seed: int, draws: int | None = None
) -> xr.Dataset:
    """Reconstructions of some rows.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    encoded : Encoded
        Rows.
    mode : str or Mode
        What to do for new groups.
    seed : int
        Seed of the new groups' effects.
    draws : int, optional
        Draws of each chain to use, evenly spaced; None: 50.

    Returns
    -------
    xarray.Dataset
        Means over draws and chains, dimensions (__obs__, x_dim_0, ...): ``fixed`` without group effects,
        ``mixed`` with those of each row's group, and ``mixed_sd`` over draws and restarts. Probabilities for
        a Bernoulli likelihood.

    Raises
    ------
    ArgumentError
        For a model whose network does not reconstruct its input.
    UnseenGroupError
        For new labels under ``"error"``.
    """
    spec = posterior.chains[0].module.spec
    if spec.reconstruction is None:
        raise ArgumentError(
            "The model's network does not reconstruct its input; use one that returns (output, "
            "reconstruction), such as networks.AutoencoderClassifier."
        )
    fixed: Tensor | float = 0.0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    count = 0
    for chain in extended_chains(posterior, encoded, mode, seed=seed, draws=draws):
        average = _rebuilt(chain.module, encoded, None)
        fixed = fixed + average
        for rebuilt in _by_draw(chain, encoded, average):
            # Sums instead of a stack: draws of images would not fit into memory.
            total, squares, count = total + rebuilt, squares + rebuilt.square(), count + 1
    mean = torch.as_tensor(total / count)
    sd = (squares / count - mean.square()).clamp_min(0.0).sqrt()
    dims = (OBSERVATIONS, *(f"x_dim_{axis}" for axis in range(mean.dim() - 1)))
    parts = {"fixed": torch.as_tensor(fixed / len(posterior.chains)), "mixed": mean, "mixed_sd": sd}
    rows = encoded.index if len(encoded.index) == encoded.batch.size else range(encoded.batch.size)
    return xr.Dataset(
        {name: (dims, part.cpu().numpy()) for name, part in parts.items()}, coords={OBSERVATIONS: list(rows)}
    )


def _by_draw(chain: Chain, encoded: Encoded, average: Tensor) -> Iterator[Tensor]:
    """Reconstructions under each draw of the effects within the network; one for all where there are none."""
    if not chain.module.spec.layers:
        yield average
        return
    for values in single_draws(chain.module.spec, chain.values):
        yield _rebuilt(chain.module, encoded, values)


def _rebuilt(module: MixedEffectsModule, encoded: Encoded, values: dict[str, Tensor] | None) -> Tensor:
    with local_parameters(), single_thread(encoded.batch):
        rebuilt: Tensor = module.eval().passed(encoded.batch, values).reconstruction  # type: ignore[assignment]
    rebuilt = rebuilt.double()
    likelihood = module.spec.reconstruction
    return rebuilt.sigmoid() if likelihood is not None and likelihood.likelihood == "bernoulli" else rebuilt
