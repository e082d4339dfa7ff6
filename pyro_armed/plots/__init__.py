"""Pictures that ArviZ does not draw.

Posteriors, forests, predictive checks and the like are ArviZ's: any of its functions takes ``model.idata``.
Matplotlib is imported by the functions that need it.
"""

from pyro_armed.plots._adversary import adversary_choice
from pyro_armed.plots._boundaries import decision_boundaries
from pyro_armed.plots._cross_validation import reliability, score_by_group
from pyro_armed.plots._figures import new_figure
from pyro_armed.plots._groups import counterfactual_groups, latents, saliency
from pyro_armed.plots._importance import importance

__all__ = [
    "adversary_choice",
    "counterfactual_groups",
    "decision_boundaries",
    "importance",
    "latents",
    "new_figure",
    "reliability",
    "saliency",
    "score_by_group",
]
