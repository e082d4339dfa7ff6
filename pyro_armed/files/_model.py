"""A fitted model to a file and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from pyro_armed import families
from pyro_armed.adversary import Adversary
from pyro_armed.arrays import ArrayDesign
from pyro_armed.batch import Batch
from pyro_armed.design import FormulaDesign
from pyro_armed.effect_tables import EffectTables
from pyro_armed.errors import ArgumentError, ArmedError, FileFormatError, NotFittedError
from pyro_armed.families import Family
from pyro_armed.files import _arviz, _networks
from pyro_armed.files._container import read, write
from pyro_armed.files._priors import decode_prior, encode_prior
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.membership import Membership
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.priors import PriorTable

__all__ = ["restore", "save"]

_DESIGNS: dict[str, Any] = {"formula": FormulaDesign, "arrays": ArrayDesign}
_PARTS = ("values", "stats", "quality")
_LIBRARIES = ("pyro_armed", "torch", "pyro-ppl", "arviz", "formulae", "safetensors")


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted model to one file.

    The file holds the posterior draws, the networks' weights and buffers, a mean-field guide, the classifier
    of `ARMED.fit_membership` where it has been called, the formula with what its transforms learned (levels,
    means, ranges), labels of all groups, and the ArviZ object as it is now. Training rows are *not* in it,
    except for what the ArviZ object shows: the response and the group labels of each row (``observed_data``,
    ``constant_data``), pointwise log likelihoods and predictive draws. Delete those groups from
    ``model.idata`` first where they must not leave the house.

    Parameters
    ----------
    model : ARMED
        A fitted model.
    path : path-like
        Where to. A file that stands there is replaced once the new one is complete.

    Raises
    ------
    NotFittedError
        Before `fit`: there is nothing yet that formula and data do not say.
    ArgumentError, FormulaError, DataError
        For priors, transforms, labels and arrays that a file cannot keep.
    FileNotFoundError
        Where the folder does not exist.
    """
    posterior: Posterior | None = model._posterior
    if posterior is None:
        raise NotFittedError("The model has no posterior to save: call fit() first.")
    tensors: dict[str, Tensor] = {}
    modules = list({id(chain.module): chain.module for chain in posterior.chains}.values())
    if all(model.module is not module for module in modules):
        modules.append(model.module)
    header = {
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "design": {"kind": _kind(model._design), "config": model._design.to_config()},
        "own_family": _is_own(model.spec.family),
        "priors": {name: encode_prior(name, prior) for name, prior in model._user_priors.items()},
        "network": None,
        "adversary": None if model.adversary is None else model.adversary.config(),
        "fixed_effects_weight": model.fixed_effects_weight,
        "chains": _pack_chains(posterior, modules, tensors),
        "attributes": posterior.attributes,
        "best": next(i for i, module in enumerate(modules) if module is model.module),
        "guide": _pack_guide(model, tensors),
        "idata": _arviz.pack(model._idata, tensors),
        "membership": None if model._membership is None else model._membership.pack(tensors),
    }
    if model._plan is not None:
        header["network"] = _networks.describe(model._plan, [m.network for m in modules], tensors)  # type: ignore[misc]
    write(path, tensors, header)


def restore(
    model: Any,
    path: str | os.PathLike[str],
    *,
    network: Any = None,
    family: Family | type[Family] | None = None,
    namespace: Mapping[str, Any] | None = None,
) -> None:
    """Read a file that `save` wrote into an empty model. Nothing in the file is run.

    Parameters
    ----------
    model : ARMED
        Made without ``__init__``; gets everything but training data.
    path : path-like
        The file.
    network, family, namespace
        See `pyro_armed.load`.

    Raises
    ------
    FileNotFoundError, FileFormatError, ArgumentError
        See `pyro_armed.load`.
    """
    tensors, header = read(path)
    try:
        _restore(model, tensors, header, network, family, namespace)
    except ArmedError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise FileFormatError(f"'{path}' is damaged: {error!r}. Save the model again.") from error


def _restore(
    model: Any,
    tensors: dict[str, Tensor],
    header: Mapping[str, Any],
    network: Any,
    family: Family | type[Family] | None,
    namespace: Mapping[str, Any] | None,
) -> None:
    design = header["design"]
    stored = design["config"]["spec"]["family"]
    if header["own_family"] and family is None:
        raise ArgumentError(
            f"The file's family {stored['name']!r} is not the library's: pass family=... to load()."
        )
    own = families.from_config(stored, family)
    model._design = _DESIGNS[design["kind"]].from_config(design["config"], own, namespace)
    model._user_priors = {name: decode_prior(prior) for name, prior in header["priors"].items()}
    model.adversary = None if header["adversary"] is None else Adversary.from_config(header["adversary"])
    model.fixed_effects_weight = header["fixed_effects_weight"]
    model._arguments = None
    model._training, model._sample, model._plan, model.spec = None, None, None, model._design.spec
    found: list[Any] = [None]
    layer = None
    if header["network"] is not None:
        found = _networks.rebuild(header["network"], tensors, network)
        model._plan = _networks.rebuild_plan(header["network"], found[header["best"]])
        model.spec, layer = model._plan.complete(model._design.spec), model._plan.output_layer
    elif network is not None:
        raise ArgumentError("The file's model has no network; leave network=... out.")
    count = max(len(found), 1 + max(header["best"], *(c["module"] for c in header["chains"])))
    modules = [
        MixedEffectsModule(
            model.spec,
            PriorTable(model.spec, model._user_priors),
            found[i] if i < len(found) else None,
            layer,
        ).eval()
        for i in range(count)
    ]
    chains = [_unpack_chain(i, one, modules, tensors) for i, one in enumerate(header["chains"])]
    model._posterior = Posterior(chains, dict(header["attributes"]))
    model._module = modules[header["best"]]
    model._guide = _unpack_guide(model, header["guide"], tensors)
    model._idata = _arviz.unpack(header["idata"], tensors)
    stored = header["membership"]
    model._membership = None if stored is None else Membership.unpack(model._module, stored, tensors)


def _pack_chains(
    posterior: Posterior, modules: list[MixedEffectsModule], tensors: dict[str, Tensor]
) -> list[dict[str, Any]]:
    described = []
    for number, chain in enumerate(posterior.chains):
        for part in _PARTS:
            for name, value in getattr(chain, part).items():
                tensors[f"chain.{number}.{part}.{name}"] = value
        tensors[f"chain.{number}.trace"] = chain.trace
        tables = _pack_tables(number, chain, tensors)
        module = next(i for i, one in enumerate(modules) if one is chain.module)
        parts = {part: list(getattr(chain, part)) for part in _PARTS}
        described.append({"module": module, "tables": tables, **parts})
    return described


def _pack_tables(number: int, chain: Chain, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """The guide's tables of effects whose draws are not held."""
    tables = chain.tables
    if tables is None:
        return None
    for name in tables.groups:
        tensors[f"chain.{number}.location.{name}"] = tables.locations[name]
        tensors[f"chain.{number}.scale.{name}"] = tables.scales[name]
    return {"groups": tables.groups, "draws": tables.draws, "seed": tables.seed}


def _unpack_tables(
    number: int, described: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
) -> EffectTables | None:
    if described is None:
        return None
    locations = {name: tensors[f"chain.{number}.location.{name}"] for name in described["groups"]}
    scales = {name: tensors[f"chain.{number}.scale.{name}"] for name in described["groups"]}
    return EffectTables(dict(described["groups"]), locations, scales, described["draws"], described["seed"])


def _unpack_chain(
    number: int,
    described: Mapping[str, Any],
    modules: list[MixedEffectsModule],
    tensors: Mapping[str, Tensor],
) -> Chain:
    parts = {
        part: {name: tensors[f"chain.{number}.{part}.{name}"] for name in described[part]} for part in _PARTS
    }
    tables = _unpack_tables(number, described.get("tables"), tensors)
    trace = tensors[f"chain.{number}.trace"]
    return Chain(modules[described["module"]], trace=trace, tables=tables, **parts)


def _pack_guide(model: Any, tensors: dict[str, Tensor]) -> str | None:
    """A mean-field guide's parameters. The structured guide is made of the training rows, which stay out."""
    if not isinstance(model._guide, MeanFieldGuide):
        return None
    tensors.update({f"guide.{name}": value for name, value in model._guide.state_dict().items()})
    return "mean_field"


def _unpack_guide(model: Any, kind: str | None, tensors: Mapping[str, Tensor]) -> MeanFieldGuide | None:
    if kind is None:
        return None
    guide = MeanFieldGuide(model._module, Batch(size=1, n_rows=model.spec.n_rows), torch.Generator())
    guide.load_state_dict({k.removeprefix("guide."): v for k, v in tensors.items() if k.startswith("guide.")})
    return guide


def _kind(design: Any) -> str:
    return next(name for name, one in _DESIGNS.items() if isinstance(design, one))


def _is_own(family: Family) -> bool:
    """Whether the family is the user's, even under a name of the library's."""
    return type(family) is not families.FAMILIES.get(family.name)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
