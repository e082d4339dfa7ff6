"""NUTS on the Pyro model: the reference that variational inference is judged by.

The density is that of the Pyro model, taken from its trace. Its gradient is recorded once as a graph of
tensor operations, which spares Pyro's handlers and autograd's bookkeeping at each leapfrog step. A short
mean-field fit gives the sampler its units: it starts with a mass matrix of about the right size, which
halves the leapfrog steps of the warm-up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor
from torch.distributions import Independent, Normal, biject_to, constraints
from torch.fx import GraphModule, Node, map_arg
from torch.fx.experimental.proxy_tensor import make_fx
from tqdm.auto import tqdm

from pyro_armed.batch import Batch
from pyro_armed.draws import DRAWS, without_row_axis
from pyro_armed.errors import ArgumentError, ConvergenceWarning, DataError
from pyro_armed.guides import LatentSite, latent_sites
from pyro_armed.local import local_parameters
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain, Posterior
from pyro_armed.priors import PriorTable
from pyro_armed.training import no_validation, single_thread

__all__ = ["CONDITIONS_ON", "Density", "sample_nuts"]

CONDITIONS_ON = "the network's weights below the last layer, at their SVI estimate"
TARGET_ACCEPT = 0.9
_TUNING_STEPS = 300

Hidden = tuple[Tensor, Tensor] | None


def sample_nuts(
    module: MixedEffectsModule,
    data: Batch,
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
        with torch.no_grad():
            hidden = module.hidden(data)
        with no_validation():
            density = Density(module, data, hidden)
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


class Density:
    """The log density of a model's unconstrained latent variables as one vector of length D.

    Parameters
    ----------
    module : MixedEffectsModule
        The model.
    data : Batch
        All training rows.
    hidden : tuple of Tensor, optional
        The network's features and output for these rows.

    Attributes
    ----------
    start : Tensor, shape (D,)
        A central prior value.
    compiled : bool
        Whether the gradient is a recorded graph; else it is taken by autograd through Pyro.

    Raises
    ------
    DataError
        Where the density at the start is not finite.
    """

    def __init__(self, module: MixedEffectsModule, data: Batch, hidden: Hidden = None):
        self._original, self._data = module, data
        # Leapfrog errors of 0.1 in a log density of 1e5 need more than single precision.
        priors = PriorTable(module.spec, module.priors.user, torch.float64)
        self._batch = data.to("cpu").map(_double)
        self._module = MixedEffectsModule(module.spec, priors)
        self._hidden = None if hidden is None else (_double(hidden[0].cpu()), _double(hidden[1].cpu()))
        self.sites = latent_sites(self._module, self._batch)
        self._sizes = [site.unconstrained.numel() for site in self.sites]
        self.start = torch.cat([site.start.reshape(-1) for site in self.sites])
        self._normal = self._normal_priors()
        self.compiled = False
        value, gradient = self.negative(self.start)
        if not (torch.isfinite(value) and torch.isfinite(gradient).all()):
            raise DataError(
                f"The log density of '{module.spec.response}' is not finite at central values of the priors; "
                "look for infinite or huge values in the data, and priors far from them."
            )
        self._graph = self._record()
        self.compiled = self._graph is not None

    def negative(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """The negative log density and its gradient.

        Parameters
        ----------
        point : Tensor, shape (D,)
            Unconstrained values.

        Returns
        -------
        value : Tensor, 0-dim
        gradient : Tensor, shape (D,)
        """
        if self.compiled:
            with torch.no_grad():
                return self._graph(point)  # type: ignore[misc]
        return self._value_and_gradient(point)

    def values(self, points: Tensor) -> dict[str, Tensor]:
        """Draws as a `Chain` stores them, in the model's precision.

        Parameters
        ----------
        points : Tensor, shape (S, D)
            Unconstrained values.
        """
        size = len(points)
        sites = {}
        for site, part in zip(self.sites, points.split(self._sizes, dim=1), strict=True):
            value = biject_to(site.support)(part.reshape(size, *site.unconstrained))
            sites[site.name] = value if site.group is not None else value.unsqueeze(1)
        with torch.no_grad(), pyro.plate(DRAWS, size, dim=-2):
            values = poutine.condition(self._module.sample_latents, data=sites)(self._batch)
        priors = self._original.priors
        return {
            name: value.to(priors.device, priors.dtype)
            for name, value in without_row_axis(self._module, values).items()
        }

    def _sites(self, point: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values of the sample sites, and the log determinant of the map from unconstrained values."""
        values, jacobian = {}, point.new_zeros(())
        for site, part in zip(self.sites, point.split(self._sizes), strict=True):
            part = part.reshape(site.unconstrained)
            if _is_real(site):
                values[site.name] = part
                continue
            bijection = biject_to(site.support)
            values[site.name] = bijection(part)
            jacobian = jacobian + bijection.log_abs_det_jacobian(part, values[site.name]).sum()
        return values, jacobian

    def _trace(self, values: Mapping[str, Tensor]) -> Mapping[str, Any]:
        model = poutine.condition(self._module, data=dict(values))
        return poutine.trace(model).get_trace(self._batch, self._hidden).nodes

    def _normal_priors(self) -> tuple[set[str], Tensor, Tensor, float]:
        """Sites with a Gaussian prior, location, 1 / sd and constant of all: one term instead of one each."""
        with torch.no_grad():
            nodes = self._trace(self._sites(self.start)[0])
        names: set[str] = set()
        locations, precisions = [], []
        for site, size in zip(self.sites, self._sizes, strict=True):
            prior, node = nodes[site.name]["fn"], nodes[site.name]
            while isinstance(prior, Independent):
                prior = prior.base_dist
            if isinstance(prior, Normal) and node["scale"] == 1.0 and _is_real(site):
                names.add(site.name)
                locations.append(prior.loc.expand(site.shape).reshape(-1))
                precisions.append(prior.scale.expand(site.shape).reshape(-1).reciprocal())
            else:
                locations.append(self.start.new_zeros(size))
                precisions.append(self.start.new_zeros(size))
        precision = torch.cat(precisions)
        used = precision[precision > 0]
        constant = float(used.log().sum()) - 0.5 * math.log(2 * math.pi) * len(used)
        return names, torch.cat(locations), precision, constant

    def _value(self, point: Tensor) -> Tensor:
        values, log_density = self._sites(point)
        names, location, precision, constant = self._normal
        standard = (point - location) * precision
        log_density = log_density - 0.5 * standard.dot(standard) + constant
        for name, node in self._trace(values).items():
            if node["type"] != "sample" or name in names or _is_bookkeeping(node):
                continue
            log_prob = node["fn"].log_prob(node["value"])
            scale = node["scale"]
            plain = not isinstance(scale, Tensor) and scale == 1.0
            log_density = log_density + (log_prob if plain else log_prob * scale).sum()
        return -log_density

    def _value_and_gradient(self, point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_(True)
            value = self._value(point)
            (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient

    def _record(self) -> GraphModule | None:
        """The gradient as a graph; None where a recording does not repeat what autograd says."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, len(self.start), generator=generator, dtype=self.start.dtype)
        try:
            with no_validation():
                graph = make_fx(lambda point: self._value_and_gradient(point))(self.start.clone())
            graph = _simplified(graph)
            for point in [*(self.start + 0.3 * noise), self.start]:
                expected = self._value_and_gradient(point)
                with torch.no_grad():
                    found = graph(point)
                for one, other in zip(expected, found, strict=True):
                    torch.testing.assert_close(one, other, equal_nan=True)
        except Exception:  # a family of the user's own may do what cannot be recorded
            return None
        return graph


def _is_real(site: LatentSite) -> bool:
    """Whether the site has no bounds, so that its unconstrained value is the value."""
    support = site.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def _is_bookkeeping(node: Mapping[str, Any]) -> bool:
    return type(node["fn"]).__name__ == "_Subsample" or bool(node["infer"].get("_deterministic"))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _simplified(graph: GraphModule) -> GraphModule:
    """Constants computed once instead of at each call; the rest as recorded."""
    known: dict[Node, Any] = {}
    written = {n.args[0] for n in graph.graph.nodes if _writes(n)}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(graph, str(node.target))
            continue
        if node.op != "call_function" or node in written or _writes(node):
            continue
        if all(source in known for source in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(list(known.items())):
        needed = any(user not in known for user in node.users)
        if node.op == "call_function" and needed and isinstance(value, Tensor):
            graph.register_buffer(f"constant{number}", value)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(f"constant{number}")
            node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _writes(node: Node) -> bool:
    """Whether an operation changes its first argument (``index_put_``)."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


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
    stats = {name: torch.tensor([record[name] for record in records]) for name in records[0]}
    return torch.stack(points), stats


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
