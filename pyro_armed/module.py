"""The generative story as a Pyro module, and nothing else.

For row i of group c = g(i), with x_i, response y_i and the notation of Laird and Ware (1982)::

    eta_i = f(x_i) + sum_g w_g(x_i)' u_{g,c}
    u_{g,c} = D(tau_g) L_g z_{g,c},  z ~ Normal(0, 1),  L_g L_g' = R_g
    y_i ~ family(eta_i, auxiliaries)

Effects within the network stand on channels h of its layers, so that f(x_i) is f(x_i; gamma_c, b_c)::

    h -> (1 + gamma_c) h + b_c,  gamma_c ~ Normal(0, tau_gamma), b_c ~ Normal(0, tau_b)

and a network that reconstructs its input gives that a likelihood too. The adversary and the fixed-effects
loss are no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_armed import networks, weight_prior
from pyro_armed.batch import Batch
from pyro_armed.errors import NotFittedError
from pyro_armed.families import get_link
from pyro_armed.local import LocalPyroModule
from pyro_armed.networks import Pass
from pyro_armed.passes import (
    RECONSTRUCTION,
    are_draws,
    input_distribution,
    network_inputs,
    run_rows,
    single_draws,
)
from pyro_armed.priors import Prior, PriorTable, corr_name
from pyro_armed.spec import FEATURES, INTERCEPT, EffectBlock, LayerEffects, ModelSpec, Predictor, Term

__all__ = ["MixedEffectsModule"]

OBSERVATIONS = "__obs__"
Values = Mapping[str, Tensor]
Hidden = tuple[Tensor, Tensor] | Pass | None


class MixedEffectsModule(LocalPyroModule):
    """The Pyro model of clustered data.

    Called without arguments it is the model of the training data; with a `Batch` it is the model of those
    rows, the likelihood scaled to the whole data set. Sample sites: ``NAME_raw`` for common effects of order
    one, ``EFFECT_sigma``, ``GROUP_corr_cholesky``, ``EFFECT_offset`` (one per group, standard normal),
    ``scale[LAYER]|GROUP`` and ``bias[LAYER]|GROUP`` (effects within the network) and auxiliary parameters;
    everything else that the posterior reports is deterministic. Observed are the response and, where the
    network gives one, ``reconstruction``; the factor ``network_weights`` is the weights' prior beside a
    linear path.

    Parameters
    ----------
    spec : ModelSpec
        The model's structure.
    priors : PriorTable
        Priors by name.
    network : nn.Module, optional
        The user's network, never edited.
    output_layer : str, optional
        Name of the network's last linear layer, whose input are the features. Where the specification gives
        features coefficients, these replace that layer's weights; all other weights are parameters.
    data : Batch, optional
        Training rows.

    Examples
    --------
    Stock Pyro works on it: ``SVI(model.module, AutoNormal(model.module), optim, Trace_ELBO()).step()``,
    ``NUTS(model.module)``, ``Predictive(model.module, samples)(batch)``.
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
        self.data = data
        self._still = () if network is None else networks.still_parts(network)
        self._images = () if network is None else networks.image_layers(network, _example(network, data))

    def train(self, mode: bool = True) -> MixedEffectsModule:
        """Training or evaluation mode; frozen parts of the network stay in the latter."""
        super().train(mode)
        if mode and self.network is not None:
            networks.keep_still(self.network, self._still)
        return self

    def given_network(self) -> MixedEffectsModule:
        """The model of the response alone: without a network, whose pass is to be given as ``hidden``."""
        spec = self.spec.given_network()
        known = PriorTable(spec)
        priors = {name: prior for name, prior in self.priors.user.items() if name in known}
        return MixedEffectsModule(spec, PriorTable(spec, priors), None, self.output_layer, self.data)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixedEffectsModule:
        super()._apply(fn, recurse)
        self.priors.apply(fn)
        if self.data is not None:
            self.data = self.data.map(
                lambda t: fn(t) if t.is_floating_point() else t.to(fn(t.float()).device)
            )
        return self

    def forward(self, batch: Batch | None = None, hidden: Hidden = None) -> Tensor:
        """Draw from the model, or score what an enclosing handler fixes.

        Parameters
        ----------
        batch : Batch, optional
            Rows; the training data by default. Without a response the response is drawn.
        hidden : tuple of Tensor, optional
            The network's features and output for these rows, if they are known already.

        Returns
        -------
        Tensor, shape (..., B) or (..., B, R)
            The linear predictor of the mean.

        Raises
        ------
        NotFittedError
            Without a batch where there is no training data.
        """
        if batch is None:
            batch = self.data
        if batch is None:
            raise NotFittedError(
                "This module has no training data (it was loaded from a file): pass a Batch."
            )
        values = self.sample_latents(batch)
        if self.spec.reconstruction is not None and not isinstance(hidden, Pass):
            hidden = self.passed(batch, values)
        elif hidden is None:
            hidden = self.hidden(batch, values)
        if self.spec.mu.linear_path:
            pyro.factor("network_weights", self.log_prior_of_weights())
        etas = {p.parameter: self.linear_predictor(p, values, batch, hidden) for p in self.spec.predictors}
        self._observe(etas, values, batch, hidden)
        return etas["mu"]

    # --- drawing -----------------------------------------------------------------------------------------

    def sample_latents(self, batch: Batch) -> dict[str, Tensor]:
        """Draw everything but the response.

        Parameters
        ----------
        batch : Batch
            Says which groups are present; its rows are not looked at.

        Returns
        -------
        dict of str to Tensor
            What `linear_predictor` takes: the intercept (and thresholds) at the mean of the columns.
        """
        values = self.sample_globals()
        for name, value in self._derived(values).items():
            pyro.deterministic(name, value, event_dim=self._event_dim(name))
        self._sample_effects(batch, values)
        return values

    def sample_globals(self) -> dict[str, Tensor]:
        """Draw what is not specific to a group: common effects, auxiliaries, sds and correlations.

        Returns
        -------
        dict of str to Tensor
            Part of what `sample_latents` returns.
        """
        values: dict[str, Tensor] = {}
        for predictor in self.spec.predictors:
            self._sample_common(predictor, values)
        self._sample_auxiliaries(values)
        for block in self.spec.blocks:
            self._sample_covariance(block, values)
        within = [f"{name}_sigma" for layer in self.spec.layers for name in layer.names]
        for name in [*within, f"{RECONSTRUCTION}_sigma"]:
            if name in self.priors:
                values[name] = pyro.sample(name, self.priors[name].raw)
        return values

    def _sample_raw(self, name: str) -> Tensor:
        prior: Prior = self.priors[name]
        return prior.shift + prior.unit * pyro.sample(f"{name}_raw", prior.raw)

    def _sample_common(self, predictor: Predictor, values: dict[str, Tensor]) -> None:
        """Common effects on the data's scale; the intercept is drawn at the mean of the columns."""
        for label in [*(term.name for term in predictor.terms), FEATURES]:
            name = predictor.common_name(label)
            if name in self.priors:
                values[name] = self._sample_raw(name)
        if predictor.intercept:
            name = predictor.common_name(INTERCEPT)
            values[name] = self._sample_raw(name)

    def _sample_auxiliaries(self, values: dict[str, Tensor]) -> None:
        for name in self.spec.family.auxiliaries:
            if name not in self.priors:
                continue
            site = "threshold_raw" if name == "threshold" else name
            values[name] = pyro.sample(site, self.priors[name].raw)

    def _sample_effects(self, batch: Batch, values: dict[str, Tensor]) -> None:
        for group in self.spec.groups:
            present = batch.present.get(group.name)
            plate = pyro.plate(group_plate(group.name), group.size, subsample=present, dim=-1)
            blocks = [block for block in self.spec.blocks if block.group == group.name]
            with ExitStack() as stack:
                if group.name in batch.group_scale:
                    weight = batch.group_scale[group.name] * (len(batch.group_scale[group.name]) / group.size)
                    stack.enter_context(poutine.scale(scale=weight))
                stack.enter_context(plate)
                for block in blocks:
                    self._sample_block(block, values)
                for layer in self.spec.layers:
                    if layer.group == group.name:
                        self._sample_layer(layer, values)

    def _sample_covariance(self, block: EffectBlock, values: dict[str, Tensor]) -> None:
        for term in block.terms:
            name = f"{block.effect_name(term)}_sigma"
            values[name] = pyro.sample(name, self.priors[name].raw)
        if block.correlated:
            name = corr_name(self.spec, block)
            values[name] = pyro.sample(f"{name}_cholesky", self.priors[name].raw)

    def _sample_block(self, block: EffectBlock, values: dict[str, Tensor]) -> None:
        offsets = []
        for term in block.terms:
            prior = self.priors[f"{block.effect_name(term)}_sigma"]
            shape = prior.raw.event_shape
            standard = dist.Normal(torch.zeros_like(prior.shift), torch.ones_like(prior.unit))
            draw = pyro.sample(
                f"{block.effect_name(term)}_offset", standard.expand(shape).to_event(len(shape))
            )
            offsets.append(draw)
        effects = self.scale_offsets(block, offsets, values)
        for term, effect in zip(block.terms, self.split_effects(block, effects), strict=True):
            name = block.effect_name(term)
            event_dim = self._event_dim(f"{name}_sigma")
            values[name] = pyro.deterministic(name, effect, event_dim=event_dim)

    def _sample_layer(self, layer: LayerEffects, values: dict[str, Tensor]) -> None:
        """Scales and biases of a layer, not standardised: many rows of a group determine them well."""
        for name in layer.names:
            sd = values[f"{name}_sigma"].unsqueeze(-1)
            normal = dist.Normal(torch.zeros_like(sd), sd).expand((*sd.shape[:-1], layer.channels))
            values[name] = pyro.sample(name, normal.to_event(1))

    def _observe(self, etas: Mapping[str, Tensor], values: Values, batch: Batch, hidden: Hidden) -> None:
        distribution = self.response_distribution(etas, values, batch)
        with ExitStack() as stack:
            stack.enter_context(pyro.plate(OBSERVATIONS, batch.n_rows, subsample=batch.rows, dim=-1))
            if batch.weights is not None:
                # Pyro refuses a scale of zero.
                counted = batch.weights > 0
                stack.enter_context(poutine.mask(mask=counted))  # type: ignore[call-overload]
                stack.enter_context(poutine.scale(scale=batch.weights.masked_fill(~counted, 1.0)))
            pyro.sample(self.spec.response, distribution, obs=batch.response)
            likelihood = self.spec.reconstruction
            if likelihood is not None and isinstance(hidden, Pass) and self.network is not None:
                stack.enter_context(poutine.scale(scale=likelihood.weight))
                distribution = input_distribution(likelihood, hidden, values)
                pyro.sample(RECONSTRUCTION, distribution, obs=network_inputs(self.network, batch))

    def log_prior_of_weights(self) -> Tensor:
        """Log prior of the network's weights where it is a departure from a linear path, else 0; 0-dim."""
        if self.network is None or not self.spec.mu.linear_path:
            return torch.zeros((), dtype=self.priors.dtype, device=self.priors.device)
        replaced = self.spec.mu.common_name(FEATURES) in self.priors
        unused = {f"{self.output_layer}.weight"} if replaced else set()
        return weight_prior.log_density(self.network, unused).to(self.priors.dtype)

    # --- pure functions of values ------------------------------------------------------------------------

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


def _example(network: nn.Module, data: Batch | None) -> Tensor | None:
    if data is None or data.inputs is None:
        return None
    return network_inputs(network, data.select(torch.arange(min(4, data.size), device=data.device)))


def group_plate(group: str) -> str:
    """Name of a grouping factor's plate and of its dimension in the posterior, as in Bambi."""
    return f"{group}__factor_dim"


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


def _column(value: Any) -> Any:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value
