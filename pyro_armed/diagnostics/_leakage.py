"""Whether features tell the group: a fresh classifier, on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from pyro_armed.adversary import GroupClassifier, label_columns
from pyro_armed.batch import Batch
from pyro_armed.building import CLASSES
from pyro_armed.diagnostics._access import fitted
from pyro_armed.diagnostics._rows import encoded_rows, some_rows
from pyro_armed.errors import ArgumentError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.networks import flattened, layer_outputs
from pyro_armed.seeds import generator_for, stream

__all__ = ["leakage", "probe_accuracy"]

_ROWS = 4000
_PERMUTATIONS = 400
_STEPS = 200
_RATE, _DECAY = 0.02, 0.01
_BINS = 10
_COLUMNS = ["group", "chain", "n_groups", "accuracy", "chance", "low", "high", "p_value", "leaks"]


def leakage(
    model: Any,
    data: Any = None,
    y: Any = None,
    *,
    groups: Any = None,
    given_response: bool = False,
    factors: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    hidden: Sequence[int] = (16,),
    rows: int = _ROWS,
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a fresh classifier tells the group from the network's frozen features.

    The classifier is trained on a random half of the rows and asked about the other half. If features tell
    nothing, the groups of the other half could be permuted: the accuracies under permutation give chance
    level, interval and p-value, however the classifier was trained.

    Parameters
    ----------
    model : ARMED
        Fitted, with a network.
    data : DataFrame or array-like, optional
        Rows, best those that the network was not trained with; None: the training rows. Groups may be new:
        the question is whether *these* groups can be told apart. From arrays the inputs x.
    y, groups : optional
        Responses and group labels, for a model from arrays.
    given_response : bool
        Whether to ask for what features tell beyond the response: it is an input of the classifier, and
        groups are permuted among rows of the same class (of a number: of the same tenth of its range of
        ranks, so that it is held only roughly).
    factors : str or sequence of str, optional
        Grouping factors; None: all.
    layers : str or sequence of str, optional
        Layers of the network whose outputs are the features; None: those of the last linear layer's input.
    hidden : sequence of int
        Units of the classifier's hidden layers.
    rows : int
        Most rows to use, drawn at random.
    permutations : int
        Number of permutations.
    seed : int
        Seed of the split, the classifier and the permutations.

    Returns
    -------
    pandas.DataFrame
        One row for each grouping factor and restart: ``group``, ``chain``, ``n_groups``, ``accuracy`` on the
        held-out half, ``chance`` (the mean under permutation), ``low`` and ``high`` (95 % of the permuted
        accuracies lie between), ``p_value`` (one-sided), ``leaks`` (whether the accuracy is above ``high``).

    Raises
    ------
    ArgumentError
        For models without a network or grouping factor, unknown factors and layers, rows of one group only,
        and counts below one.

    Notes
    -----
    Rows count as exchangeable within groups: where rows of a group belong together in other ways too, as
    several visits of one patient do, finer groups are the ones to ask for. An adversary that is fooled is
    no evidence: a fresh probe often recovers what it could not (Elazar, Goldberg, EMNLP 2018).

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.confounded_spirals(4, 50, seed=0)
    >>> model = pa.ARMED(
    ...     "y ~ x1 + x2 + probe1 + probe2 + (1 | group)",
    ...     data.frame,
    ...     family="bernoulli",
    ...     network=pa.networks.MLP(hidden=(4,)),
    ... )
    >>> _ = model.fit(restarts=1, draws=10, epochs=100, early_stopping=False, progressbar=False)
    >>> leakage(model, given_response=True)[["group", "n_groups"]].values.tolist()
    [['group', 4]]
    """
    model = fitted(model, "leakage")
    for name, value in (("rows", rows), ("permutations", permutations)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    names = _factors(model, factors)
    encoded = encoded_rows(model, data, y, groups, response=given_response)
    batch = some_rows(encoded.batch, rows, generator_for(seed, "leakage rows"))
    response = _response(model.spec, batch) if given_response else None
    table = []
    modules = {id(chain.module): (i, chain.module) for i, chain in enumerate(model._fitted().chains)}
    for i, module in modules.values():
        features = _features(module.eval(), batch, layers)
        for name in names:
            found = probe_accuracy(
                features, batch.codes[name], response, hidden=hidden, permutations=permutations, seed=seed
            )
            table.append((name, i, *found))
    return pd.DataFrame(table, columns=_COLUMNS)


def probe_accuracy(
    features: Tensor,
    codes: Tensor,
    response: tuple[Tensor, Tensor] | None = None,
    *,
    hidden: Sequence[int] = (16,),
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> tuple[int, float, float, float, float, float, bool]:
    """Held-out accuracy of a fresh classifier of groups, and its distribution under permutation.

    Parameters
    ----------
    features : Tensor, shape (N, F)
        Frozen features.
    codes : Tensor, shape (N,)
        Groups; any whole numbers.
    response : tuple of Tensor, optional
        Columns (N, L) for the classifier, and strata (N,) within which groups are permuted.
    hidden, permutations, seed
        As for `leakage`.

    Returns
    -------
    tuple
        Number of groups, accuracy, chance, low, high, p-value, and whether the accuracy is above ``high``.

    Raises
    ------
    ArgumentError
        For fewer than two groups or four rows.
    """
    labels, codes = torch.unique(codes, return_inverse=True)
    if len(labels) < 2 or len(codes) < 4:
        raise ArgumentError("leakage needs rows of at least two groups, four or more in all.")
    order = torch.randperm(len(codes), generator=generator_for(seed, "leakage split"))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    columns = None if response is None else response[0].float()
    predicted = _predicted(features.float(), codes, columns, train, test, len(labels), hidden, seed)
    strata = np.zeros(len(test), dtype=int) if response is None else response[1][test].numpy()
    truth, predicted_codes = codes[test].numpy(), predicted.numpy()
    accuracy = float((truth == predicted_codes).mean())
    rng = np.random.default_rng(stream(seed, "leakage permutations"))
    null = np.array([_permuted(truth, predicted_codes, strata, rng) for _ in range(permutations)])
    low, high = np.quantile(null, [0.025, 0.975], method="inverted_cdf")
    p_value = float((1 + (null >= accuracy).sum()) / (permutations + 1))
    return len(labels), accuracy, float(null.mean()), float(low), float(high), p_value, bool(accuracy > high)


def _predicted(
    features: Tensor,
    codes: Tensor,
    columns: Tensor | None,
    train: Tensor,
    test: Tensor,
    n_groups: int,
    hidden: Sequence[int],
    seed: int,
) -> Tensor:
    """Most likely group of each held-out row."""
    width = 0 if columns is None else columns.shape[1]
    probe = GroupClassifier(features.shape[1], n_groups, hidden, width, seed=stream(seed, "probe"))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=_RATE, weight_decay=_DECAY)

    def logits(rows: Tensor) -> Tensor:
        return probe(features[rows]) if columns is None else probe(features[rows], columns[rows])

    for _ in range(_STEPS):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits(train), codes[train]).backward()
        optimizer.step()
    with torch.no_grad():
        return logits(test).argmax(-1)


def _permuted(
    truth: np.ndarray, predicted: np.ndarray, strata: np.ndarray, rng: np.random.Generator
) -> float:
    """Accuracy after permuting the groups within strata."""
    shuffled = rng.permutation(len(truth))
    # Sorting by stratum, stably, pairs each row with a random one of its own stratum.
    place, source = np.argsort(strata, kind="stable"), shuffled[np.argsort(strata[shuffled], kind="stable")]
    return float((truth[source] == predicted[place]).mean())


@torch.no_grad()
def _features(module: MixedEffectsModule, batch: Batch, layers: str | Sequence[str] | None) -> Tensor:
    names = (layers,) if isinstance(layers, str) else tuple(layers or ())
    with local_parameters(), layer_outputs(module.network, names, joined=True) as outputs:
        hidden = module.hidden(batch)
    if hidden is None:
        raise ArgumentError("leakage needs a network, whose features it looks at.")
    features = flattened(outputs, names, batch.size) if names else hidden[0]
    if not features.shape[1]:
        raise ArgumentError("The network has no linear output layer: name the layers to look at, layers=...")
    return features.cpu()


def _factors(model: Any, factors: str | Sequence[str] | None) -> list[str]:
    known = [group.name for group in model.spec.groups]
    if not known:
        raise ArgumentError("leakage needs a grouping factor; the model has none.")
    names = known if factors is None else [factors] if isinstance(factors, str) else list(factors)
    for name in names:
        if name not in known:
            raise ArgumentError(f"factors has {name!r}, which the model does not have ({', '.join(known)}).")
    return names


def _response(spec: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the classifier sees of the response, and the strata within which groups are permuted."""
    y: Any = batch.response
    if spec.family.response in CLASSES:
        return label_columns(y, len(spec.levels) or None).cpu(), y.long().cpu()
    y = y if batch.trials is None else y / batch.trials
    edges = torch.quantile(y, torch.linspace(0, 1, _BINS + 1, dtype=y.dtype)[1:-1])
    return y[:, None].cpu(), torch.bucketize(y, edges).cpu()
