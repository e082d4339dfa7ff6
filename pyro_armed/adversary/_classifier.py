"""The classifier of groups, its loss with the gradient to the features reversed, and chance."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._common import sizes_of, whole
from pyro_armed.seeds import seeded

__all__ = [
    "AdversaryTerms",
    "GroupClassifier",
    "adversary_loss",
    "chance_accuracy",
    "gradient_reversal",
    "label_columns",
]

# Floors of the standardisation, relative to the features' mean variance and absolute.
_RELATIVE_FLOOR = 1e-5
_ABSOLUTE_FLOOR = 1e-10


def gradient_reversal(x: Tensor, weight: float | Tensor) -> Tensor:
    """Return the values of x, bit for bit, with a gradient of ``-weight`` times the gradient.

    Parameters
    ----------
    x
        Finite values of any shape.
    weight
        Factor of the reversed gradient. Give a tensor where a traced step should be able to change it.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient_reversal(x, 0.5).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """
    # Plain tensor operations because they pass every transform, forward mode (jvp) included, which a custom
    # autograd.Function does not; x - constant is exactly 0, so no rounding touches the value.
    constant = x.detach()
    return constant - weight * (x - constant)


def label_columns(y: Tensor, levels: int | None = None) -> Tensor:
    """Write responses (B,) as the columns that a conditional `GroupClassifier` takes.

    Parameters
    ----------
    y
        Responses (B,); codes 0, 1, ... where ``levels`` is given.
    levels
        Number of classes. Above 2 each class gets a column; None or 2 gives one column.

    Returns
    -------
    Tensor
        (B, 1), or (B, levels) above two levels.

    Examples
    --------
    >>> import torch
    >>> label_columns(torch.tensor([0, 2]), levels=3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    if levels is None or levels <= 2:
        return y.to(dtype).unsqueeze(-1)
    # Not functional.one_hot, which looks at the values and so cannot be traced.
    return (y.unsqueeze(-1) == torch.arange(levels, device=y.device)).to(dtype)


def _standardise(x: Tensor) -> Tensor:
    """Columns of x (B, F) with mean 0 and variance 1 over the batch."""
    centred = x - x.mean(0, keepdim=True)
    variance = centred.square().mean(0, keepdim=True)
    # Without a floor relative to the other columns, a nearly constant one would get an enormous gradient.
    floor = _RELATIVE_FLOOR * variance.detach().mean() + _ABSOLUTE_FLOOR
    return centred * (variance + floor).rsqrt()


class GroupClassifier(nn.Module):
    """Dense classifier of the group from features, and from the response if conditional.

    Features are standardised over the batch, so that any scale is learned equally fast and the network
    cannot hide the group by shrinking its features: unlike layer normalisation this works for a single
    feature, and unlike ``nn.BatchNorm1d`` it keeps no state that tracing would have to carry. A row's logits
    hence depend on its batch. Logits take memory B x C.

    Parameters
    ----------
    features, groups
        Numbers F of features and C of groups.
    hidden
        Units of each hidden layer.
    label_dim
        Number L of response columns; 0 for an unconditional adversary.
    seed
        Seed of the first weights; torch's global random state is left as it was.

    Raises
    ------
    ArgumentError
        If a size cannot be used.

    Examples
    --------
    >>> import torch
    >>> GroupClassifier(3, 5, hidden=(8,))(torch.randn(10, 3)).shape
    torch.Size([10, 5])
    """

    def __init__(
        self,
        features: int,
        groups: int,
        hidden: Sequence[int] = (8, 8),
        label_dim: int = 0,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.features = whole(features, "features of a group classifier")
        self.groups = whole(groups, "groups of a group classifier")
        self.label_dim = whole(label_dim, "label_dim of a group classifier", 0)
        sizes = (self.features + self.label_dim, *sizes_of(hidden, "hidden of a group classifier"))
        layers: list[nn.Module] = []
        with seeded(seed):
            for before, after in pairwise(sizes):
                layers += [nn.Linear(before, after), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], self.groups))

    def reset_parameters(self) -> None:
        """Redraw all weights from torch's current random state."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, C) of features (B, F) and, if conditional, labels (B, L) or (B,).

        Raises
        ------
        ArgumentError
            If the shapes do not fit, or labels are given to an unconditional classifier or the reverse.
        """
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ArgumentError(
                f"the group classifier takes features of shape (rows, {self.features}), but got "
                f"{tuple(features.shape)}."
            )
        inputs = _standardise(features)
        if (labels is None) == (self.label_dim > 0):
            raise ArgumentError(
                f"a group classifier with label_dim={self.label_dim} "
                + ("takes no labels." if labels is not None else "needs labels.")
            )
        if labels is not None:
            columns = labels.unsqueeze(-1) if labels.ndim == 1 else labels
            if columns.shape != (features.shape[0], self.label_dim):
                raise ArgumentError(
                    f"labels must have shape ({features.shape[0]}, {self.label_dim}), not "
                    f"{tuple(labels.shape)}."
                )
            # Apart from the features: a response on a large scale must not raise their variance floor.
            inputs = torch.cat([inputs, _standardise(columns.to(features.dtype))], dim=1)
        return self.layers(inputs)


class AdversaryTerms(NamedTuple):
    """What `adversary_loss` returns; two 0-dim tensors, of which only ``loss`` carries gradients."""

    loss: Tensor
    accuracy: Tensor


def adversary_loss(
    classifier: nn.Module,
    features: Tensor,
    codes: Tensor,
    labels: Tensor | None = None,
    weight: float | Tensor = 1.0,
    row_weights: Tensor | None = None,
) -> AdversaryTerms:
    """Cross-entropy of the groups, per row, with the gradient to the features reversed.

    Minimising ``other_loss + loss`` trains the classifier to minimise its cross-entropy at full rate, and
    the network to maximise ``weight`` times it. The weight is not in the value: it scales only the reversed
    gradient, which is exactly zero at weight 0.

    Parameters
    ----------
    classifier
        Maps features (B, F) and labels to logits (B, C); usually a `GroupClassifier`.
    features
        The network's features (B, F).
    codes
        Group of each row, integers 0 to C - 1, (B,).
    labels
        Response columns (B, L), or (B,), for a conditional adversary; see `label_columns`.
    weight
        Weight of the reversed gradient. Give a tensor where a traced step should be able to change it.
    row_weights
        Weights of the rows (B,), at least 0; the mean is divided by their sum.

    Returns
    -------
    AdversaryTerms
        ``loss``, and ``accuracy`` of the classifier on these rows; see `chance_accuracy`.

    Raises
    ------
    ArgumentError
        If ``codes`` or ``row_weights`` do not have one integer or number per row.

    Examples
    --------
    >>> import torch
    >>> terms = adversary_loss(GroupClassifier(2, 3), torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 0]))
    >>> 0.0 <= float(terms.accuracy) <= 1.0
    True
    """
    rows = features.shape[0]
    if codes.shape != (rows,) or codes.is_floating_point():
        raise ArgumentError(
            f"codes must be {rows} integers, one per row, not {codes.dtype} of shape {tuple(codes.shape)}."
        )
    if row_weights is not None and row_weights.shape != (rows,):
        raise ArgumentError(f"row_weights must have shape ({rows},), not {tuple(row_weights.shape)}.")
    codes = codes.long()
    reversed_features = gradient_reversal(features, weight)
    logits = classifier(reversed_features) if labels is None else classifier(reversed_features, labels)
    scale = logits.new_ones(rows) if row_weights is None else row_weights.detach().to(logits.dtype)
    # The floor makes a batch of all-zero weights count nothing, instead of dividing by zero.
    scale = scale / scale.sum().clamp_min(torch.finfo(logits.dtype).tiny)
    loss = (scale * functional.cross_entropy(logits, codes, reduction="none")).sum()
    with torch.no_grad():
        accuracy = (scale * (logits.argmax(-1) == codes)).sum()
    return AdversaryTerms(loss, accuracy.detach())


def chance_accuracy(codes: Tensor, classes: Tensor | None = None, row_weights: Tensor | None = None) -> float:
    """Accuracy of naming the most frequent group; given classes, the most frequent one of the row's class.

    Parameters
    ----------
    codes
        Group of each row, integers (N,).
    classes
        Class of each row's response, integers (N,): what a conditional adversary knows without features.
    row_weights
        Weights of the rows (N,).

    Examples
    --------
    >>> import torch
    >>> codes, classes = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1])
    >>> chance_accuracy(codes), chance_accuracy(codes, classes)
    (0.6, 0.8)
    """
    weights = torch.ones(len(codes), dtype=torch.float64) if row_weights is None else row_weights.double()
    if classes is None:
        classes = torch.zeros_like(codes)
    pairs, place = torch.unique(torch.stack([classes, codes]), dim=1, return_inverse=True)
    counts = weights.new_zeros(pairs.shape[1]).index_add(0, place, weights)
    _, of_pair = torch.unique(pairs[0], return_inverse=True)
    largest = counts.new_zeros(int(of_pair.max()) + 1).scatter_reduce(0, of_pair, counts, "amax")
    return float(largest.sum() / counts.sum())
