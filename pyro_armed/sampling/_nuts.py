"""Markov chains by `pyro.infer.NUTS`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer import NUTS
from torch import Tensor
from tqdm.auto import tqdm

from pyro_armed.batch import Batch
from pyro_armed.errors import ArgumentError, ConvergenceWarning
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.sampling._density import Density
from pyro_armed.training import no_validation, single_thread

__all__ = ["CONDITIONS_ON", "sample_nuts"]

CONDITIONS_ON = "the network's weights below the last layer, at their SVI estimate"
TARGET_ACCEPT = 0.9
_TUNING_STEPS = 300
# Recording costs a few seconds.
_WORTH_RECORDING = 200


def sample_nuts(
    module: MixedEffectsModule,
    data: Batch,
    hidden: tuple[Tensor, Tensor] | None = None,
    *,
    draws: int = 500,
    warmup: int = 500,
    chains: int = 4,
    seed: int = 0,
    progressbar: bool = True,
) -> Posterior:
    """Draw from the posterior with the No-U-Turn sampler.

    A network's body is taken as it is: its features are computed once, and all other unknowns are sampled
    given them (`Posterior.attributes` says so under ``conditions_on``). Sampling is in double precision on
    the CPU.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    data : Batch
        All training rows.
    hidden : tuple of Tensor, optional
        The network's features and output for these rows; None: computed.
    draws : int
        Draws of each chain, S.
    warmup : int
        Iterations of each chain that adapt step size and mass matrix and are thrown away.
    chains : int
        Number of chains, run one after the other.
    seed : int
        The same seed gives the same numbers; the global random state is put back.
    progressbar : bool
        Whether to show progress.

    Returns
    -------
    Posterior
        Sample statistics of each chain under ArviZ's names: ``lp``, ``energy``, ``acceptance_rate``,
        ``diverging``, ``n_steps``, ``tree_depth``, ``step_size``.

    Raises
    ------
    ArgumentError
        For numbers below one and rows without a response.
    DataError
        Where the log density of the data is not finite.

    Warns
    -----
    ConvergenceWarning
        Where trajectories diverged.

    Notes
    -----
    Hoffman and Gelman, JMLR 15, 2014, with the multinomial sampling of Betancourt, arXiv 1701.02434, as
    `pyro.infer.NUTS` has it.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> module = model.module
    >>> posterior = sample_nuts(module, module.data, draws=5, warmup=20, chains=1, progressbar=False)
    >>> posterior.chains[0].values["1|group"].shape
    torch.Size([5, 4])
    """
    for name, value in (("draws", draws), ("warmup", warmup), ("chains", chains)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1.")
    if data.response is None:
        raise ArgumentError("data has no response; NUTS needs the rows that the model is conditioned on.")
    module.eval()
    with single_thread(data), torch.random.fork_rng(devices=[]), local_parameters():
        if hidden is None:
            with torch.no_grad():
                hidden = module.hidden(data)
        with no_validation():
            worthwhile = chains * (warmup + draws) >= _WORTH_RECORDING
            density = Density(module, data, hidden, record=worthwhile)
            center, scale = _tune(density, torch.Generator().manual_seed(seed))
            results = []
            for chain in range(chains):
                torch.manual_seed(seed + chain)
                label = f"NUTS {chain + 1}/{chains}"
                results.append(_run(density, center, scale, draws, warmup, label, progressbar))
        finished = [Chain(module, density.values(points), stats) for points, stats in results]
    diverging = int(sum(int(chain.stats["diverging"].sum()) for chain in finished))
    if diverging:
        warnings.warn(
            f"{diverging} of {draws * chains} NUTS draws diverged: the posterior has corners that they "
            "do not reach. Use a longer warmup, or narrower priors for the sds between groups.",
            ConvergenceWarning,
            stacklevel=2,
        )
    attributes: dict[str, Any] = {
        "inference": "nuts",
        "seed": seed,
        "chains": chains,
        "warmup": warmup,
        "target_accept": TARGET_ACCEPT,
        "divergences": diverging,
    }
    if module.network is not None:
        attributes["conditions_on"] = CONDITIONS_ON
    return Posterior(finished, attributes)


def _tune(density: Density, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Location and scale of each unconstrained variable, from a short mean-field fit.

    Returns
    -------
    center, scale : Tensor, shape (D,)
        Averages over the last half of the steps; the start and ones where the fit went astray.
    """
    center = density.start.clone()
    log_scale = torch.full_like(center, -1.5)
    optimizer = torch.optim.Adam([center, log_scale], lr=0.1, betas=(0.9, 0.99))
    sums = [torch.zeros_like(center), torch.zeros_like(center)]
    for step in range(_TUNING_STEPS):
        noise = torch.randn(center.shape, generator=generator, dtype=center.dtype)
        spread = log_scale.exp()
        _, gradient = density.negative(center + spread * noise)
        gradient = gradient.nan_to_num(0.0, 1e4, -1e4).clamp(-1e4, 1e4)
        center.grad, log_scale.grad = gradient, gradient * noise * spread - 1.0
        optimizer.param_groups[0]["lr"] = 0.1 if step < 0.6 * _TUNING_STEPS else 0.03
        optimizer.step()
        if step >= _TUNING_STEPS // 2:
            sums[0] += center
            sums[1] += log_scale
    center, log_scale = (total / (_TUNING_STEPS - _TUNING_STEPS // 2) for total in sums)
    if not torch.isfinite(density.negative(center)[0]):
        return density.start, torch.ones_like(center)
    return center, log_scale.clamp(-8.0, 2.0).exp()


class _Gradient(torch.autograd.Function):
    """A known gradient, handed to the sampler as autograd would."""

    @staticmethod
    def forward(
        ctx: Any, position: Tensor, negative: Callable[[Tensor], tuple[Tensor, Tensor]], scale: Tensor
    ) -> Tensor:
        value, gradient = negative(position)
        ctx.gradient = gradient * scale
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] * ctx.gradient, None, None


class _Kernel(NUTS):
    """`pyro.infer.NUTS` that keeps the statistics of its last trajectory."""

    def __init__(self, density: Density, center: Tensor, scale: Tensor):
        self.steps, self.energy = 0, math.nan

        def negative(position: Tensor) -> tuple[Tensor, Tensor]:
            self.steps += 1
            return density.negative(center + scale * position)

        def potential(parameters: Mapping[str, Tensor]) -> Tensor:
            return _Gradient.apply(parameters["position"], negative, scale)

        super().__init__(potential_fn=potential, target_accept_prob=TARGET_ACCEPT, step_size=0.1)

    def _sample_r(self, name: str) -> Any:
        momentum, unscaled = super()._sample_r(name)
        self.energy = float(self._kinetic_energy(unscaled) + self._potential_energy_last)
        return momentum, unscaled


def _run(
    density: Density, center: Tensor, scale: Tensor, draws: int, warmup: int, label: str, progressbar: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """One chain: unconstrained draws (S, D) and statistics (S,)."""
    kernel = _Kernel(density, center, scale)
    parameters = {"position": torch.randn_like(center)}
    kernel.initial_params = parameters
    kernel.setup(warmup)
    points, records = [], []
    with tqdm(total=warmup + draws, desc=label, disable=not progressbar, leave=False, mininterval=0.5) as bar:
        for iteration in range(warmup + draws):
            kernel.steps, mean = 0, kernel._mean_accept_prob
            parameters = kernel.sample(parameters)
            bar.update()
            if iteration < warmup:
                continue
            points.append(center + scale * parameters["position"].detach())
            records.append(_statistics(kernel, iteration - warmup, mean))
            bar.set_postfix_str(f"{len(kernel._divergences)} divergences", refresh=False)
    kernel.cleanup()
    columns = {name: np.array([record[name] for record in records]) for name in records[0]}
    return torch.stack(points), {name: torch.from_numpy(column) for name, column in columns.items()}


def _statistics(kernel: _Kernel, draw: int, mean: float) -> dict[str, Any]:
    """Statistics of the last trajectory; Pyro keeps only the running mean of the acceptance rate."""
    return {
        "lp": -float(kernel._potential_energy_last),  # type: ignore[arg-type]
        "energy": kernel.energy,
        "acceptance_rate": mean + (kernel._mean_accept_prob - mean) * (draw + 1),
        "diverging": bool(kernel._divergences and kernel._divergences[-1] == draw),
        "n_steps": kernel.steps,
        "tree_depth": math.ceil(math.log2(kernel.steps + 1)),
        "step_size": float(kernel.step_size),
    }
