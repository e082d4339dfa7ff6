"""How far features depend on the group, measured by a kernel: an adversary with nothing to learn."""

import torch
from torch import Tensor

from pyro_armed.adversary._classifier import _standardise
from pyro_armed.errors import ArgumentError

__all__ = ["group_dependence", "group_shares"]

# Exponents and weights of the Gaussian kernels; distances are means over standardised features, around 2.
_KERNELS = ((0.5, 1.0), (2.0, 0.5))


def group_shares(
    codes: Tensor, n_groups: int, classes: Tensor | None = None, row_weights: Tensor | None = None
) -> Tensor:
    """Share of each group among the rows of each class, shape (L, C); a single row without classes.

    Parameters
    ----------
    codes
        Group of each row, integers (N,).
    n_groups
        Number C of groups.
    classes
        Class of each row's response, integers 0 to L - 1, (N,).
    row_weights
        Weights of the rows (N,).

    Examples
    --------
    >>> import torch
    >>> group_shares(torch.tensor([0, 1, 1, 1]), 2, torch.tensor([0, 0, 1, 1]))
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    of = torch.zeros_like(codes) if classes is None else classes.long()
    weights = torch.ones(len(codes), device=codes.device) if row_weights is None else row_weights.float()
    levels = int(of.max()) + 1
    counts = weights.new_zeros(levels * n_groups).index_add(0, of * n_groups + codes.long(), weights)
    table = counts.reshape(levels, n_groups)
    return table / table.sum(1, keepdim=True).clamp_min(torch.finfo(table.dtype).tiny)


def group_dependence(
    features: Tensor,
    codes: Tensor,
    shares: Tensor,
    classes: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """How far the groups' features lie from those of all groups, given the class.

    The mean over groups of the squared distance between the group's mean embedding and that of all groups,
    in the space of a Gaussian kernel, estimated from pairs of different rows. It is zero on average where
    features do not depend on the group, so its estimate may be below zero.

    Parameters
    ----------
    features
        The network's features (B, F); they are standardised over the batch.
    codes
        Group of each row, integers (B,).
    shares
        What `group_shares` says of all rows, (L, C).
    classes
        Class of each row's response, integers (B,); only rows of the same class are compared.
    row_weights
        Weights of the rows (B,).

    Returns
    -------
    Tensor
        0-dim.

    Raises
    ------
    ArgumentError
        If ``codes`` do not fit the features.

    Notes
    -----
    A Hilbert-Schmidt independence criterion (Gretton et al., ALT 2005) with an indicator of the group. Unlike
    a classifier trained against the network it cannot lag behind it, and minimising it cannot circle.

    Examples
    --------
    >>> import torch
    >>> codes = torch.tensor([0, 0, 1, 1])
    >>> shares = group_shares(codes, 2)
    >>> float(group_dependence(torch.tensor([[0.0], [0.0], [5.0], [5.0]]), codes, shares)) > 0.3
    True
    """
    rows = len(features)
    if codes.shape != (rows,) or codes.is_floating_point():
        raise ArgumentError(f"codes must be {rows} integers, one per row, not of shape {tuple(codes.shape)}.")
    codes = codes.long()
    of = torch.zeros_like(codes) if classes is None else classes.long()
    x = _standardise(features)
    squares = x.square().sum(1)
    distance = (squares[:, None] + squares[None] - 2.0 * x @ x.T).clamp_min(0.0) / x.shape[1]
    kernel = sum(weight * torch.exp(-exponent * distance) for exponent, weight in _KERNELS)
    # A row is no pair with itself, which would add what does not depend on the group.
    pairs = (of[:, None] == of[None]) & ~torch.eye(rows, dtype=torch.bool, device=x.device)
    weights = pairs.to(x.dtype)
    if row_weights is not None:
        scale = row_weights.detach().to(x.dtype)
        weights = weights * scale[:, None] * scale[None]
    # Kernels less their mean over the class's pairs: without dependence the estimate is then zero on average
    # whatever groups the minibatch has, and has less noise.
    totals = weights.new_zeros(len(shares), 2)
    totals = totals.index_add(0, of, torch.stack([(kernel * weights).sum(1), weights.sum(1)], 1))
    mean = totals[:, 0] / totals[:, 1].clamp_min(torch.finfo(x.dtype).tiny)
    share = shares.to(x)[of, codes].clamp_min(torch.finfo(x.dtype).tiny)
    same = (codes[:, None] == codes[None]).to(x.dtype) / share[:, None]
    found: Tensor = ((kernel - mean[of][:, None]) * same * weights).sum()
    return found / weights.sum().clamp_min(torch.finfo(x.dtype).tiny)
