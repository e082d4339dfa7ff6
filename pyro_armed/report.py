"""A model in words and formulas, and as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from statistics import median
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_armed.errors import MissingDependencyError
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Posterior
from pyro_armed.spec import FEATURES, INTERCEPT, EffectBlock, Group, ModelSpec, Predictor, prefix
from pyro_armed.weight_prior import VARIANCE

__all__ = ["describe_model", "describe_prior", "render_graph"]

_SHOWN = 3
_MOST = 6
_WIDTH = 10


def describe_model(model: Any) -> str:
    """What `print` shows of a model.

    Parameters
    ----------
    model : ARMED
        Fitted or not.

    Returns
    -------
    str
        Formula, the model in mathematics, network, groups, priors on the data's scale, adversary, and how it
        was fitted.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> print(describe_model(pa.ARMED("y ~ x1 + (1 | group)", data.frame)).splitlines()[5])
               eta_i = Intercept + beta[x1] x1_i + u[group(i)]
    """
    module: MixedEffectsModule = model.module
    spec = module.spec
    posterior: Posterior | None = getattr(model, "_posterior", None)
    sections = {
        "formula": model.formula.split("; "),
        "response": _response(spec),
        "model": [*_equations(module), *_effects(module)],
        "network": _network(module),
        "groups": [_group(group) for group in spec.groups] or ["none: rows are independent"],
        "priors": _priors(module),
        "adversary": _adversary(model),
        "fit": _fit(posterior),
    }
    weighted = " weighted" if module.data is not None and module.data.weights is not None else ""
    title = f"ARMED({spec.family.name}, {spec.family.link.name} link): {spec.n_rows:,}{weighted} rows"
    lines = [title, ""]
    for name, section in sections.items():
        for number, line in enumerate(section):
            lines.append(f"{name if not number else '':<{_WIDTH}} {line}")
    return "\n".join(lines)


def render_graph(module: MixedEffectsModule, **options: Any) -> Any:
    """Draw the model's plates and dependencies with `pyro.render_model`.

    Parameters
    ----------
    module : MixedEffectsModule
        The model, with its training data; or pass ``model_args=(batch,)``.
    **options
        For `pyro.render_model`, such as ``filename="model.pdf"`` or ``render_distributions=True``.

    Returns
    -------
    graphviz.Digraph

    Raises
    ------
    MissingDependencyError
        Without the package ``graphviz``.
    """
    if importlib.util.find_spec("graphviz") is None:
        raise MissingDependencyError(
            "graph() needs the package 'graphviz': pip install graphviz (and, to write files, the program "
            "'dot' from graphviz.org)."
        )
    if "model_args" not in options and module.data is not None and module.data.size > 1:
        # The picture does not depend on the number of rows; tracking where values come from does.
        options["model_args"] = (module.data.select(torch.arange(min(module.data.size, 2))),)
    training = module.training
    try:
        with local_parameters():
            return pyro.render_model(module.eval(), **options)
    finally:
        module.train(training)


# --- the model ---------------------------------------------------------------------------------------------


def _response(spec: ModelSpec) -> list[str]:
    if not spec.levels:
        return [spec.response]
    shown = (" < " if spec.family.response == "ordinal" else ", ").join(map(str, spec.levels))
    also = f"; the probability is that of {spec.levels[1]}" if spec.family.response == "binary" else ""
    return [f"{spec.response}: {shown}{also}"]


def _equations(module: MixedEffectsModule) -> list[str]:
    spec, family = module.spec, module.spec.family
    auxiliaries = [
        f"{name}_i" if name in {p.parameter for p in spec.predictors} else name for name in family.auxiliaries
    ]
    if family.response == "ordinal":
        first = f"P(y_i <= k) = inverse {family.link.name}(threshold_k - eta_i)"
    elif family.response == "categorical":
        first = f"y_i ~ categorical(softmax(0, eta_i)), log odds against {spec.levels[0]}"
    else:
        mean = "eta_i" if family.link.name == "identity" else "mu_i"
        parameters = ["n_i"] * (family.response == "binomial") + [mean, *auxiliaries]
        first = f"y_i ~ {family.name}({', '.join(parameters)})"
        first += "" if mean == "eta_i" else f", {family.link.name}(mu_i) = eta_i"
    lines = [first]
    for predictor in spec.predictors:
        left = "eta_i"
        if predictor.parameter != "mu":
            left = f"{family.auxiliary_links[predictor.parameter]}({predictor.parameter}_i)"
        lines.append(f"{left} = {_sum(module, predictor)}")
    return lines


def _sum(module: MixedEffectsModule, predictor: Predictor) -> str:
    parts = [predictor.common_name(INTERCEPT)] if predictor.intercept else []
    for term in predictor.terms:
        name = f"beta[{predictor.common_name(term.name)}]"
        parts.append(f"{name}{_transposed(term.is_vector)} {term.name}_i")
    bayesian = predictor.common_name(FEATURES) in module.priors
    if predictor.network:
        columns = ", ".join(term.name for term in predictor.inputs)
        inside = columns if len(predictor.inputs) <= _MOST else f"{len(predictor.inputs)} inputs"
        inside = inside or "x_i"
        parts.append(f"beta[features]' phi({inside})" if bayesian else f"f({inside})")
    elif bayesian:
        parts.append(f"beta[{predictor.common_name(FEATURES)}]' phi_i")
    if predictor.offset:
        parts.append("offset_i")
    parts += [_contribution(block) for block in predictor.blocks]
    return " + ".join(parts) or "0"


def _contribution(block: EffectBlock) -> str:
    where = f"u[{_index(block)}(i)]"
    columns = ["phi" if term.name == FEATURES else term.name for term in block.terms[:_MOST]]
    if columns == ["1"]:
        return where
    return f"({', '.join(columns)}{', ...' if len(block.terms) > _MOST else ''})_i' {where}"


def _transposed(is_vector: bool) -> str:
    return "'" if is_vector else ""


def _index(block: EffectBlock) -> str:
    """The group, and the parameter where it is not the mean."""
    return f"{prefix(block.parameter)}{block.group}"


def _effects(module: MixedEffectsModule) -> Iterator[str]:
    for layer in module.spec.layers:
        scale, bias = layer.names
        h = "norm(h)" if layer.normalize else "h"
        where = f"[{layer.group}(i)]"
        yield f"in layer '{layer.layer}': h -> (1 + gamma{where}) {h} + b{where}, {layer.channels} channels;"
        yield f"    gamma ~ Normal(0, tau^2), tau = {scale}_sigma; b ~ Normal(0, tau^2), tau = {bias}_sigma"
    if (rebuilt := module.spec.reconstruction) is not None:
        weight = "" if rebuilt.weight == 1.0 else f", weight {rebuilt.weight:g}"
        yield f"x_i ~ {rebuilt.likelihood} around the network's reconstruction{weight}"
    for block in module.spec.blocks:
        sds = ", ".join(f"{block.effect_name(term)}_sigma" for term in block.terms[:_MOST])
        sds += ", ..." if len(block.terms) > _MOST else ""
        if block.size == 1:
            yield f"u[{_index(block)}] ~ Normal(0, tau^2), tau = {sds}"
        else:
            middle = "D(tau) R D(tau), R ~ LKJ" if block.correlated else "D(tau)^2"
            yield f"u[{_index(block)}] ~ Normal(0, Sigma), Sigma = {middle}, tau = ({sds})"


# --- what it is made of ------------------------------------------------------------------------------------


def _network(module: MixedEffectsModule) -> list[str]:
    network = module.network
    if network is None:
        return ["none: a linear predictor"]
    total = sum(parameter.numel() for parameter in network.parameters())
    lines = [f"{type(network).__name__}, {total:,} parameters"]
    if module.output_layer is not None:
        where = f"the {module.spec.n_features} inputs of layer '{module.output_layer}'"
        bayesian = module.spec.mu.common_name(FEATURES) in module.priors
        lines.append(
            f"features phi: {where}"
            + (", whose weights have a posterior here" if bayesian else ", whose weights are point estimates")
        )
    if module.spec.mu.linear_path:
        lines.append(
            "a departure from the linear path: weights at the mode under "
            f"Normal(0, sqrt({VARIANCE:g} / inputs of the layer))"
        )
    return lines


def _group(group: Group) -> str:
    counts = group.counts
    single = sum(count == 1 for count in counts)
    rows = f"rows per group {min(counts)} / {median(counts):g} / {max(counts)} (min, median, max)"
    note = f"; {single} with a single row" if single else ""
    return f"{group.name}: {group.size:,} groups, {rows}{note}"


def _priors(module: MixedEffectsModule) -> list[str]:
    priors = module.priors.describe()
    width = max(map(len, priors), default=0)
    lines = [f"{name:<{width}}  ~ {describe_prior(prior)}" for name, prior in priors.items()]
    centred = any(p.intercept and p.terms for p in module.spec.predictors)
    return [*lines, "(intercepts: at the mean of the predictors)"] if centred else lines


def _adversary(model: Any) -> list[str]:
    settings, spec = model.adversary, model.module.spec
    lines = ["none"]
    if settings is not None:
        names = settings.groups or [group.name for group in spec.groups[:1]]
        groups = names if isinstance(names, str) else ", ".join(names)
        classes = spec.family.response in ("binary", "binomial", "categorical", "ordinal")
        given = ", given the response" if settings.is_conditional(classes) else ""
        layers = ", ".join(map(str, settings.hidden)) or "none"
        reads = "" if settings.layers is None else f"; reads {', '.join(settings.layers)}"
        lines = [f"weight {settings.weight:g} against {groups}{given}; hidden layers {layers}{reads}"]
        if settings.independence:
            lines[0] += f"; independence {settings.independence:g}"
    if getattr(model, "fixed_effects_weight", 0.0):
        lines.append(f"loss of the prediction without group effects: weight {model.fixed_effects_weight:g}")
    return lines


def _fit(posterior: Posterior | None) -> list[str]:
    if posterior is None:
        return ["not fitted: call fit()"]
    known = posterior.attributes
    how = str(known.get("inference", "posterior")).upper()
    guide = f", {known['guide']} guide" if "guide" in known else ""
    chains = len(posterior.chains)
    line = f"{how}{guide}: {chains} chain{'s' * (chains > 1)} of {posterior.n_draws} draws"
    lines = [line + (f", seed {known['seed']}" if "seed" in known else "")]
    if "elbo" in known:
        settled = "" if known.get("converged", True) else " (still rising: train longer)"
        lines.append(f"ELBO {known['elbo']:.1f}{settled}")
    if "khat" in known:
        lines.append(f"Pareto k {known['khat']:.2f}")
    if "adversary" in known:
        lines.append(known["adversary"])
    return lines


# --- priors ------------------------------------------------------------------------------------------------


def describe_prior(prior: Distribution) -> str:
    """A distribution in a line.

    Parameters
    ----------
    prior : Distribution
        Of any shape; equal parameters are shown once, long ones are cut.

    Returns
    -------
    str

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> describe_prior(dist.Normal(torch.zeros(4), 2.5).to_event(1))
    'Normal(0, 2.5)'
    """
    while isinstance(prior, Independent):
        prior = prior.base_dist
    name = type(prior).__name__
    if name == "LKJCholesky":
        return f"LKJ({_value(prior.concentration)})"  # type: ignore[attr-defined]
    if name == "OrderedNormal":
        return f"Normal(0, {_value(prior.scale)}), sorted"  # type: ignore[attr-defined]
    try:
        names = list(prior.arg_constraints)
    except NotImplementedError:
        return str(prior)
    if "probs" in names and "logits" in names:
        names.remove("probs" if "logits" in vars(prior) else "logits")
    values = [getattr(prior, key, None) for key in names]
    if not values or not all(isinstance(value, (Tensor, float, int)) for value in values):
        return str(prior)
    return f"{name}({', '.join(map(_value, values))})"


def _value(value: Any) -> str:
    numbers = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    shown = [f"{number:.3g}" for number in numbers]
    if len(set(shown)) == 1:
        return shown[0].replace("-0", "0") if shown[0] == "-0" else shown[0]
    cut = ", ..." if len(shown) > _SHOWN else ""
    return f"[{', '.join(shown[:_SHOWN])}{cut}]"
