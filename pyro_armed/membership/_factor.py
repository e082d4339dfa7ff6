"""The membership model of one grouping factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError
from pyro_armed.membership._classifier import log_probabilities, train_classifier
from pyro_armed.membership._evidence import Reference, Tempering, none_features, pool
from pyro_armed.membership._inputs import Folds, Scaling, classifier_inputs, fold_rows
from pyro_armed.membership._none import NoneProbability
from pyro_armed.membership._scores import Scorer
from pyro_armed.membership._trials import draw_subsets, make_trials
from pyro_armed.module import MixedEffectsModule
from pyro_armed.networks import MLP, from_config
from pyro_armed.posterior import Posterior
from pyro_armed.seeds import stream

__all__ = ["FactorMembership", "fit_factor"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

# More groups than this are not told apart: the classifier's tables grow with their square.
MOST_GROUPS = 500
_MOST_JUDGED = 10_000
_FEWEST_GROUPS = 3
_FOLDS = 3
_HIDDEN = (64, 64)


@dataclass(frozen=True)
class FactorMembership:
    """q(seen group or none | rows) for one grouping factor.

    Attributes
    ----------
    group : str
        The grouping factor.
    candidates : numpy.ndarray, shape (C,)
        Codes of the seen groups that the classifier knows.
    scaling : Scaling
        Of the inputs.
    networks : list of MLP
        The classifier: one network for each part of the rows that was held out.
    log_shares : numpy.ndarray, shape (C,)
        Log shares of the groups in the classifier's training rows.
    tempering, reference, none
        From held-out rows; see their classes.
    quality : dict of str to float
        What held-out rows say about the classifier.
    """

    group: str
    candidates: Codes
    scaling: Scaling
    networks: list[MLP]
    log_shares: Floats
    tempering: Tempering
    reference: Reference
    none: NoneProbability
    quality: dict[str, float]

    def probabilities(self, module: MixedEffectsModule, batch: Batch, first_new: int, n_new: int) -> Floats:
        """Probabilities of new groups, pooled over their rows.

        Parameters
        ----------
        module : MixedEffectsModule
            That with which the classifier was trained.
        batch : Batch
            Rows, those of seen groups included.
        first_new : int
            Code of the first new group.
        n_new : int
            New groups.

        Returns
        -------
        numpy.ndarray, shape (n_new, C + 1)
            Of each candidate; last of "none". Rows sum to one.
        """
        codes = batch.codes[self.group].cpu()
        rows = (codes >= first_new).nonzero()[:, 0]
        inputs = self.scaling(classifier_inputs(module, replace(batch, rows=None).select(rows)))
        evidence = pool(self.networks, inputs, codes[rows] - first_new, n_new, self.log_shares)
        weights = self.tempering.weights(evidence)
        none = self.none(none_features(evidence, weights, self.reference))
        return np.column_stack([weights * (1.0 - none)[:, None], none])

    def pack(self, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """JSON-able description; arrays go to ``tensors`` under names that begin with ``prefix``."""
        arrays = {
            "candidates": self.candidates,
            "log_shares": self.log_shares,
            **{f"reference.{name}": value for name, value in vars(self.reference).items()},
            **{f"none.{name}": value for name, value in vars(self.none).items()},
        }
        tensors |= {f"{prefix}{name}": torch.as_tensor(value) for name, value in arrays.items()}
        tensors |= {f"{prefix}scaling.{name}": value for name, value in vars(self.scaling).items()}
        for number, network in enumerate(self.networks):
            tensors |= {f"{prefix}network.{number}.{k}": v for k, v in network.state_dict().items()}
        return {
            "group": self.group,
            "networks": [network.config() for network in self.networks],
            "tempering": vars(self.tempering),
            "quality": self.quality,
        }

    @classmethod
    def unpack(
        cls, described: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]
    ) -> FactorMembership:
        """From what `pack` gave."""
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in own.items() if k.startswith(name)}

        networks: list[Any] = [from_config(config).eval() for config in described["networks"]]
        for number, network in enumerate(networks):
            network.load_state_dict(part(f"network.{number}."))
        return cls(
            group=described["group"],
            candidates=own["candidates"].numpy(),
            scaling=Scaling(**part("scaling.")),
            networks=networks,
            log_shares=own["log_shares"].numpy(),
            tempering=Tempering(**described["tempering"]),
            reference=Reference(**{k: v.numpy() for k, v in part("reference.").items()}),
            none=NoneProbability(**{k: v.numpy() for k, v in part("none.").items()}),
            quality=dict(described["quality"]),
        )


def fit_factor(
    posterior: Posterior,
    module: MixedEffectsModule,
    training: Batch,
    group: str,
    *,
    seed: int,
    progressbar: bool,
) -> FactorMembership:
    """Train the classifier, calibrate it, and learn when none of the seen groups fits.

    Parameters
    ----------
    posterior : Posterior
        Stored draws.
    module : MixedEffectsModule
        Whose hidden features the classifier sees.
    training : Batch
        Training rows.
    group : str
        The grouping factor.
    seed : int
        Seed of everything.
    progressbar : bool
        Whether to show the classifier's training.

    Returns
    -------
    FactorMembership

    Raises
    ------
    ArgumentError
        Without covariates that vary, and with fewer than three groups of two rows.
    """
    seed = stream(seed, "membership", group)
    raw = classifier_inputs(module, training)
    scaling = Scaling.fit(raw)
    folds = _folds(scaling, training, group, seed)
    inputs = scaling(raw[torch.as_tensor(folds.positions)])
    networks, rows = _trained(inputs, folds, seed, progressbar)
    log_shares = np.log(np.bincount(folds.places) / len(folds.places))
    rows -= log_shares
    own = folds.places[folds.judged]
    subsets = draw_subsets(rows, own, seed)
    tempering = Tempering.fit(subsets.evidence, subsets.own)
    reference = Reference.from_rows(rows, own, len(folds.candidates))
    positions = folds.positions[folds.judged]
    held_out = [positions[own == place] for place in range(len(folds.candidates))]
    scorer = Scorer(posterior, training, group, seed)
    trials = make_trials(subsets, tempering, reference, scorer, folds.candidates, held_out)
    none = NoneProbability.fit(trials)
    found = none(trials.features).reshape(2, -1).mean(1)
    quality = {
        "groups": len(folds.candidates),
        "accuracy": float(np.mean(rows.argmax(1) == own)),
        "none_new": float(found[0]),
        "none_returning": float(found[1]),
    }
    return FactorMembership(
        group, folds.candidates, scaling, networks, log_shares, tempering, reference, none, quality
    )


def _folds(scaling: Scaling, training: Batch, group: str, seed: int) -> Folds:
    """The rows in parts, or an error where there is nothing to learn from."""
    if not len(scaling.kept):
        raise ArgumentError(
            f"new_groups='membership' has nothing to tell the groups of '{group}' by: the model has no "
            "covariates. Use new_groups='marginal'."
        )
    codes = training.codes[group].cpu().numpy()
    usable = np.ones(len(codes), bool) if training.weights is None else (training.weights > 0).cpu().numpy()
    folds = fold_rows(
        codes, usable, folds=_FOLDS, most_groups=MOST_GROUPS, most_judged=_MOST_JUDGED, seed=seed
    )
    if len(folds.candidates) < _FEWEST_GROUPS:
        raise ArgumentError(
            f"new_groups='membership' needs at least {_FEWEST_GROUPS} groups of '{group}' with two rows or "
            f"more, and training had {len(folds.candidates)}. Use new_groups='marginal'."
        )
    return folds


def _trained(inputs: Tensor, folds: Folds, seed: int, progressbar: bool) -> tuple[list[MLP], Floats]:
    """A network for each part of the rows; log probabilities of the judged rows, shape (M, C).

    Each row is judged by the network that has not seen it.
    """
    codes = torch.as_tensor(folds.places)
    place = np.cumsum(folds.judged) - 1
    rows = np.empty((int(folds.judged.sum()), len(folds.candidates)))
    networks = []
    with tqdm(desc="membership", disable=not progressbar, leave=False) as bar:
        for fold in np.unique(folds.fold[folds.judged]).tolist():
            own = folds.fold == fold
            fitting, held_out = (torch.as_tensor(np.flatnonzero(r)) for r in (~own, own & folds.judged))
            part_seed = stream(seed, fold)
            network = MLP(_HIDDEN).build(inputs.shape[1], rows.shape[1], seed=part_seed)
            train_classifier(network, inputs, codes, fitting, held_out, seed=part_seed, bar=bar)
            for chosen, part in log_probabilities(network, inputs, held_out):
                rows[place[chosen.numpy()]] = part.double().numpy()
            networks.append(network)
    return networks, rows
