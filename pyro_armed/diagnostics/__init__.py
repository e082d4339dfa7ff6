"""Whether to trust a fit. Each function takes the fitted model; most take its ArviZ object as well."""

from pyro_armed.diagnostics._adversary import adversary
from pyro_armed.diagnostics._checks import calibration, group_check
from pyro_armed.diagnostics._confounding import ProbeAudit, between_within, probe_audit
from pyro_armed.diagnostics._fit import convergence, khat, r_hat
from pyro_armed.diagnostics._groups import group_log_likelihood
from pyro_armed.diagnostics._importance import Importance, importance
from pyro_armed.diagnostics._latents import calinski_harabasz, davies_bouldin, latents
from pyro_armed.diagnostics._leakage import leakage
from pyro_armed.diagnostics._loo import loo_group
from pyro_armed.diagnostics._predictive_variance import predictive_variance
from pyro_armed.diagnostics._saliency import saliency
from pyro_armed.diagnostics._sbc import SBC, sbc
from pyro_armed.diagnostics._variance import icc

__all__ = [
    "SBC",
    "Importance",
    "ProbeAudit",
    "adversary",
    "between_within",
    "calibration",
    "calinski_harabasz",
    "convergence",
    "davies_bouldin",
    "group_check",
    "group_log_likelihood",
    "icc",
    "importance",
    "khat",
    "latents",
    "leakage",
    "loo_group",
    "predictive_variance",
    "probe_audit",
    "r_hat",
    "saliency",
    "sbc",
]
