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
from pyro_armed.networks import Pass
from pyro_armed.passes import RECONSTRUCTION, input_distribution, network_inputs
from pyro_armed.priors import Prior, PriorTable, corr_name
from pyro_armed.regression import Hidden, Regression, Values
from pyro_armed.spec import FEATURES, INTERCEPT, EffectBlock, LayerEffects, ModelSpec, Predictor

__all__ = ["MixedEffectsModule"]

OBSERVATIONS = "__obs__"
# Value of a site, from its name and its distribution.
Sample = Callable[[str, Any], Any]


class MixedEffectsModule(Regression):
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
        super().__init__(spec, priors, network, output_layer, data)
        self.data = data
        self._still = () if network is None else networks.still_parts(network)

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

    def sample_globals(self, sample: Sample = pyro.sample) -> dict[str, Tensor]:
        """Draw what is not specific to a group: common effects, auxiliaries, sds and correlations.

        Parameters
        ----------
        sample : callable
            Gives the value of a site from its name and its distribution.

        Returns
        -------
        dict of str to Tensor
            Part of what `sample_latents` returns.
        """
        values: dict[str, Tensor] = {}
        for predictor in self.spec.predictors:
            self._sample_common(predictor, values, sample)
        self._sample_auxiliaries(values, sample)
        for block in self.spec.blocks:
            self._sample_covariance(block, values, sample)
        within = [f"{name}_sigma" for layer in self.spec.layers for name in layer.names]
        for name in [*within, f"{RECONSTRUCTION}_sigma"]:
            if name in self.priors:
                values[name] = sample(name, self.priors[name].raw)
        return values

    def _sample_common(self, predictor: Predictor, values: dict[str, Tensor], sample: Sample) -> None:
        """Common effects on the data's scale; the intercept is drawn at the mean of the columns."""
        labels = [*(term.name for term in predictor.terms), FEATURES]
        for label in [*labels, INTERCEPT] if predictor.intercept else labels:
            name = predictor.common_name(label)
            if label == INTERCEPT or name in self.priors:
                prior: Prior = self.priors[name]
                values[name] = prior.shift + prior.unit * sample(f"{name}_raw", prior.raw)

    def _sample_auxiliaries(self, values: dict[str, Tensor], sample: Sample) -> None:
        for name in self.spec.family.auxiliaries:
            if name not in self.priors:
                continue
            site = "threshold_raw" if name == "threshold" else name
            values[name] = sample(site, self.priors[name].raw)

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

    def _sample_covariance(self, block: EffectBlock, values: dict[str, Tensor], sample: Sample) -> None:
        for term in block.terms:
            name = f"{block.effect_name(term)}_sigma"
            values[name] = sample(name, self.priors[name].raw)
        if block.correlated:
            name = corr_name(self.spec, block)
            values[name] = sample(f"{name}_cholesky", self.priors[name].raw)

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


def group_plate(group: str) -> str:
    """Name of a grouping factor's plate and of its dimension in the posterior, as in Bambi."""
    return f"{group}__factor_dim"
