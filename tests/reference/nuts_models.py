"""Linear mixed models with the library's default priors, written in NumPyro and independent of the library.

Two forms: :func:`sampled` samples every random effect; :func:`marginalised`, for a Gaussian response,
integrates the random effects out in closed form, and :func:`conditional_effects` puts them back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist


@dataclass
class Group:
    """One grouping factor: codes per row, labels, and the columns (N, K) its effects multiply."""

    name: str
    codes: np.ndarray
    labels: list[str]
    terms: list[str] = field(default_factory=lambda: ["1"])
    columns: np.ndarray | None = None
    correlated: bool = True
    centred: bool = False

    def design(self) -> np.ndarray:
        """Intercept column and slopes, shape (N, K)."""
        ones = np.ones((len(self.codes), 1))
        return ones if self.columns is None else np.concatenate([ones, self.columns], axis=1)


@dataclass
class Spec:
    """A model: response, fixed-effect columns (N, P) without intercept, grouping factors, family."""

    formula: str
    data: str
    family: str
    y: np.ndarray
    x: np.ndarray
    names: list[str]
    groups: list[Group]
    trials: np.ndarray | None = None
    levels: list[str] | None = None
    centre: bool = True
    note: str | None = None

    @property
    def scale(self) -> float:
        """The s of the priors: sd of a Gaussian response, else 1."""
        return float(self.y.std()) if self.family == "gaussian" else 1.0

    def location(self) -> float:
        """Link of the mean response: the prior mean of the centred intercept."""
        y = self.y
        if self.family == "gaussian":
            return float(y.mean())
        if self.family == "poisson":
            return float(np.log(y.mean()))
        if self.family == "categorical":
            return 0.0
        rate = y.sum() / (self.trials.sum() if self.trials is not None else len(y))
        return float(np.log(rate / (1 - rate)))


def half_student_t(df: float, scale: Any) -> dist.Distribution:
    """Student t of location 0, folded at 0."""
    return dist.FoldedDistribution(dist.StudentT(df, 0.0, scale))


def _group_prior(group: Group, s: float, responses: int) -> Any:
    """Sample the sds and the lower Cholesky factor of the covariance: shape (K, K), or (R,) sds if R > 1."""
    w = group.design()
    sw = np.r_[1.0, w[:, 1:].std(axis=0)]
    if responses > 1:
        return numpyro.sample(f"{group.name}_sd", half_student_t(3, 2.5 * s * np.ones(responses)))
    sd = numpyro.sample(f"{group.name}_sd", half_student_t(3, 2.5 * s / sw))
    if w.shape[1] == 1 or not group.correlated:
        return jnp.diag(sd)
    factor = numpyro.sample(f"{group.name}_chol", dist.LKJCholesky(w.shape[1], 1.0))
    return sd[:, None] * factor


def _effects(group: Group, s: float, responses: int) -> jax.Array:
    """Sample a grouping factor's effects: (C, K), or (C, R) if there are R > 1 linear predictors."""
    factor = _group_prior(group, s, responses)
    size = responses if responses > 1 else factor.shape[0]
    shape = (len(group.labels), size)
    lower = jnp.diag(factor) if factor.ndim == 1 else factor
    if group.centred:
        law = dist.MultivariateNormal(jnp.zeros(size), scale_tril=lower).expand([shape[0]]).to_event(1)
        return numpyro.sample(f"{group.name}_u", law)
    z = numpyro.sample(f"{group.name}_z", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
    return numpyro.deterministic(f"{group.name}_u", z @ lower.T)


def _fixed(spec: Spec, responses: int = 1) -> tuple[jax.Array | float, jax.Array]:
    """Sample coefficients and centred intercept; return (intercept at the column means, coefficients)."""
    shape = (responses,) if responses > 1 else ()
    sx = spec.x.std(axis=0)
    spread = (2.5 * spec.scale / sx).reshape((-1,) + (1,) * len(shape)) * np.ones(shape)
    if len(spec.names):
        beta = numpyro.sample("beta", dist.Normal(np.zeros(spread.shape), spread).to_event(spread.ndim))
    else:
        beta = jnp.zeros((0, *shape))
    if spec.family == "ordinal":
        return 0.0, beta
    location = spec.location() * np.ones(shape)
    centred = numpyro.sample("centred", dist.Normal(location, 2.5 * spec.scale).to_event(len(shape)))
    numpyro.deterministic("Intercept", centred - spec.x.mean(axis=0) @ beta)
    return centred, beta


def _ordinal(y: np.ndarray, eta: jax.Array, shift: jax.Array | float) -> None:
    """Cumulative logit likelihood with ordered thresholds, each Normal(0, 2.5) before ordering."""
    count = int(y.max())
    support = dist.constraints.ordered_vector
    threshold = numpyro.sample("cut", dist.ImproperUniform(support, (), (count,)))
    numpyro.factor("cut_prior", dist.Normal(0.0, 2.5).log_prob(threshold).sum())
    numpyro.deterministic("threshold", threshold + shift)
    numpyro.sample("y", dist.OrderedLogistic(eta, threshold), obs=y)


def sampled(spec: Spec) -> None:
    """The whole model, every random effect a parameter."""
    responses = len(spec.levels) - 1 if spec.family == "categorical" else 1
    centre = spec.x.mean(axis=0) if spec.centre else np.zeros(spec.x.shape[1])
    intercept, beta = _fixed(spec, responses)
    eta = intercept + (spec.x - centre) @ beta
    for group in spec.groups:
        effects = _effects(group, spec.scale, responses)[group.codes]
        eta = eta + (effects if responses > 1 else (group.design() * effects).sum(-1))
    if spec.family == "ordinal":
        _ordinal(spec.y, eta, centre @ beta)
    elif spec.family == "gaussian":
        sigma = numpyro.sample("sigma", half_student_t(4, spec.scale))
        numpyro.sample("y", dist.Normal(eta, sigma), obs=spec.y)
    elif spec.family == "bernoulli":
        numpyro.sample("y", dist.Bernoulli(logits=eta), obs=spec.y)
    elif spec.family == "binomial":
        numpyro.sample("y", dist.Binomial(spec.trials, logits=eta), obs=spec.y)
    elif spec.family == "poisson":
        numpyro.sample("y", dist.Poisson(jnp.exp(eta)), obs=spec.y)
    elif spec.family == "categorical":
        logits = jnp.concatenate([jnp.zeros((len(spec.y), 1)), eta], axis=1)
        numpyro.sample("y", dist.Categorical(logits=logits), obs=spec.y)
    else:
        raise ValueError(spec.family)


def statistics(spec: Spec) -> dict[str, np.ndarray]:
    """Sums over each group's rows: W'W (C, K, K), W'D (C, K, P + 1), W'y (C, K); over all rows D'D, D'y, y'y.

    Several grouping factors count as a single group (C = 1) whose K columns are all their groups' indicators.
    """
    if len(spec.groups) == 1:
        w, index, count = spec.groups[0].design(), spec.groups[0].codes, len(spec.groups[0].labels)
    else:
        w = np.concatenate([np.eye(len(group.labels))[group.codes] for group in spec.groups], axis=1)
        index, count = np.zeros(len(spec.y), int), 1
    d = np.concatenate([np.ones((len(spec.y), 1)), spec.x - spec.x.mean(axis=0)], axis=1)
    y = spec.y - spec.y.mean()

    def per_group(values: np.ndarray) -> np.ndarray:
        out = np.zeros((count, *values.shape[1:]))
        np.add.at(out, index, values)
        return out

    return {
        "ww": per_group(w[:, :, None] * w[:, None, :]),
        "wd": per_group(w[:, :, None] * d[:, None, :]),
        "wy": per_group(w * y[:, None]),
        "dd": d.T @ d,
        "dy": d.T @ y,
        "yy": np.asarray(y @ y),
    }


def _factor(spec: Spec) -> jax.Array:
    """Cholesky factor (K, K) of the covariance of the effects of one group of :func:`statistics`."""
    factors = [_group_prior(group, spec.scale, 1) for group in spec.groups]
    if len(factors) == 1:
        return factors[0]
    sizes = zip(factors, spec.groups, strict=True)
    return jnp.diag(jnp.concatenate([jnp.full(len(group.labels), factor[0, 0]) for factor, group in sizes]))


def marginalised(spec: Spec, stats: dict[str, np.ndarray]) -> None:
    """Gaussian response, effects integrated out (Woodbury): one grouping factor, or several small ones."""
    intercept, beta = _fixed(spec)
    b = jnp.concatenate([jnp.atleast_1d(intercept - spec.y.mean()), beta])
    factor = numpyro.deterministic("factor", _factor(spec))
    sigma = numpyro.sample("sigma", half_student_t(4, spec.scale))
    size, rows = factor.shape[0], len(spec.y)
    wr = stats["wy"] - stats["wd"] @ b
    rr = stats["yy"] - 2 * b @ stats["dy"] + b @ stats["dd"] @ b
    inner = jnp.eye(size) + factor.T @ stats["ww"] @ factor / sigma**2
    v = wr @ factor / sigma**2
    solved = jnp.linalg.solve(inner, v[..., None])[..., 0]
    logdet = jnp.linalg.slogdet(inner)[1].sum()
    numpyro.factor("y", -0.5 * (2 * rows * jnp.log(sigma) + logdet + rr / sigma**2 - (v * solved).sum()))


def conditional_effects(
    spec: Spec, stats: dict[str, np.ndarray], draws: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Posterior mean and sd (C, K) of the integrated effects, from their exact law given each draw."""

    @jax.jit
    def one(
        centred: jax.Array, beta: jax.Array, factor: jax.Array, sigma: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        b = jnp.concatenate([jnp.atleast_1d(centred - spec.y.mean()), beta])
        inner = jnp.eye(factor.shape[0]) + factor.T @ stats["ww"] @ factor / sigma**2
        cov = factor @ jnp.linalg.inv(inner) @ factor.T
        mean = jnp.einsum("cij,cj->ci", cov, stats["wy"] - stats["wd"] @ b) / sigma**2
        return mean, jnp.diagonal(cov, axis1=-2, axis2=-1)

    total, square, inside = 0.0, 0.0, 0.0
    beta = draws.get("beta", np.zeros((len(draws["sigma"]), 0)))
    values = zip(draws["centred"], beta, draws["factor"], draws["sigma"], strict=True)
    for value in values:
        mean, variance = one(*value)
        total, square, inside = total + mean, square + mean**2, inside + variance
    count = len(draws["sigma"])
    average = total / count
    mean, sd = np.asarray(average), np.asarray(jnp.sqrt((inside + square) / count - average**2))
    if len(spec.groups) == 1:
        return {spec.groups[0].name: (mean, sd)}
    bounds = np.cumsum([len(group.labels) for group in spec.groups])[:-1]
    parts = zip(spec.groups, np.split(mean[0], bounds), np.split(sd[0], bounds), strict=True)
    return {group.name: (m[:, None], s[:, None]) for group, m, s in parts}
