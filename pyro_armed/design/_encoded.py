"""What every design gives: rows as tensors, group codes, and a specification that can be kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_armed import frames
from pyro_armed.batch import Batch
from pyro_armed.errors import DataError, FileFormatError
from pyro_armed.families import Family, Response
from pyro_armed.groups import GroupIndex, decode_labels, encode_labels
from pyro_armed.integers import Integers
from pyro_armed.spec import Group, ModelSpec, Predictor

__all__ = [
    "Encoded",
    "ResponseMoments",
    "as_tensor",
    "encode_groups",
    "model_spec",
    "response_moments",
    "row_weights",
    "spec_from_config",
    "spec_to_config",
]


@dataclass(frozen=True)
class Encoded:
    """Rows ready for the Pyro model.

    Attributes
    ----------
    batch : Batch
        The rows as tensors. Codes of new groups continue after those of training.
    new_groups : dict of str to list
        Labels of each grouping factor that training did not have, in the order of their codes.
    index : numpy.ndarray, shape (N,)
        Positions of the rows in what they came from (rows with missing values may have been dropped).
    """

    batch: Batch
    new_groups: dict[str, list[Any]] = field(default_factory=dict)
    index: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def joined(self, other: Encoded) -> Encoded:
        """These rows and then others of known groups, whose positions are counted on from here."""
        start = 1 + int(self.index.max(initial=-1))
        return Encoded(
            self.batch.joined(other.batch), self.new_groups, np.concatenate([self.index, start + other.index])
        )


def encode_groups(
    indices: Mapping[str, GroupIndex], labels: Mapping[str, np.ndarray]
) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]]]:
    """Codes of the rows' groups.

    Parameters
    ----------
    indices : mapping of str to GroupIndex
        The grouping factors.
    labels : mapping of str to numpy.ndarray, shape (N,)
        From `group_labels`, for some or all of the factors.

    Returns
    -------
    codes : dict of str to Tensor, shape (N,)
    new : dict of str to list
        Labels that training did not have.

    Raises
    ------
    DataError
        For missing labels.
    """
    codes, new = {}, {}
    for name, values in labels.items():
        found, new[name] = indices[name].encode_with_new(values)
        codes[name] = torch.as_tensor(found)
    return codes, new


def as_tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A tensor with memory of its own.

    Parameters
    ----------
    values : numpy.ndarray
        Finite numbers.
    dtype : torch.dtype
        Type of the tensor.

    Returns
    -------
    Tensor

    Raises
    ------
    DataError
        For numbers too large for the type.
    """
    tensor = torch.tensor(np.ascontiguousarray(values), dtype=dtype)
    # A finite sum is of finite numbers, and found sooner.
    if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        mend = "rescale them" if dtype == torch.float64 else "rescale them, or pass dtype=torch.float64"
        raise DataError(f"The data have numbers too large for {dtype}; {mend}.")
    return tensor


def row_weights(values: Any, what: str) -> np.ndarray:
    """Check row weights.

    Parameters
    ----------
    values : Series or array-like, shape (N,)
        Weights.
    what : str
        How messages call them.

    Returns
    -------
    numpy.ndarray, shape (N,)

    Raises
    ------
    DataError
        Where they are not finite numbers, or negative, or all zero.
    """
    weights = frames.clean_column(pd.Series(values), what)
    if (
        isinstance(weights.dtype, pd.CategoricalDtype)
        or not np.isfinite(weights).all()
        or (weights < 0).any()
    ):
        raise DataError(f"The weights {what} must be finite numbers, zero or more.")
    if not (weights > 0).any():
        raise DataError(f"The weights {what} are all zero.")
    return weights.to_numpy()


def _start(family: Family, response: Response, weights: np.ndarray | None) -> float:
    """Link of the weighted mean response."""
    if weights is None or family.response in ("categorical", "ordinal"):
        return float(family.start(response.y, response.trials))
    trials = np.ones_like(weights) if response.trials is None else response.trials
    return float(family.start(response.y * weights, trials * weights))


@dataclass(frozen=True)
class ResponseMoments:
    """What a specification needs to know of the response.

    Attributes
    ----------
    name : str
        Name of the response.
    levels : list or None
        Labels in the order of their codes.
    n_rows : int
        Rows N.
    scale, center : float
        ``response_scale`` and ``response_center`` of the specification.
    """

    name: str
    levels: list[Any] | None
    n_rows: int
    scale: float
    center: float


def response_moments(family: Family, response: Response, weights: np.ndarray | None) -> ResponseMoments:
    """Moments of a training response.

    Parameters
    ----------
    family : Family
        Response family.
    response : Response
        Training response.
    weights : numpy.ndarray, shape (N,), optional
        Row weights.

    Returns
    -------
    ResponseMoments
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scale = float(np.sqrt(np.cov(response.y, aweights=weights, ddof=0))) if family.identity_scale else 1.0
        center = _start(family, response, weights)
    return ResponseMoments(response.name, response.levels, len(response.y), scale, center)


def model_spec(
    family: Family,
    response: Response | ResponseMoments,
    predictors: Sequence[Predictor],
    groups: Mapping[str, GroupIndex],
    weights: np.ndarray | None = None,
    *,
    weighted: bool | None = None,
) -> ModelSpec:
    """The specification of a model, once its predictors and groups are known.

    Parameters
    ----------
    family : Family
        Response family.
    response : Response or ResponseMoments
        Training response, or what is known of it.
    predictors : sequence of Predictor
        That of the mean first.
    groups : mapping of str to GroupIndex
        Grouping factors.
    weights : numpy.ndarray, shape (N,), optional
        Row weights: a row of weight 2 counts twice in means and sds too.
    weighted : bool, optional
        Whether rows have weights; None: if ``weights`` are given.

    Returns
    -------
    ModelSpec

    Raises
    ------
    DataError
        For names that stand for two things, and for group effects that the noise cannot be told from.
    """
    known = response if isinstance(response, ResponseMoments) else response_moments(family, response, weights)
    if not np.isfinite([known.scale, known.center]).all():
        raise DataError(
            f"The response '{response.name}' has numbers too large for their sd to be computed; rescale it."
        )
    spec = ModelSpec(
        response=known.name,
        family=family,
        predictors=tuple(predictors),
        groups=tuple(Group(n, i.labels, Integers(i.counts)) for n, i in groups.items()),
        n_rows=known.n_rows,
        levels=tuple(known.levels or ()),
        response_scale=known.scale,
        response_center=known.center,
    )
    _refuse_clashes(spec)
    if not (weights is not None if weighted is None else weighted):
        _refuse_unidentified(spec)
    return spec


def spec_to_config(spec: ModelSpec) -> dict[str, Any]:
    """A JSON-able dictionary, labels of any kind included.

    Parameters
    ----------
    spec : ModelSpec
        A specification.

    Returns
    -------
    dict

    Raises
    ------
    DataError
        For labels that a file cannot keep.
    """
    config = replace(spec, groups=()).to_config()
    config["groups"] = [
        {
            "name": group.name,
            "labels": encode_labels(group.labels, group.name),
            "counts": list(group.counts),
        }
        for group in spec.groups
    ]
    config["levels"] = encode_labels(spec.levels, spec.response)
    return config


def spec_from_config(config: Mapping[str, Any], family: Family | None = None) -> ModelSpec:
    """Rebuild from `spec_to_config`.

    Parameters
    ----------
    config : mapping
        From JSON.
    family : Family, optional
        Needed where the family is the user's own.

    Returns
    -------
    ModelSpec

    Raises
    ------
    FileFormatError
        Where something is missing from it.
    """
    try:
        groups = [{**group, "labels": decode_labels(group["labels"])} for group in config["groups"]]
        return ModelSpec.from_config(
            {**config, "groups": groups, "levels": decode_labels(config["levels"])}, family
        )
    except (KeyError, TypeError, IndexError) as error:
        raise FileFormatError(f"The stored model specification cannot be read: {error}") from error


def _refuse_clashes(spec: ModelSpec) -> None:
    """Every quantity of the posterior, and every site behind it, needs a name of its own."""
    owners: dict[str, str] = {}

    def claim(name: str, what: str, *suffixes: str) -> None:
        for full in (name, *(name + suffix for suffix in suffixes)):
            if full in owners:
                raise DataError(
                    f"{what} and {owners[full]} would both be called '{full}'; rename the column."
                )
            owners[full] = what

    claim(spec.response, "the response")
    for name in spec.family.auxiliaries:
        if name not in {predictor.parameter for predictor in spec.predictors}:
            claim(name, f"the family's parameter {name}")
    for predictor in spec.predictors:
        names = [term.name for term in predictor.terms]
        names += ["Intercept"] * predictor.intercept + ["features"] * predictor.features
        for name in names:
            claim(predictor.common_name(name), f"the effect {predictor.common_name(name)}", "_raw")
    for block in spec.blocks:
        for term in block.terms:
            name = block.effect_name(term)
            claim(name, f"the effect {name}", "_sigma", "_offset")


def _refuse_unidentified(spec: ModelSpec) -> None:
    """A group intercept for every row is noise by another name where the noise's sd is unknown too."""
    if spec.family.name != "gaussian" or any(p.parameter == "sigma" for p in spec.predictors):
        return
    for block in spec.mu.blocks:
        alone = len(block.terms) == 1 and block.terms[0].name == "1"
        if alone and spec.group(block.group).size == spec.n_rows:
            raise DataError(
                f"Every group of '{block.group}' has one row: the sd between groups and the noise sd cannot "
                f"be told apart. Leave out (1 | {block.group}) or use a coarser grouping."
            )
