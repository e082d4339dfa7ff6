"""Drawing from guides, with the weight that each draw has against the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_armed.batch import Batch
from pyro_armed.effect_tables import EffectTables
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain
from pyro_armed.seeds import seeded, stream

__all__ = ["DRAWS", "draw_chain", "draw_tables", "without_row_axis"]

DRAWS = "__draws__"
_ELEMENTS = 20_000_000


@torch.no_grad()
def draw_chain(
    module: MixedEffectsModule,
    guide: Callable[..., object],
    data: Batch,
    draws: int,
    *,
    seed: int,
    weights: bool = True,
) -> Chain:
    """Draw from a guide and score each draw.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    guide : callable
        The guide.
    data : Batch
        All training rows.
    draws : int
        Number of draws S.
    seed : int
        Seed; the global random state is put back.
    weights : bool
        Whether to compute ``log_weight``, log p(y, z) - log q(z) of each draw, which needs all rows.

    Returns
    -------
    Chain
    """
    chunk = max(1, min(draws, _ELEMENTS // max(data.n_rows, 1)))
    module.eval()
    parts: list[dict[str, Tensor]] = []
    log_weights: list[Tensor] = []
    with seeded(stream(seed, "posterior")), local_parameters():
        # Where effects within the network differ between draws, the model makes a pass for each.
        hidden = module.hidden(data) if weights and not module.spec.layers else None
        for start in range(0, draws, chunk):
            size = min(chunk, draws - start)
            with pyro.plate(DRAWS, size, dim=-2):
                guide_trace = poutine.trace(guide).get_trace(data, hidden)
                replayed = poutine.replay(module.sample_latents, trace=guide_trace)
                values = replayed(data)
                if weights:
                    scored = poutine.replay(module, trace=guide_trace)
                    model_trace = poutine.trace(scored).get_trace(data, hidden)
                    log_weights.append(log_density(model_trace, size) - log_density(guide_trace, size))
            parts.append(without_row_axis(module, values))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Chain(module, joined, {"log_weight": torch.cat(log_weights)} if weights else {})


@torch.no_grad()
def draw_tables(module: MixedEffectsModule, guide: MeanFieldGuide, draws: int, *, seed: int) -> Chain:
    """Draws of everything but the groups' effects, whose tables stand for theirs.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    guide : MeanFieldGuide
        The guide.
    draws : int
        Number of draws S.
    seed : int
        Seed; the global random state is put back.

    Returns
    -------
    Chain
        Without weights, which would need the effects of all groups.
    """
    module.eval()
    own = guide.restricted([site.name for site in guide.sites if site.group is None])
    with seeded(stream(seed, "posterior")), local_parameters(), pyro.plate(DRAWS, draws, dim=-2):
        trace = poutine.trace(own).get_trace()
        values = poutine.replay(module.sample_globals, trace=trace)()
    return Chain(module, without_row_axis(module, values), tables=EffectTables.of(guide, draws, seed))


def log_density(trace: Trace, size: int) -> Tensor:
    """Log density of a trace for each of S draws in the plate, shape (S,)."""
    total: Tensor | float = 0.0
    site: Any
    for site in trace.nodes.values():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if site["infer"].get("_deterministic"):
            continue
        scale = site["scale"]
        log_prob = site["fn"].log_prob(site["value"]) * scale
        if isinstance(site["mask"], Tensor):
            log_prob = log_prob.masked_fill(~site["mask"], 0.0)
        total = total + log_prob.expand(torch.broadcast_shapes(log_prob.shape, (size, 1))).sum(-1)
    return total  # type: ignore[return-value]


def without_row_axis(module: MixedEffectsModule, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values drawn in a plate, (S, 1, ...) and (S, C, ...), as a `Chain` stores them."""
    groups = module.effect_names()
    return {name: value if name in groups else value[:, 0] for name, value in values.items()}
