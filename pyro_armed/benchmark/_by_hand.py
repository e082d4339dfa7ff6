"""The loss of the spirals model written out in PyTorch: what a user would write who does without Pyro."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_armed.guides import MeanFieldGuide
from pyro_armed.objective import Objective

__all__ = ["ByHand"]

_LOG_2PI = math.log(2 * math.pi)


class ByHand(nn.Module):
    """Network, group effects, mean-field guide and adversary of `spirals_model` without Pyro.

    The same numbers as the library's loss at the same parameters and draws, in the same precisions: the
    network's 32 bits and the priors' 64.

    Parameters
    ----------
    objective : Objective
        Of `spirals_model`: gives the network and the classifier, the priors' constants and first values.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        module, guide, head = objective.module, objective.guide, objective.adversary
        if module.data is None or head is None or not isinstance(guide, MeanFieldGuide):
            raise RuntimeError("the model by hand is that of the spirals, with network and adversary")
        network: Any = module.network
        classifier: Any = head.classifiers[0]
        self.n_rows = module.data.n_rows
        self.body: nn.Module = network.layers[:-1]
        self.classifier: nn.Module = classifier.layers
        sites = [site.name for site in guide.sites]
        self.keys = [name.replace("|", "_") for name in sites]
        self.locations, self.log_scales = nn.ParameterDict(), nn.ParameterDict()
        for key, location, log_scale in zip(self.keys, guide.locations, guide.log_scales, strict=True):
            self.locations[key], self.log_scales[key] = location, log_scale
        priors = module.priors
        self.center, self.feature_unit = float(priors["Intercept"].shift), float(priors["features"].unit)
        self.intercept = float(priors["Intercept"].raw.loc), float(priors["Intercept"].raw.scale)
        self.feature_sd = priors["features"].raw.base_dist.scale
        student = priors["1|group_sigma"].raw
        self.tau_1_df, self.tau_1 = float(student.df), float(student.scale)
        self.tau_features = float(priors["features|group_sigma"].raw.base_dist.scale.flatten()[0])

    def forward(self, inputs: Tensor, y: Tensor, codes: Tensor, adversary_weight: Tensor) -> Tensor:
        """The loss per row.

        Parameters
        ----------
        inputs : Tensor, shape (B, 2)
            Rows of a batch.
        y, codes : Tensor, shape (B,)
            Their responses and groups.
        adversary_weight : Tensor
            Weight of the reversed gradient.

        Returns
        -------
        Tensor
            0-dim.
        """
        phi = self.body(inputs)
        draws = {
            key: self.locations[key]
            + self.log_scales[key].exp() * torch.randn(self.locations[key].shape, dtype=torch.float64)
            for key in self.keys
        }
        tau_1, tau_phi = draws["1_group_sigma"].exp(), draws["features_group_sigma"].exp()
        wide = phi.double()
        eta = self.center + draws["Intercept_raw"] + wide @ (self.feature_unit * draws["features_raw"])
        eta = eta + tau_1 * draws["1_group_offset"][codes]
        eta = eta + (tau_phi * draws["features_group_offset"][codes] * wide).sum(-1)
        fit = functional.binary_cross_entropy_with_logits(eta, y.to(eta.dtype))
        adversary = self._adversary(phi, y, codes, adversary_weight)
        return fit + self._divergence(draws, tau_1, tau_phi) / self.n_rows + adversary

    def _divergence(self, draws: dict[str, Tensor], tau_1: Tensor, tau_phi: Tensor) -> Tensor:
        total = self._kl("Intercept_raw", *self.intercept) + self._kl("features_raw", 0.0, self.feature_sd)
        total = total + self._kl("1_group_offset", 0.0, 1.0) + self._kl("features_group_offset", 0.0, 1.0)
        df, scale = self.tau_1_df, self.tau_1
        constant = (
            math.log(2) + math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        )
        student = constant - math.log(scale) - (df + 1) / 2 * torch.log1p((tau_1 / scale) ** 2 / df)
        half = (
            math.log(2)
            - 0.5 * _LOG_2PI
            - math.log(self.tau_features)
            - 0.5 * (tau_phi / self.tau_features) ** 2
        )
        total = total + self._log_q("1_group_sigma", draws) - student.sum()
        return total + self._log_q("features_group_sigma", draws) - half.sum()

    def _kl(self, key: str, mean: float, sd: float | Tensor) -> Tensor:
        """Divergence of the guide's Gaussian from Normal(mean, sd)."""
        location, log_scale = self.locations[key], self.log_scales[key]
        variance = sd * sd
        parts = 0.5 * ((2 * log_scale).exp() + (location - mean) ** 2) / variance - log_scale - 0.5
        log_sd = sd.log() if isinstance(sd, Tensor) else math.log(sd)
        return (parts + log_sd).sum()

    def _log_q(self, key: str, draws: dict[str, Tensor]) -> Tensor:
        """Log density of the drawn sd exp(z), z Gaussian."""
        z, log_scale = draws[key], self.log_scales[key]
        standard = (z - self.locations[key]) / log_scale.exp()
        return (-0.5 * standard**2 - log_scale - 0.5 * _LOG_2PI - z).sum()

    def _adversary(self, phi: Tensor, y: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
        fixed = phi.detach()
        features = _standardised((fixed - weight * (phi - fixed)).to(phi.dtype))
        label = _standardised(y.to(phi.dtype)[:, None])
        return functional.cross_entropy(self.classifier(torch.cat([features, label], 1)), codes)


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(0, keepdim=True)
    variance = centred.square().mean(0, keepdim=True)
    return centred * (variance + 1e-5 * variance.detach().mean() + 1e-10).rsqrt()
