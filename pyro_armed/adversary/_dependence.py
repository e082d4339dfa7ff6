"""How far features depend on the group, by kernels: what a classifier that lags behind does not see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_armed.adversary._classifier import standardise
from pyro_armed.errors import ArgumentError

__all__ = ["GroupDependence"]

_BANDWIDTHS = (1.0, 0.5)


class GroupDependence(nn.Module):
    """Squared distance of each group's features from those of all groups, of rows of one class.

    The squared maximum mean discrepancy (Gretton et al., JMLR 13, 2012) between a group's features and all
    rows' of the same class, averaged over groups by their numbers of rows; 0 where features are independent
    of the group given the class. It is the Hilbert-Schmidt criterion (Gretton et al., ALT 2005) with a
    kernel of the group that is 1 over the group's share. Estimated without bias from the pairs of different
    rows. The kernel is the mean of two Gaussians of the standardised features, of distances divided by the
    square root of their number. It takes memory B x B.

    Parameters
    ----------
    codes
        Group of each training row, integers from 0, (N,).
    groups
        Number C of groups.
    classes
        Class of each training row, integers from 0, (N,); None: independent altogether.

    levels
        Number of classes, where rows to come may have one that these have not.

    Raises
    ------
    ArgumentError
        Where no two rows of a class are of one group, or all are.

    Examples
    --------
    >>> import torch
    >>> codes = torch.arange(200) % 2
    >>> dependence = GroupDependence(codes, 2)
    >>> noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> told = noise + 3 * codes[:, None]
    >>> round(float(dependence(noise, codes)), 1), round(float(dependence(told, codes)), 1)
    (0.0, 0.3)
    """

    odds: Tensor

    def __init__(
        self, codes: Tensor, groups: int, classes: Tensor | None = None, levels: int | None = None
    ) -> None:
        super().__init__()
        classes = torch.zeros_like(codes) if classes is None else classes.long()
        counts = torch.zeros(max(int(classes.max()) + 1, levels or 0), groups, dtype=torch.float64)
        counts.index_put_((classes.cpu(), codes.cpu()), counts.new_ones(len(codes)), accumulate=True)
        # One over the share of the row's group among the other rows of its class; 0 where it has no peer.
        others = counts.sum(1, keepdim=True) - 1.0
        odds = torch.where(counts > 1.0, others / (counts - 1.0).clamp_min(1.0), 0.0)
        if not bool((odds > 1.0).any()):
            raise ArgumentError(
                "independence= of the adversary compares rows of a class between groups, but there are none."
            )
        self.register_buffer("odds", odds)

    def forward(
        self,
        features: Tensor,
        codes: Tensor,
        classes: Tensor | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """The estimate, 0-dim; it may be below 0.

        Parameters
        ----------
        features
            (B, F).
        codes
            Group of each row, (B,).
        classes
            Class of each row, (B,), if there were classes.
        row_weights
            Weights of the rows (B,), at least 0.
        """
        z = standardise(features)
        squares = z.square().sum(1)
        distance = (squares[:, None] + squares[None] - 2.0 * z @ z.T).clamp_min(0.0) / z.shape[1]
        kernel = sum(torch.exp(-distance / (2.0 * width**2)) for width in _BANDWIDTHS) / len(_BANDWIDTHS)
        classes = torch.zeros_like(codes) if classes is None else classes.long()
        odds = self.odds[classes, codes].to(z.dtype)
        pairs = (classes[:, None] == classes[None]).to(z.dtype) * (odds > 0.0).to(z.dtype)[:, None]
        pairs = pairs * (1.0 - torch.eye(len(z), dtype=z.dtype, device=z.device))
        if row_weights is not None:
            weights = row_weights.to(z.dtype)
            pairs = pairs * weights[:, None] * weights[None]
        excess = (codes[:, None] == codes[None]).to(z.dtype) * odds[:, None] - 1.0
        # A minibatch may have no pair.
        return (pairs * excess * kernel).sum() / pairs.sum().clamp_min(1e-12)
