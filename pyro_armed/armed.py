"""The user's model."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Self

import pandas as pd
from torch.distributions import Distribution

from pyro_armed import families, files
from pyro_armed.adversary import Adversary
from pyro_armed.arrays import ArrayDesign
from pyro_armed.batch import Batch
from pyro_armed.building import LAST_LAYERS, NetworkPlan, build_adversary, build_module
from pyro_armed.design import Encoded, FormulaDesign, StreamedDesign
from pyro_armed.diagnostics._adversary import record_adversary
from pyro_armed.diagnostics._fit import record_verdict
from pyro_armed.effects import RandomEffects, ScaleBias
from pyro_armed.errors import ArgumentError, NotFittedError
from pyro_armed.export import build_idata, prior_idata
from pyro_armed.families import Family
from pyro_armed.fitted import FittedModel
from pyro_armed.inference import InferenceResult, infer
from pyro_armed.inference_settings import InferenceSettings, Ingredients
from pyro_armed.membership import Membership
from pyro_armed.module import MixedEffectsModule
from pyro_armed.new_rows import weights_column
from pyro_armed.parquet import ParquetRows, is_parquet
from pyro_armed.posterior import Posterior
from pyro_armed.report import describe_model, render_graph
from pyro_armed.some_groups import module_of, recoded
from pyro_armed.spec import Reconstruction
from pyro_armed.streamed_fit import infer_streamed

__all__ = ["ARMED", "load"]


class ARMED(FittedModel):
    """A Bayesian mixed-effects model of clustered data, with any network as its fixed effect.

    Parameters
    ----------
    formula : str or sequence of str
        ``"y ~ x + (1 + x | group)"``; further formulas model auxiliary parameters: ``"sigma ~ x"``.
        ``features`` names the network's last hidden activations: ``(1 + features | site)``.
    data : pandas.DataFrame, path-like or pyarrow.dataset.Dataset
        Training rows: a data frame, or a Parquet file or a folder of them, which is read some rows at a time
        and need not fit into memory. Then `fit` takes ``guide="mean_field"`` only, ``.idata`` shows a random
        sample of at most 2000 rows, and terms that need all rows at once, such as ``scale(x)``, are refused.
    family : str or Family
        Response family, such as ``"gaussian"`` or ``"bernoulli"``.
    link : str, optional
        Link by name; None: the family's default.
    network : nn.Module or callable, optional
        Maps the predictors, shape (B, K), to the linear predictor, shape (B, 1). None: a linear predictor.
        A function that returns a module gives each restart weights of its own.
    adversary : Adversary, optional
        Keeps group information out of the network.
    random_effects : sequence of ScaleBias
        Group effects within the network, which no formula can write; see `pyro_armed.effects.ScaleBias`.
    priors : mapping of str to Distribution, optional
        Priors by name, on the data's scale: ``{"1|district_sigma": dist.HalfNormal(1.0)}``.
    weights : str or array-like, optional
        Row weights: a column or N numbers. A row of weight 2 counts as the row twice.
    missing : {"error", "drop", "indicator"}
        What to do with rows that have missing values.
    within_between : sequence or mapping, optional
        Predictors to split into the group's mean and the deviation from it (Mundlak, 1978).
    namespace : mapping, optional
        Functions that the formula may use.
    linear_path : bool, optional
        Whether the predictors also enter linearly beside the network, with coefficients of their own. The
        network is then a departure from the linear predictor, and a Gaussian prior on its weights lets it
        vanish where the data show none; see `pyro_armed.weight_prior`. None: yes, unless there is an
        adversary, which sees only what goes through the network.
    last_layer : {"bayesian", "point"}
        Whether the weights of the network's last layer have a posterior.
    fixed_effects_weight : float
        Weight of the auxiliary loss of the prediction without group effects.

    Raises
    ------
    DataError, FormulaError, ArgumentError
        One sentence that names the column, group or argument, and the mend.

    Notes
    -----
    Nguyen, Treacher, Montillo, TPAMI 45(7), 2023 (arXiv 2202.11783); rebuilt as a Pyro model.

    Examples
    --------
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(8, 20, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> [group.size for group in model.spec.groups]
    [8]
    """

    _added: Encoded | None = None  # rows of updates

    def __init__(
        self,
        formula: str | Sequence[str],
        data: pd.DataFrame | Any,
        *,
        family: str | Family = "gaussian",
        link: str | None = None,
        network: Any = None,
        adversary: Adversary | None = None,
        random_effects: Sequence[ScaleBias] = (),
        priors: Mapping[str, Distribution] | None = None,
        weights: str | Any = None,
        missing: str = "error",
        within_between: Any = None,
        namespace: Mapping[str, Any] | None = None,
        linear_path: bool | None = None,
        last_layer: str = "bayesian",
        fixed_effects_weight: float = 0.0,
    ):
        formulas = [formula] if isinstance(formula, str) else formula
        if not isinstance(formulas, Sequence) or not all(isinstance(text, str) for text in formulas):
            raise ArgumentError(
                f"formula={formula!r} must be a text such as 'y ~ x + (1 | group)', or several."
            )
        if not formulas:
            raise ArgumentError("formula is empty; write 'y ~ x + (1 | group)'.")
        self._arguments: dict[str, Any] | None = {
            "formula": formula,
            "family": family,
            "link": link,
            "network": network,
            "adversary": adversary,
            "random_effects": random_effects,
            "priors": priors,
            "weights": weights,
            "missing": missing,
            "within_between": within_between,
            "namespace": namespace,
            "linear_path": linear_path,
            "last_layer": last_layer,
            "fixed_effects_weight": fixed_effects_weight,
        }
        kind: Any = FormulaDesign
        if is_parquet(data):
            data, kind = ParquetRows(data), StreamedDesign
        data, weights = weights_column(data, weights)
        design = kind(
            formulas,
            data,
            families.get(family, link),
            network=network is not None,
            linear_path=_linear_path(linear_path, network, adversary),
            missing=missing,
            weights=weights,
            namespace=namespace,
            within_between=within_between,
            layers=_within_network(random_effects),
        )
        self._setup(design, network, adversary, priors, last_layer, fixed_effects_weight)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        groups: Mapping[str, Any],
        *,
        random_effects: Sequence[RandomEffects | ScaleBias] | None = None,
        family: str | Family = "gaussian",
        link: str | None = None,
        network: Any = None,
        adversary: Adversary | None = None,
        priors: Mapping[str, Distribution] | None = None,
        weights: Any = None,
        offset: Any = None,
        trials: Any = None,
        columns: Sequence[str] | None = None,
        response_name: str = "y",
        missing: str = "error",
        standardize: bool = True,
        reconstruction: str | Reconstruction | None = None,
        last_layer: str = "bayesian",
        fixed_effects_weight: float = 0.0,
    ) -> ARMED:
        """A model from arrays or tensors: images, embeddings, anything a network takes.

        Parameters
        ----------
        x : array-like, shape (N, ...)
            Inputs. Without a network two-dimensional, one column for each predictor.
        y : array-like, shape (N,)
            Responses.
        groups : mapping of str to array-like, shape (N,)
            Group labels of each grouping factor.
        random_effects : sequence of RandomEffects and ScaleBias, optional
            What varies between groups, in the predictor and within the network. None: an intercept for each
            grouping factor.
        family, link, network, adversary, priors, last_layer, fixed_effects_weight
            As for `ARMED`.
        weights, offset, trials : array-like, shape (N,), optional
            Row weights, known values added to the predictor, trials of a binomial response.
        columns : sequence of str, optional
            Names of the columns of a two-dimensional x.
        response_name : str
            Name of the response in the ArviZ object.
        missing : {"error", "drop"}
            What to do with rows that have missing values.
        standardize : bool
            Whether columns of a two-dimensional x are standardised for the network.
        reconstruction : {"normal", "bernoulli"} or Reconstruction, optional
            Likelihood of x around its reconstruction, for a network that returns ``(output, reconstruction)``
            such as `networks.AutoencoderClassifier`; None: normal for such a network. With it the model is
            of inputs and responses jointly.

        Returns
        -------
        ARMED

        Raises
        ------
        DataError, ArgumentError
            Naming the argument and both shapes where they do not fit.
        """
        if random_effects is None:
            random_effects = [RandomEffects(name) for name in groups]
        design = ArrayDesign(
            x,
            y,
            groups,
            families.get(family, link),
            random_effects,
            network=network is not None,
            weights=weights,
            offset=offset,
            trials=trials,
            columns=columns,
            response_name=response_name,
            missing=missing,
            standardize=standardize,
        )
        model = cls.__new__(cls)
        model._arguments = {
            "random_effects": random_effects,
            "family": family,
            "link": link,
            "network": network,
            "adversary": adversary,
            "priors": priors,
            "weights": weights,
            "offset": offset,
            "trials": trials,
            "columns": columns,
            "response_name": response_name,
            "missing": missing,
            "standardize": standardize,
            "reconstruction": reconstruction,
            "last_layer": last_layer,
            "fixed_effects_weight": fixed_effects_weight,
        }
        model._setup(design, network, adversary, priors, last_layer, fixed_effects_weight, reconstruction)
        return model

    def _setup(
        self,
        design: FormulaDesign | ArrayDesign,
        network: Any,
        adversary: Adversary | None,
        priors: Mapping[str, Distribution] | None,
        last_layer: str,
        fixed_effects_weight: float,
        reconstruction: str | Reconstruction | None = None,
    ) -> None:
        if adversary is not None and not isinstance(adversary, Adversary):
            raise ArgumentError(f"adversary={adversary!r} must be pa.Adversary(weight=...) or None.")
        if adversary is not None and network is None:
            raise ArgumentError(
                "adversary=... needs a network to work against; pass network=... or leave it out."
            )
        if reconstruction is not None and network is None:
            raise ArgumentError("reconstruction=... needs a network that gives one; leave it out.")
        self._design = design
        if last_layer not in LAST_LAYERS:
            raise ArgumentError(f"last_layer={last_layer!r} is not 'bayesian' or 'point'.")
        if priors is not None and not isinstance(priors, Mapping):
            raise ArgumentError(f"priors={priors!r} must be a dictionary of names and distributions.")
        self._user_priors = dict(priors or {})
        self.adversary = adversary
        self.fixed_effects_weight = _auxiliary_weight(fixed_effects_weight)
        data = design.training.batch
        self._plan = None
        if network is not None:
            self._plan = NetworkPlan.inspect(network, design.spec, data, last_layer, reconstruction)
            data = replace(data, inputs=data.inputs.to(self._plan.dtype))  # type: ignore[union-attr]
        rows = replace(design.training, batch=data)
        streamed = isinstance(design, StreamedDesign)
        self._training: Encoded | None = None if streamed else rows
        self._sample: Encoded | None = rows if streamed else None
        self.spec = design.spec if self._plan is None else self._plan.complete(design.spec)
        self._module = build_module(self.spec, self._user_priors, self._plan, data, seed=0)
        build_adversary(adversary, self._module, data, seed=0)  # says now what fit() could not use
        self._guide: Any = None
        self._posterior: Posterior | None = None
        self._idata: Any = None
        self._membership: Membership | None = None

    # --- inference ---------------------------------------------------------------------------------------

    def fit(
        self,
        *,
        inference: str = "svi",
        guide: str = "structured",
        restarts: int = 4,
        draws: int = 500,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        early_stopping: bool = True,
        schedule: str = "plateau",
        device: Any = None,
        compile: str = "auto",
        warmup: int = 500,
        log_likelihood: bool | str = "auto",
        seed: int = 0,
        progressbar: bool = True,
    ) -> Any:
        """Infer the posterior.

        Parameters
        ----------
        inference : {"svi", "nuts"}
            Stochastic variational inference, or the No-U-Turn sampler.
        guide : {"structured", "mean_field"}
            Variational family.
        restarts : int
            Independent restarts (SVI) or chains (NUTS); the ``chain`` dimension.
        draws : int
            Posterior draws of each chain.
        epochs : int, optional
            Most passes over the data; None: until the ELBO stops rising, at most 6000 steps.
        batch_size : int, optional
            Rows per step; None: all up to 2048, else 512.
        learning_rate : float, optional
            Adam's first learning rate; None: 0.02, with a network 0.01.
        early_stopping : bool
            Whether to stop when the smoothed ELBO stops rising.
        schedule : {"plateau", "cosine"}
            How the learning rate falls: to a third wherever the ELBO stops rising (with early stopping; it
            stays as it is without); or to zero along half a cosine over all of the ``epochs``, which are then
            not cut short. An adversary and its network come to rest only where the rate goes to zero.
        device : str or torch.device, optional
            Where networks and mean-field guides are trained, such as ``"cuda"``; None: on the CPU. Everything
            else, the structured guide and NUTS included, is done on the CPU, and there the fitted model is.
        compile : {"auto", "inductor", "trace", "off"}
            How the steps of SVI are run: as a graph through Inductor, which needs a C++ compiler and takes
            half a minute at first; as a graph of PyTorch's operators; or eagerly. "auto" goes by the number
            of steps: eagerly below 1000 over all restarts, through Inductor from 20,000 steps of a restart
            on; the structured guide's own steps, at most 300, are then eager. All draw the same random
            numbers, and results differ by rounding.
        warmup : int
            NUTS's warm-up iterations.
        log_likelihood : bool or "auto"
            Whether to store pointwise log likelihoods and predictive draws; "auto" leaves them out where
            they would be very large.
        seed : int
            The same seed gives the same numbers.
        progressbar : bool
            Whether to show progress.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Also kept as ``.idata``. The attribute ``verdict`` says in words whether inference has converged.

        Raises
        ------
        ArgumentError
            For values that cannot be used.

        Warns
        -----
        ConvergenceWarning
            Where it has not, or its approximation is not to be trusted: see `diagnostics.convergence`.
        CompilationWarning
            Where steps cannot be compiled as asked for.

        Notes
        -----
        A restart redraws the weights of `networks` and of networks made by a function. A module of the
        user's own keeps the weights that it came with (it may be pretrained).

        A network beside a linear path, with a Gaussian response and many rows for each weight, is trained by
        the marginal likelihood of all rows where the arguments do not say how: see
        `pyro_armed.marginal_training`.
        """
        rows = self._sample if self._training is None else self._training
        if rows is None:
            raise NotFittedError(
                "A model from a file has its posterior but not the training rows; "
                "make a new ARMED to fit again."
            )
        settings = InferenceSettings(
            inference=inference,
            guide=guide,
            restarts=restarts,
            draws=draws,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            early_stopping=early_stopping,
            schedule=schedule,
            device=device,
            compile=compile,
            warmup=warmup,
            seed=seed,
            progressbar=progressbar,
        )
        if log_likelihood != "auto" and not isinstance(log_likelihood, bool):
            raise ArgumentError(f"log_likelihood={log_likelihood!r} must be True, False or 'auto'.")
        ingredients = self._ingredients(rows.batch)
        if isinstance(self._design, StreamedDesign):
            result = infer_streamed(ingredients, settings, self._design)
        else:
            result = infer(ingredients, settings)
        return self._adopt(result, rows, seed, log_likelihood)

    def _ingredients(self, rows: Batch) -> Ingredients:
        return Ingredients(
            self.spec, self._user_priors, self._plan, rows, self.adversary, self.fixed_effects_weight
        )

    def _adopt(
        self, result: InferenceResult, rows: Encoded, seed: int, log_likelihood: bool | str = "auto"
    ) -> Any:
        """Become the fitted model of a result."""
        posterior = result.posterior
        if self._sample is not None:
            posterior.attributes["sampled_rows"] = rows.batch.size
        shown, rows = self._shown(posterior, rows, seed)
        idata = build_idata(
            shown,
            rows.batch,
            index=rows.index.tolist(),
            seed=seed,
            log_likelihood=log_likelihood,
            attributes={"formula": self.formula, **shown.attributes},
        )
        self._posterior, self._module, self._guide = posterior, result.module, result.guide
        self._idata, self._added, self._membership = idata, None, None
        posterior.attributes["verdict"] = record_verdict(idata)
        if words := record_adversary(idata):
            posterior.attributes["adversary"] = words
        return idata

    def prior_predictive(self, draws: int = 500, *, seed: int = 0) -> Any:
        """Draw parameters and responses from the prior; nothing needs to be fitted.

        Parameters
        ----------
        draws : int
            Number of draws.
        seed : int
            The same seed gives the same numbers.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Groups prior, prior_predictive, observed_data and constant_data. A network's own weights have no
            prior: they are those that it starts from, or after `fit` has.

        Raises
        ------
        ArgumentError
            For less than one draw.
        NotFittedError
            For a model from a file, which has no training rows.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(4, 5, seed=0).frame)
        >>> dict(model.prior_predictive(10, seed=0).prior_predictive["y"].sizes)
        {'chain': 1, 'draw': 10, '__obs__': 20}
        """
        rows, module = self._sample if self._training is None else self._training, self._module
        if rows is None:
            raise NotFittedError(
                "A model from a file has no training rows to draw responses for; its .idata has prior draws."
            )
        if self._sample is not None:
            codes = {name: found.unique() for name, found in rows.batch.codes.items()}
            module = module_of(module, codes)
            rows = replace(rows, batch=recoded(rows.batch, self.spec, codes))
        return prior_idata(
            module,
            rows.batch,
            draws=draws,
            index=rows.index.tolist(),
            seed=seed,
            attributes={"formula": self.formula},
        )

    # --- files -------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one file, which holds numbers and JSON and nothing that could run.

        Training rows are not stored, except for what ``.idata`` shows of them: responses, group labels,
        pointwise log likelihoods and predictive draws.

        Parameters
        ----------
        path : path-like
            Where to. A file that stands there is replaced once the new one is complete.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ArgumentError, FormulaError, DataError
            For priors, transforms, labels and arrays that a file cannot keep.
        FileNotFoundError
            Where the folder does not exist.
        """
        files.save(self, path)

    # --- what there is -----------------------------------------------------------------------------------

    @property
    def module(self) -> MixedEffectsModule:
        """The Pyro model; after `fit`, that of the restart with the best ELBO."""
        return self._module

    @property
    def guide(self) -> Any:
        """The Pyro guide of the same restart."""
        if self._guide is None:
            raise NotFittedError(
                "The guide exists after fit(inference='svi'); a file keeps a mean-field guide only, as the "
                "structured one is made of the training rows."
            )
        return self._guide

    @property
    def priors(self) -> dict[str, Distribution]:
        """Priors on the data's scale, defaults included."""
        return self._module.priors.describe()

    def graph(self, **options: Any) -> Any:
        """The model's plates and dependencies as a graphviz picture.

        Parameters
        ----------
        **options
            Passed to `pyro.render_model`.

        Returns
        -------
        graphviz.Digraph
        """
        return render_graph(self._module, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        # Never changed, and they may hold functions that cannot be copied.
        memo[id(self._design)], memo[id(self._arguments)] = self._design, self._arguments
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __repr__(self) -> str:
        return describe_model(self)


def load(
    path: str | os.PathLike[str],
    *,
    network: Any = None,
    family: Family | type[Family] | None = None,
    namespace: Mapping[str, Any] | None = None,
) -> ARMED:
    """Read a model that `ARMED.save` wrote. Nothing in the file is run.

    Parameters
    ----------
    path : path-like
        The file.
    network : nn.Module or callable, optional
        A network like the one that was saved, or a function that makes one, where it was the user's own.
        Its weights are replaced in a copy.
    family : Family, optional
        The response family, where it was the user's own.
    namespace : mapping, optional
        The functions that the formula uses, where they are the user's own.

    Returns
    -------
    ARMED
        Predicts as the saved model did; it has no training rows, so that it cannot be fitted again.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    FileFormatError
        For files that are truncated, damaged, foreign, or of another version, and for weights that do not fit
        the network.
    ArgumentError
        Where the network, family or namespace is needed, or is not.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import pyro_armed as pa
    >>> data = pa.simulate.mixed_model(4, 10, seed=0)
    >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
    >>> _ = model.fit(restarts=1, draws=10, progressbar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.armed"
    ...     model.save(path)
    ...     loaded = pa.load(path)
    >>> loaded.formula
    'y ~ x1 + (1 | group)'
    """
    model = ARMED.__new__(ARMED)
    files.restore(model, path, network=network, family=family, namespace=namespace)
    return model


def _auxiliary_weight(value: Any) -> float:
    number = math.nan if isinstance(value, (bool, str)) or not isinstance(value, Real) else float(value)
    if not 0.0 <= number < math.inf:
        raise ArgumentError(f"fixed_effects_weight={value!r} must be a number of at least 0.")
    return number


def _within_network(effects: Any) -> Sequence[ScaleBias]:
    effects = [effects] if isinstance(effects, ScaleBias) else effects
    if not isinstance(effects, Sequence) or not all(isinstance(one, ScaleBias) for one in effects):
        raise ArgumentError(
            f"random_effects={effects!r} of a formula must be a list of pa.effects.ScaleBias; other effects "
            "are terms such as (1 | group)."
        )
    return effects


def _linear_path(wanted: bool | None, network: Any, adversary: Adversary | None) -> bool:
    """Whether columns enter linearly; None: not past an adversary, which would not see them there."""
    if wanted is None:
        return network is None or not isinstance(adversary, Adversary) or adversary.weight == 0
    if not isinstance(wanted, bool):
        raise ArgumentError(f"linear_path={wanted!r} must be True, False or None.")
    if network is None:
        raise ArgumentError("linear_path=... needs a network; leave it out.")
    return wanted
