"""Posteriors made by hand: draws from the prior, or chosen values, of small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor, nn

from pyro_armed import families
from pyro_armed.design import FormulaDesign
from pyro_armed.draws import without_row_axis
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.priors import PriorTable


def frame(n_groups: int = 5, rows: int = 4, seed: int = 1) -> pd.DataFrame:
    """Predictors x and z, groups ``g0``, ... and crossed ``h0``, ..., and a response of every kind."""
    rng = np.random.default_rng(seed)
    n = n_groups * rows
    code = np.repeat(np.arange(n_groups), rows)
    data = pd.DataFrame(
        {
            "x": rng.normal(1.0, 2.0, n),
            "z": rng.normal(size=n),
            "g": [f"g{c}" for c in code],
            "h": [f"h{c}" for c in np.arange(n) % 3],
            "y": rng.normal(size=n) * 2.0 + 3.0,
            "p": rng.uniform(0.05, 0.95, n),
            "count": rng.poisson(2.0, n),
            "b": np.arange(n) % 2,
            "s": rng.integers(0, 5, n),
            "t": rng.integers(5, 9, n),
            "c": np.array(["low", "mid", "top"])[np.arange(n) % 3],
            "w": rng.uniform(0.5, 2.0, n),
        }
    )
    data["o"] = pd.Categorical(data["c"], categories=["low", "mid", "top"], ordered=True)
    return data


def design(
    formulas: str | Sequence[str], data: pd.DataFrame, family: str = "gaussian", **options: Any
) -> Any:
    link = options.pop("link", None)
    formulas = [formulas] if isinstance(formulas, str) else list(formulas)
    return FormulaDesign(formulas, data, families.get(family, link), **options)


def module_of(
    made: FormulaDesign,
    network: nn.Module | None = None,
    output_layer: str | None = None,
    n_features: int = 0,
) -> MixedEffectsModule:
    spec = made.spec if network is None else made.spec.with_features(n_features)
    return MixedEffectsModule(
        spec, PriorTable(spec, {}, made.dtype), network, output_layer, made.training.batch
    ).eval()


def prior_draws(module: MixedEffectsModule, draws: int, seed: int = 0) -> dict[str, Tensor]:
    """What `Chain.values` holds, drawn from the prior."""
    with torch.random.fork_rng(), torch.no_grad(), local_parameters():
        torch.manual_seed(seed)
        with pyro.plate("made_by_hand", draws, dim=-2):
            values = module.sample_latents(module.data)  # type: ignore[arg-type]
    return without_row_axis(module, values)


def mild_draws(module: MixedEffectsModule, draws: int, seed: int = 0) -> dict[str, Tensor]:
    """Values of the same shapes that no response family minds: effects 0.3 N(0, 1), scales around 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, like in prior_draws(module, draws, seed).items():
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        if name == "threshold":
            made[name] = noise.sort(dim=-1).values
        elif name.endswith("_corr"):
            made[name] = like
        elif name.endswith("_sigma") or name in module.spec.family.auxiliaries:
            made[name] = (0.2 * noise).exp()
        else:
            made[name] = 0.3 * noise
    return made


def posterior_of(
    module: MixedEffectsModule, draws: int = 20, chains: int = 2, fixed: Mapping[str, Any] | None = None
) -> Posterior:
    """Mild draws, with the values named in ``fixed`` the same in each of them."""
    made = []
    for chain in range(chains):
        values = mild_draws(module, draws, seed=chain + 100)
        for name, value in (fixed or {}).items():
            like = values[name]
            values[name] = torch.as_tensor(value, dtype=like.dtype).expand_as(like).clone()
        made.append(Chain(module, values))
    return Posterior(made)
