"""Draws of the global variables by importance weights, and of the group effects given these.

Weights of theta against the marginal likelihood (adaptive quadrature where it is cheap) give k-hat, and
correct the draws where k-hat allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from pyro_armed.effect_draws import choose_effects
from pyro_armed.gaussian_conditional import GaussianConditional
from pyro_armed.importance import KHAT_LIMIT, effective_size, pareto_smooth, systematic_resample
from pyro_armed.proposals import Proposal, defensive_proposal
from pyro_armed.seeds import generator_for
from pyro_armed.structured import StructuredGuide

__all__ = [
    "GlobalDraws",
    "affordable",
    "chunks",
    "correct_globals",
    "draw_effects",
    "marginal",
    "quadrature_order",
]

_ELEMENTS = 250_000
# Multiplications of dense factors that cost as much as one row-effect.
_DENSE = 5000
# Row-effects that may be evaluated for importance weights.
_WEIGHT_BUDGET = 60_000_000
# Of the guide's own covariance in that of the draws, to keep it definite.
_LEAST_OWN = 1e-6
# Draws that the guide's own covariance counts for in that of the next proposals, for each dimension: with 41
# globals of InstEval's MLP the effective size grew from .35 to .44 of the draws, with 6 to 9 it stayed.
_OWN_DRAWS = 3


@dataclass(frozen=True)
class GlobalDraws:
    """Draws of the global variables.

    Attributes
    ----------
    theta : Tensor, shape (S, P)
        Unconstrained draws; importance-corrected if ``corrected``.
    log_weight : Tensor, shape (S,)
        Log ratio of target and guide of each draw.
    khat : float
        Pareto's k of the weights of theta: above 0.7 they were not used, and the draws are the guide's own.
    corrected : bool
        Whether draws were resampled by their weights.
    effective_size : float
        Effective number of weighted draws.
    mean : Tensor, shape (P,)
        Weighted mean; without correction the guide's.
    factor : Tensor, shape (P, P)
        Lower triangular factor of the weighted covariance; without correction the guide's.
    """

    theta: Tensor
    log_weight: Tensor
    khat: float
    corrected: bool
    effective_size: float
    mean: Tensor
    factor: Tensor


def marginal(guide: StructuredGuide, theta: Tensor, order: int = 1) -> Tensor:
    """The log density log p(y, theta) with the group effects integrated out, shape (S,).

    Parameters
    ----------
    guide : StructuredGuide
        Holds model, data and the effects' conditional.
    theta : Tensor, shape (S, P)
        Unconstrained values.
    order : int
        1: Laplace. More: that many nodes of adaptive quadrature for each effect of a group with one or two;
        that many points of quasi-Monte Carlo in all for a group with more.

    Returns
    -------
    Tensor, shape (S,)
    """
    values, log_prior = guide.space.evaluate(theta)
    conditional = guide.conditional
    problem = conditional.problem(values)
    if not conditional.groups:
        return log_prior + conditional.evidence(problem)
    if order == 1:
        return log_prior + conditional.integrated(problem, guide.start_at(theta, values))
    if guide.inner is not None:
        return log_prior + guide.inner.log_marginal(problem, guide.start_at(theta, values))
    with torch.no_grad():
        # The nodes need not sit exactly at the mode.
        effects = conditional.solve(problem, guide.start_at(theta, values), tolerance=0.02)
    if conditional.widths[conditional.groups[0]] > 2:
        return log_prior + conditional.quasi_monte_carlo(problem, effects, order)
    return log_prior + conditional.quadrature(problem, effects, order)


def affordable(guide: StructuredGuide, budget: int) -> int:
    """Evaluations of the marginal likelihood that a budget of row-effects pays for, at least 80."""
    conditional = guide.conditional
    if guide.inner is not None:
        return max(80, 4 * budget // guide.inner.elements)
    rows = conditional.batch.size
    if isinstance(conditional, GaussianConditional):
        rows = sum(conditional.counts[name] for name in conditional.groups)
    others = sum(conditional.counts[name] * conditional.widths[name] for name in conditional.groups[1:])
    dense = others**2 * (others + conditional.counts[conditional.groups[0]]) // _DENSE if others else 0
    return max(80, budget // max(1, rows * sum(conditional.widths.values()) + dense))


def quadrature_order(guide: StructuredGuide) -> int:
    """The ``order`` of `marginal` that pays: 1 for a Gaussian response, many effects, large factors."""
    conditional = guide.conditional
    if guide.inner is not None:
        return guide.inner.order
    if isinstance(conditional, GaussianConditional) or len(conditional.groups) != 1:
        return 1
    width = conditional.widths[conditional.groups[0]]
    return {1: 9, 2: 3, 3: 32, 4: 32}.get(width, 1)


@torch.no_grad()
def correct_globals(guide: StructuredGuide, draws: int, *, seed: int, rounds: int = 6) -> GlobalDraws:
    """Draw theta and weigh it against the marginal likelihood.

    Parameters
    ----------
    guide : StructuredGuide
        Fitted.
    draws : int
        Draws S to return.
    seed : int
        Seed.
    rounds : int
        Most rounds of proposals, as many as draws each; fewer where their effective size suffices.

    Returns
    -------
    GlobalDraws

    Notes
    -----
    Proposals move to what the weights so far say, and all rounds count as draws from the mixture of their
    proposals: adaptive multiple importance sampling (Cornuet, Marin, Mira, Robert, Scand. J. Stat. 39, 2012).
    """
    generator = generator_for(seed, "globals")
    order = quadrature_order(guide)
    count, most = max(draws, 500), affordable(guide, _WEIGHT_BUDGET)
    if guide.inner is not None:
        # Nothing else moves the Gaussian from the mode to the mass: two small rounds before one large.
        count = max(500, min(count, most // 2))
    rounds = min(rounds, most // count)
    # One round of weights suffices where the Gaussian at the mode is that of the quadrature.
    if rounds < (2 if guide.inner is None else 1):
        return _uncorrected(guide, draws, order, generator)
    theta, log_weight = _adaptive_draws(guide, count, 1.25 * draws, rounds, order, generator)
    smoothed, khat = pareto_smooth(log_weight)
    size = float(effective_size(smoothed))
    corrected = float(khat) < KHAT_LIMIT and size > 0.02 * len(theta)
    if not corrected:
        theta, log_weight = _from_guide(guide, draws, order, generator)
        return GlobalDraws(theta, log_weight, float(khat), False, size, *guide.mean_and_factor())
    chosen = systematic_resample(smoothed, draws, generator)
    mean, factor = _matched(theta, smoothed, guide.mean_and_factor()[1], _LEAST_OWN)
    return GlobalDraws(theta[chosen], log_weight[chosen], float(khat), True, size, mean, factor)


def _adaptive_draws(
    guide: StructuredGuide, count: int, enough: float, rounds: int, order: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rounds of proposals: theta and log weights."""
    mean, factor = guide.mean_and_factor()
    own = factor
    proposals: list[Proposal] = []
    theta, target = mean.new_empty(0, len(mean)), mean.new_empty(0)
    for number in range(rounds):
        factor = torch.linalg.cholesky(factor @ factor.mT)
        proposals.append(defensive_proposal(mean, factor, guide.space.scales, guide.space.correlations))
        drawn = proposals[-1].sample(count, generator)
        # Far from the mean Newton's method takes more steps: there not all of a part should wait for a few.
        drawn = drawn[((drawn - mean) @ torch.linalg.inv(factor).mT).square().sum(-1).argsort()]
        parts = [_safe_marginal(guide, part, order) for part in chunks(guide, drawn, order)]
        theta, target = torch.cat([theta, drawn]), torch.cat([target, *parts])
        densities = torch.stack([proposal.log_density(theta) for proposal in proposals])
        log_weight = target - torch.logsumexp(densities, dim=0) + math.log(len(proposals))
        smoothed, _ = pareto_smooth(log_weight)
        size = float(effective_size(smoothed))
        if number and size > enough:
            break
        if size > 5 * guide.space.size:
            prior_size = _OWN_DRAWS * guide.space.size
            mean, factor = _matched(theta, smoothed, own, prior_size / (prior_size + size))
    return theta, log_weight


def _uncorrected(guide: StructuredGuide, draws: int, order: int, generator: torch.Generator) -> GlobalDraws:
    """Draws of the guide where weighing them all would take too long; k-hat from some of them."""
    count = min(draws, max(100, affordable(guide, _WEIGHT_BUDGET) // 4))
    theta, log_weight = _from_guide(guide, count, order, generator)
    smoothed, khat = pareto_smooth(log_weight)
    mean, factor = guide.mean_and_factor()
    noise = torch.randn(draws - count, len(mean), generator=generator, dtype=mean.dtype)
    theta = torch.cat([theta, mean + noise @ factor.mT])
    log_weight = torch.cat([log_weight, log_weight.new_full((draws - count,), math.nan)])
    size = float(effective_size(smoothed))
    return GlobalDraws(theta, log_weight, float(khat), False, size, *guide.mean_and_factor())


def _matched(theta: Tensor, log_weights: Tensor, factor: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Weighted mean of theta, and a factor of its covariance, to a share the guide's own."""
    weights = log_weights.exp().to(theta.dtype)
    mean = weights @ theta
    centred = theta - mean
    covariance = centred.mT @ (weights[:, None] * centred)
    return mean, torch.linalg.cholesky((1 - share) * covariance + share * factor @ factor.mT)


def _from_guide(
    guide: StructuredGuide, count: int, order: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws from the guide itself and their log weights."""
    mean, factor = guide.mean_and_factor()
    noise = torch.randn(count, len(mean), generator=generator, dtype=mean.dtype)
    theta = mean + noise @ factor.mT
    log_q = -0.5 * noise.square().sum(-1) - 0.5 * len(mean) * math.log(2 * math.pi)
    log_q = log_q - torch.linalg.slogdet(factor).logabsdet
    parts = [_safe_marginal(guide, part, order) for part in chunks(guide, theta, order)]
    return theta, torch.cat(parts) - log_q


def _safe_marginal(guide: StructuredGuide, theta: Tensor, order: int) -> Tensor:
    """The log density log p(y, theta), minus infinity where a factorisation fails."""
    try:
        return marginal(guide, theta, order)
    except LinAlgError:
        if len(theta) == 1:
            return theta.new_full((1,), -math.inf)
        return torch.cat([_safe_marginal(guide, part, order) for part in theta.split(1)])


def chunks(guide: StructuredGuide, theta: Tensor, order: int = 1) -> Iterator[Tensor]:
    """Parts of theta whose tensors fit the memory bound."""
    conditional = guide.conditional
    if guide.inner is not None and order > 1:
        yield from theta.split(max(1, 16 * _ELEMENTS // guide.inner.elements))
        return
    width = sum(conditional.widths.values()) or 1
    others = sum(conditional.counts[n] * conditional.widths[n] for n in conditional.groups[1:])
    first = conditional.groups[0] if conditional.groups else None
    dense = others * (others + (conditional.counts[first] * conditional.widths[first] if first else 0))
    rows = conditional.batch.size
    if first and isinstance(conditional, GaussianConditional):
        rows = conditional.counts[first]
    each = rows * width * max(width, 2) + dense
    yield from theta.split(max(1, _ELEMENTS // max(each, 1)))


@torch.no_grad()
def draw_effects(
    guide: StructuredGuide, theta: Tensor, *, seed: int, candidates: int = 8
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the group effects given draws of theta.

    With one grouping factor and a response that is not Gaussian each group's draw is chosen among
    ``candidates`` by importance weights.

    Parameters
    ----------
    guide : StructuredGuide
        Fitted.
    theta : Tensor, shape (S, P)
        Draws of the global variables.
    seed : int
        Seed.
    candidates : int
        Draws for each group to choose from.

    Returns
    -------
    values : dict of str to Tensor
        Global values (S, 1, ...) and group effects (S, C, ...).
    log_ratio : Tensor, shape (S, C)
        Log ratio of each group's conditional and its Gaussian, at one plain draw; empty for crossed factors.
    """
    generator = generator_for(seed, "effects")
    conditional = guide.conditional
    parts: list[dict[str, Tensor]] = []
    ratios: list[Tensor] = []
    for part in chunks(guide, theta, 1 if guide.inner is None else guide.inner.order):
        values, _ = guide.space.evaluate(part)
        if conditional.groups:
            problem = conditional.problem(values)
            start = guide.start_at(part, values)
            if guide.inner is not None:
                z, ratio = guide.inner.draw(problem, start, candidates, generator)
            else:
                effects = conditional.solve(problem, start, tolerance=1e-3)
                z, ratio = choose_effects(conditional, problem, effects, candidates, generator)
            values = {**values, **conditional.effects(values, z)}
            ratios.append(ratio)
        parts.append(values)
    joined = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    return joined, torch.cat(ratios) if ratios else theta.new_empty(len(theta), 0)
