"""How well effects of some group predict rows of another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.design import Encoded
from pyro_armed.local import local_parameters
from pyro_armed.new_groups import Marginal, extend_chain
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.seeds import generator_for

__all__ = ["Scorer"]

_DRAWS = 20
_NEW = 20


class Scorer:
    """Log densities of training rows under the effects of any seen group, or of some group.

    Parameters
    ----------
    posterior : Posterior
        Stored draws; twenty of each chain are used.
    batch : Batch
        Training rows with their response.
    group : str
        The grouping factor whose groups are exchanged. Those of others stay as they are.
    seed : int
        Seed of the effects of "some group", twenty for each draw.
    """

    def __init__(self, posterior: Posterior, batch: Batch, group: str, seed: int):
        self.batch, self.group = batch, group
        self.size = posterior.chains[0].module.spec.group(group).size
        generator = generator_for(seed, "membership scores", group)
        encoded = Encoded(batch, {group: list(range(_NEW))})
        self.chains = [
            extend_chain(_thinned(chain), encoded, Marginal(), generator) for chain in posterior.chains
        ]

    def member(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows with the effects of seen groups.

        Parameters
        ----------
        rows : numpy.ndarray, shape (M,)
            Positions of rows.
        codes : numpy.ndarray, shape (K,)
            Codes of groups.

        Returns
        -------
        numpy.ndarray, shape (M, K)
            log p(y_i | x_i, effects of the group), the density a mean over draws.
        """
        draws = torch.cat([self._log_densities(chain, rows, codes) for chain in self.chains])
        mean = draws.double().logsumexp(0) - np.log(len(draws))
        return mean.reshape(len(rows), len(codes)).cpu().numpy()

    def marginal(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows with the effects of some group, Normal(0, Sigma); shape (M,)."""
        found = self.member(rows, self.size + np.arange(_NEW))
        return np.asarray(np.logaddexp.reduce(found, axis=1) - np.log(_NEW))

    @torch.no_grad()
    def _log_densities(self, chain: Chain, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> Tensor:
        """Every row with every group, shape (S, M * K)."""
        module = chain.module.eval()
        some = self.batch.select(torch.as_tensor(rows))
        pairs = torch.arange(len(rows)).repeat_interleave(len(codes))
        with local_parameters():
            hidden = module.hidden(some)
        if hidden is not None:
            hidden = hidden[0][pairs], hidden[1][pairs]
        some = replace(some, inputs=None).select(pairs)
        some = replace(some, codes={**some.codes, self.group: torch.as_tensor(codes).repeat(len(rows))})
        (values,) = chain.chunks(chain.n_draws)
        etas = {p.parameter: module.linear_predictor(p, values, some, hidden) for p in module.spec.predictors}
        found: Tensor = module.response_distribution(etas, values, some).log_prob(some.response)
        return found


def _thinned(chain: Chain) -> Chain:
    kept = (
        torch.linspace(0, chain.n_draws - 1, min(_DRAWS, chain.n_draws), dtype=torch.float64).round().long()
    )
    return Chain(chain.module, {name: value[kept] for name, value in chain.values.items()})
