"""What the model computes from given values: linear predictors, and the response's distribution around them.

Nothing here draws. `pyro_armed.module` says where the values come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_armed import networks
from pyro_armed.batch import Batch
from pyro_armed.families import get_link
from pyro_armed.local import LocalPyroModule
from pyro_armed.networks import Pass
from pyro_armed.passes import are_draws, network_inputs, run_rows, single_draws
from pyro_armed.priors import PriorTable, corr_name
from pyro_armed.spec import FEATURES, INTERCEPT, EffectBlock, ModelSpec, Predictor, Term

__all__ = ["Hidden", "Regression", "Values", "rows_times"]

Values = Mapping[str, Tensor]
Hidden = tuple[Tensor, Tensor] | Pass | None


class Regression(LocalPyroModule):
    """Pure functions of a model's values, which any leading batch shape of draws may have.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    priors : PriorTable
        Priors by name.
    network : nn.Module, optional
        The user's network, never edited.
    output_layer : str, optional
        Name of the network's last linear layer, whose input are the features.
    data : Batch, optional
        Training rows, on a few of which the network is tried.
    """

    def __init__(
        self,
        spec: ModelSpec,
        priors: PriorTable,
        network: nn.Module | None = None,
        output_layer: str | None = None,
        data: Batch | None = None,
    ):
        super().__init__()
        self.spec = spec
        self.priors = priors
        self.network = network
        self.output_layer = output_layer
        self._images = () if network is None else networks.image_layers(network, _example(network, data))

    def report(self, values: Values) -> dict[str, Tensor]:
        """What the posterior reports, on the data's scale.

        Parameters
        ----------
        values : mapping of str to Tensor
            From `sample_latents`, with any leading batch shape.

        Returns
        -------
        dict of str to Tensor
            The intercept at the zero of the columns, correlation matrices instead of their factors.
        """
        return {**values, **self._derived(values)}

    def _derived(self, values: Values) -> dict[str, Tensor]:
        derived = {}
        for predictor in self.spec.predictors:
            for label in [*(term.name for term in predictor.terms), FEATURES]:
                name = predictor.common_name(label)
                if name in self.priors:
                    derived[name] = values[name]
            if predictor.intercept:
                name = predictor.common_name(INTERCEPT)
                derived[name] = values[name] - self._center_shift(predictor, values)
        if "threshold" in values:
            derived["threshold"] = values["threshold"] + _column(self._center_shift(self.spec.mu, values))
        for block in self.spec.blocks:
            if block.correlated:
                factor = values[corr_name(self.spec, block)]
                derived[corr_name(self.spec, block)] = factor @ factor.mT
        return derived

    def hidden(self, batch: Batch, values: Values | None = None) -> tuple[Tensor, Tensor] | None:
        """The network's features and output.

        Parameters
        ----------
        batch : Batch
            Rows. In evaluation mode without gradients they are taken some at a time.
        values : mapping of str to Tensor, optional
            With the group effects within the network; None: those of the average group, zero. The adversary
            and whatever else asks for the fixed effects reads these.

        Returns
        -------
        features, output : Tensor, shapes (B, F), (B, R)
            With S leading where the effects are S draws, (S, C, K). None without a network.
        """
        if self.network is None:
            return None
        if values is None or not are_draws(self.spec, values):
            return self.passed(batch, values)[:2]
        # Draw by draw: reconstructions of all draws might not fit into memory.
        passes = [self.passed(batch, one)[:2] for one in single_draws(self.spec, values)]
        features, output = zip(*passes, strict=True)
        return torch.stack(features), torch.stack(output)

    def passed(self, batch: Batch, values: Values | None = None) -> Pass:
        """As `hidden`, with the reconstruction of the inputs if the network gives one."""
        if self.network is None:
            raise RuntimeError("the model has no network")
        if values is not None and are_draws(self.spec, values):
            passes = [self.passed(batch, one) for one in single_draws(self.spec, values)]
            return Pass(
                torch.stack([one.features for one in passes]),
                torch.stack([one.output for one in passes]),
                None
                if passes[0].reconstruction is None
                else torch.stack([one.reconstruction for one in passes if one.reconstruction is not None]),
            )
        features, output, rebuilt = run_rows(
            self.network, self.spec, batch, values, self.output_layer, self._images
        )
        # Everything but the network itself is in the precision of the priors.
        return Pass(features.to(self.priors.dtype), output.to(self.priors.dtype), rebuilt)

    def linear_predictor(
        self,
        predictor: Predictor,
        values: Values,
        batch: Batch,
        hidden: Hidden = None,
        random: bool = True,
    ) -> Tensor:
        """The linear predictor of one parameter.

        Parameters
        ----------
        predictor : Predictor
            Which one.
        values : mapping of str to Tensor
            Common effects (the intercept at the mean of the columns) and group effects by name; a leading
            batch shape (S, 1) gives (S, B).
        batch : Batch
            Rows.
        hidden : tuple of Tensor, optional
            From `hidden`; with ``random=False`` from ``hidden(batch)``, without effects.
        random : bool
            Whether the group effects are included.

        Returns
        -------
        Tensor, shape (..., B) or (..., B, R)
        """
        outputs = self._outputs(predictor.parameter)
        eta = self._zeros(batch, outputs)
        if predictor.intercept:
            eta = eta + values[predictor.common_name(INTERCEPT)]
        if predictor.network:
            if hidden is None:
                hidden = self.hidden(batch, values if random else None)
            if predictor.common_name(FEATURES) not in self.priors:
                spread = self.spec.response_scale
                eta = eta + spread * (hidden[1] if outputs else hidden[1][..., 0])  # type: ignore[index]
        if predictor.terms:
            eta = eta + rows_times(
                batch.columns[predictor.parameter], self._standardised(predictor, values), outputs
            )
        if predictor.common_name(FEATURES) in self.priors:
            eta = eta + rows_times(hidden[0], values[predictor.common_name(FEATURES)], outputs)  # type: ignore[index]
        if predictor.offset:
            offset = batch.offsets[predictor.parameter]
            eta = eta + (offset[:, None] if outputs else offset)
        for block in predictor.blocks if random else ():
            eta = eta + self.block_contribution(block, values, batch, hidden)
        return eta

    def block_contribution(self, block: EffectBlock, values: Values, batch: Batch, hidden: Hidden) -> Tensor:
        """What one block of group effects adds to its predictor, shape (..., B) or (..., B, R)."""
        outputs = self._outputs(block.parameter)
        codes = batch.codes[block.group]
        total: Any = 0.0
        column = 0
        for term in block.terms:
            effect = values[block.effect_name(term)]
            if not term.is_vector:
                gathered = effect[..., codes, :] if outputs else effect[..., codes]
                slope = batch.slopes[block.key][:, column]
                total = total + gathered * (slope[:, None] if outputs else slope)
            else:
                gathered = effect[..., codes, :, :] if outputs else effect[..., codes, :]
                slope = self.slope_columns(block, batch, hidden)[..., column : column + term.size]
                total = total + (gathered * (slope[..., None] if outputs else slope)).sum(
                    -2 if outputs else -1
                )
            column += term.size
        return total

    def slope_columns(self, block: EffectBlock, batch: Batch, hidden: Hidden) -> Tensor:
        """The columns that a block's effects multiply, shape (B, K)."""
        columns = batch.slopes[block.key]
        if block.uses_features:
            features: Tensor = hidden[0]  # type: ignore[index]
            columns = torch.cat([columns.expand(*features.shape[:-1], -1), features], dim=-1)
        return columns

    def auxiliaries(self, etas: Mapping[str, Tensor], values: Values) -> dict[str, Tensor]:
        """The family's auxiliary parameters, those with a predictor of their own included."""
        family = self.spec.family
        return {
            name: get_link(family.auxiliary_links[name]).inverse(etas[name]) if name in etas else values[name]
            for name in family.auxiliaries
        }

    def response_distribution(self, etas: Mapping[str, Tensor], values: Values, batch: Batch) -> Any:
        """The response's distribution, batch shape (..., B)."""
        return self.spec.family.from_predictor(etas["mu"], batch.trials, **self.auxiliaries(etas, values))

    def scale_offsets(self, block: EffectBlock, offsets: list[Tensor], values: Values) -> Tensor:
        """Effects u = D(tau) L z of a block.

        Parameters
        ----------
        block : EffectBlock
            The block.
        offsets : list of Tensor
            Standard normal draws z of each term, shapes (..., C), (..., C, K); R comes last for categorical.
        values : mapping of str to Tensor
            With the block's sds and correlations.

        Returns
        -------
        Tensor, shape (..., C, K) or (..., C, K, R)
        """
        z = self._side_by_side(block, offsets)
        factor = values.get(corr_name(self.spec, block)) if block.correlated else None
        if factor is not None:
            outputs = self._outputs(block.parameter)
            z = factor @ z if outputs else (factor @ z.unsqueeze(-1))[..., 0]
        return z * self.block_sds(block, values)

    def block_sds(self, block: EffectBlock, values: Values) -> Tensor:
        """Standard deviations tau of a block's effects, shape (..., K) or (..., K, R)."""
        return self._side_by_side(block, [values[f"{block.effect_name(term)}_sigma"] for term in block.terms])

    def _side_by_side(self, block: EffectBlock, parts: list[Tensor]) -> Tensor:
        """Values of a block's terms joined along the axis of its effects."""
        axis = -2 if self._outputs(block.parameter) else -1
        pairs = zip(block.terms, parts, strict=True)
        return torch.cat([part if term.is_vector else part.unsqueeze(axis) for term, part in pairs], axis)

    def split_effects(self, block: EffectBlock, effects: Tensor) -> list[Tensor]:
        """Effects of each term from the block's table of shape (..., C, K) or (..., C, K, R)."""
        axis = -2 if self._outputs(block.parameter) else -1
        parts = torch.split(effects, [term.size for term in block.terms], dim=axis)
        return [p if t.is_vector else p.select(axis, 0) for t, p in zip(block.terms, parts, strict=True)]

    def _standardised(self, predictor: Predictor, values: Values) -> Tensor:
        """Coefficients of the standardised columns, shape (..., K) or (..., K, R)."""
        outputs = self._outputs(predictor.parameter)
        return torch.cat(
            [self._rescale(predictor, term, values, term.scale, outputs) for term in predictor.terms],
            -1 - outputs,
        )

    def _rescale(
        self, predictor: Predictor, term: Term, values: Values, factor: tuple[float, ...], outputs: int
    ) -> Tensor:
        value = values[predictor.common_name(term.name)]
        if not term.is_vector:
            value = value.unsqueeze(-1 - outputs)
        weights = value.new_tensor(factor)
        return value * (weights[:, None] if outputs else weights)

    def _center_shift(self, predictor: Predictor, values: Values) -> Any:
        """What moves the intercept from the mean of the columns to their zero."""
        outputs = self._outputs(predictor.parameter)
        total: Any = 0.0
        for term in predictor.terms:
            if any(term.center):
                total = total + self._rescale(predictor, term, values, term.center, outputs).sum(-1 - outputs)
        return total

    def effect_names(self) -> set[str]:
        """Names of the group effects, whose first axis is the group."""
        return set(self.spec.effect_names())

    def _outputs(self, parameter: str) -> int:
        return int(parameter == "mu" and self.spec.n_predictors > 1)

    def _event_dim(self, name: str) -> int:
        return len(self.priors[name].raw.event_shape)

    def _zeros(self, batch: Batch, outputs: int) -> Tensor:
        shape = (batch.size, self.spec.n_predictors) if outputs else (batch.size,)
        return torch.zeros(shape, dtype=self.priors.dtype, device=self.priors.device)


def rows_times(columns: Tensor, coefficients: Tensor, outputs: int) -> Tensor:
    """Rows times coefficients under any leading batch shape.

    Parameters
    ----------
    columns : Tensor, shape (B, K) or (S, B, K)
        Rows.
    coefficients : Tensor, shape (K,), (K, R), (..., 1, K) or (..., 1, K, R)
        Coefficients; a plate of draws leaves an axis of size one for the rows.
    outputs : int
        1 if there is an axis R, else 0.

    Returns
    -------
    Tensor, shape (..., B) or (..., B, R)
    """
    if outputs:
        if coefficients.dim() == 2:
            return columns @ coefficients
        columns = columns.unsqueeze(-3) if columns.dim() > 2 else columns
        return (columns @ coefficients).flatten(-3, -2)
    if coefficients.dim() == 1:
        return columns @ coefficients
    return (coefficients @ columns.mT).flatten(-2)


def _example(network: nn.Module, data: Batch | None) -> Tensor | None:
    if data is None or data.inputs is None:
        return None
    return network_inputs(network, data.select(torch.arange(min(4, data.size), device=data.device)))


def _column(value: Any) -> Any:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value
