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
import xarray as xr
from torch.distributions import Distribution

from pyro_armed import families, files
from pyro_armed.adversary import Adversary
from pyro_armed.arrays import ArrayDesign
from pyro_armed.building import LAST_LAYERS, NetworkPlan, build_adversary, build_module
from pyro_armed.conformal import INTERVALS, regions_of
from pyro_armed.design import Encoded, FormulaDesign
from pyro_armed.diagnostics._adversary import record_adversary
from pyro_armed.diagnostics._fit import record_verdict
from pyro_armed.effects import RandomEffects, ScaleBias
from pyro_armed.errors import ArgumentError, NotFittedError
from pyro_armed.evaluation import evaluate
from pyro_armed.export import build_idata, prediction_idata, prior_idata
from pyro_armed.families import Family
from pyro_armed.inference import InferenceSettings, Ingredients, infer
from pyro_armed.membership import Membership, fit_membership
from pyro_armed.module import MixedEffectsModule
from pyro_armed.new_groups import Adapt, Mode, mode_of
from pyro_armed.new_rows import encode_rows, encode_support, weights_column
from pyro_armed.posterior import Posterior
from pyro_armed.predict import predict_draws
from pyro_armed.reconstruct import reconstruct_rows
from pyro_armed.report import describe_model, render_graph
from pyro_armed.spec import Reconstruction
from pyro_armed.summary import Summary, summarize
from pyro_armed.updating import update_effects

__all__ = ["ARMED", "load"]


class ARMED:
    """A Bayesian mixed-effects model of clustered data, with any network as its fixed effect.

    Parameters
    ----------
    formula : str or sequence of str
        ``"y ~ x + (1 + x | group)"``; further formulas model auxiliary parameters: ``"sigma ~ x"``.
        ``features`` names the network's last hidden activations: ``(1 + features | site)``.
    data : pandas.DataFrame
        Training rows.
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
        data: pd.DataFrame,
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
            "last_layer": last_layer,
            "fixed_effects_weight": fixed_effects_weight,
        }
        data, weights = weights_column(data, weights)
        design = FormulaDesign(
            formulas,
            data,
            families.get(family, link),
            network=network is not None,
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
        self._training: Encoded | None = replace(design.training, batch=data)
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
        compile : {"auto", "inductor", "trace", "off"}
            How the steps of SVI (of the mean-field guide and the network) are run: as a graph through
            Inductor, which needs a C++ compiler and takes half a minute at first; as a graph of PyTorch's
            operators; or eagerly. "auto" goes by the number of steps: eagerly below 1000 over all restarts,
            through Inductor from 20,000 steps of a restart on. All draw the same random numbers, and results
            differ by rounding.
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
        """
        if self._training is None:
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
            compile=compile,
            warmup=warmup,
            seed=seed,
            progressbar=progressbar,
        )
        if log_likelihood != "auto" and not isinstance(log_likelihood, bool):
            raise ArgumentError(f"log_likelihood={log_likelihood!r} must be True, False or 'auto'.")
        ingredients = Ingredients(
            self.spec,
            self._user_priors,
            self._plan,
            self._training.batch,
            self.adversary,
            self.fixed_effects_weight,
        )
        result = infer(ingredients, settings)
        posterior = result.posterior
        idata = build_idata(
            posterior,
            self._training.batch,
            index=self._training.index.tolist(),
            seed=seed,
            log_likelihood=log_likelihood,
            attributes={"formula": self.formula, **posterior.attributes},
        )
        self._posterior, self._module, self._guide = posterior, result.module, result.guide
        self._added = None
        self._idata, self._membership = idata, None
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
        if self._training is None:
            raise NotFittedError(
                "A model from a file has no training rows to draw responses for; its .idata has prior draws."
            )
        return prior_idata(
            self._module,
            self._training.batch,
            draws=draws,
            index=self._training.index.tolist(),
            seed=seed,
            attributes={"formula": self.formula},
        )

    # --- prediction --------------------------------------------------------------------------------------

    def predict(
        self,
        data: Any,
        *,
        groups: Mapping[str, Any] | None = None,
        offset: Any = None,
        trials: Any = None,
        new_groups: str = "error",
        support: Any = None,
        kind: str = "mean",
        draws: int | None = None,
        intervals: str | None = None,
        level: float = 0.9,
        calibration: Any = None,
        unseen_levels: str = "error",
        seed: int = 0,
    ) -> Any:
        """Predict responses of new rows.

        Parameters
        ----------
        data : pandas.DataFrame or array-like
            New rows; for a model from arrays the inputs x.
        groups : mapping of str to array-like, shape (N,), optional
            Group labels, for a model from arrays.
        offset, trials : array-like, shape (N,), optional
            As in training, for a model from arrays.
        new_groups : {"error", "population", "marginal", "membership", "adapt"}
            What to do with groups that training did not have: refuse them, take the average group, draw
            their effects from Normal(0, Sigma), one draw shared by all of a group's rows, take in each draw
            those of a seen group that the group's rows resemble or, where none is of use, such a draw (see
            `fit_membership`), or draw them given the group's rows in ``support``. Groups without such rows
            then get ``"marginal"``.
        support : pandas.DataFrame, tuple or mapping, optional
            Labelled rows of new groups, for ``"adapt"``: a data frame like that of training; for a model from
            arrays ``(x, y, groups)``, or a dictionary of these, ``weights``, ``offset`` and ``trials``.
        kind : {"mean", "response", "linear"}
            Expected response, drawn responses, or the linear predictor.
        draws : int, optional
            Draws of each chain to use; None: all, or 50 where group effects within the network make each draw
            a pass of its own.
        intervals : {"posterior", "conformal"}, optional
            Add for each row where its response (whatever ``kind`` is) is expected: variables ``lower`` and
            ``upper``, or ``in_set`` for binary, categorical and ordinal responses. ``"posterior"``: the
            central interval of the posterior predictive distribution. ``"conformal"``: calibrated on
            ``calibration``, so that it covers a row of a new group with probability ``level`` even where the
            model is wrong; see `pyro_armed.conformal.conformal_regions`.
        level : float
            Their probability.
        calibration : pandas.DataFrame or tuple, optional
            Rows with their response, of groups that training did not have and of which there are enough (9
            for a level of 0.9, 19 for 0.95); for a model from arrays ``(x, y, groups)``.
        unseen_levels : {"error", "baseline"}
            What to do with levels of predictors that training did not have.
        seed : int
            The same seed gives the same numbers.

        Returns
        -------
        arviz.InferenceData or xarray.DataTree
            Group ``predictions`` with dims (chain, draw, __obs__). Its coordinate ``new_groups`` says which
            mode each row got: ``"seen"``, or the mode such as ``"marginal"``; with several grouping factors
            those of which the row's group is new, as ``"site: marginal"``. ``predictions_constant_data``
            has that too, and the labels.

        Raises
        ------
        UnseenGroupError
            For new labels under ``new_groups="error"``.
        ArgumentError
            For unknown modes and kinds, ``"adapt"`` without support, support of groups that training had.
        DataError
            For rows that cannot be used.
        NotFittedError
            Before `fit`.

        Notes
        -----
        ``"adapt"`` draws a group's effects from p(u | theta, support) for each posterior draw theta of
        everything else, network included, which stays as it is: exact for a Gaussian response; for others the
        structured guide's conditional, corrected by importance weights and slice sampling. With
        ``within_between``, a new group's mean is that of the rows at hand: of its support in ``support``, of
        the rows to predict in ``data``.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> data = pa.simulate.mixed_model(8, 20, seed=0)
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
        >>> _ = model.fit(restarts=1, draws=100, seed=0, progressbar=False)
        >>> new = data.new_groups(2, rows_per_group=5, seed=0).frame
        >>> labelled = new[new["group"] == new["group"].iloc[0]]
        >>> predicted = model.predict(new, new_groups="adapt", support=labelled)["predictions"]
        >>> [str(mode) for mode in predicted["new_groups"].values[[0, -1]]]
        ['adapt', 'marginal']
        """
        posterior = self._fitted()
        encoded = self._encode(data, groups, offset=offset, trials=trials, unseen_levels=unseen_levels)
        mode = self._mode(new_groups, support)
        known = self._calibration(intervals, calibration, mode, unseen_levels)
        values = predict_draws(posterior, encoded, mode, kind=kind, seed=seed, draws=draws)
        regions, how = None, {}
        if intervals is not None:
            regions = regions_of(posterior, encoded, mode, known, level=level, seed=seed)
            how = {"intervals": intervals, "level": level}
        return prediction_idata(
            self.spec, encoded, values, kind=kind, mode=mode, seed=seed, regions=regions, attributes=how
        )

    def reconstruct(
        self,
        x: Any,
        *,
        groups: Mapping[str, Any] | None = None,
        new_groups: str = "error",
        draws: int | None = None,
        seed: int = 0,
    ) -> xr.Dataset:
        """Inputs as the network reconstructs them.

        Parameters
        ----------
        x : array-like, shape (N, ...)
            Inputs.
        groups : mapping of str to array-like, optional
            Group labels: those that the inputs have, or others, to see them as if they came from there.
        new_groups : str
            As for `predict`.
        draws : int, optional
            Draws of each chain to use; None: 50 where there are group effects within the network.
        seed : int
            The same seed gives the same numbers.

        Returns
        -------
        xarray.Dataset
            Dimensions (__obs__, x_dim_0, ...), means over the posterior: ``fixed`` by the fixed-effects part,
            ``mixed`` with the effects of each row's group, ``mixed_sd`` over draws and restarts.

        Raises
        ------
        ArgumentError
            For a model whose network does not reconstruct its input.
        UnseenGroupError, NotFittedError
            As for `predict`.
        """
        posterior = self._fitted()
        encoded = self._encode(x, groups)
        mode = self._mode(new_groups, None)
        return reconstruct_rows(posterior, encoded, mode, seed=seed, draws=draws)

    def evaluate(
        self,
        data: Any,
        y: Any = None,
        *,
        groups: Mapping[str, Any] | None = None,
        weights: Any = None,
        offset: Any = None,
        trials: Any = None,
        new_groups: str = "error",
        support: Any = None,
        unseen_levels: str = "error",
        seed: int = 0,
    ) -> pd.DataFrame:
        """Score predictions against observed responses.

        Parameters
        ----------
        data : pandas.DataFrame or array-like
            Rows with their response; for a model from arrays the inputs x.
        y : array-like, optional
            Responses, for a model from arrays.
        weights : array-like, shape (N,), optional
            Row weights, for a model from arrays.
        groups, offset, trials, new_groups, support, unseen_levels, seed
            As for `predict`. Rows in ``support`` are not scored unless they are in ``data`` too.

        Returns
        -------
        pandas.DataFrame
            Columns ``metric``, ``value``, ``se``. See `pyro_armed.evaluation.evaluate`.
        """
        posterior = self._fitted()
        beside = {"weights": weights, "offset": offset, "trials": trials}
        encoded = self._encode(data, groups, y, response=True, unseen_levels=unseen_levels, **beside)
        return evaluate(posterior, encoded, self._mode(new_groups, support), seed=seed)

    def update(
        self,
        data: Any,
        y: Any = None,
        *,
        groups: Mapping[str, Any] | None = None,
        weights: Any = None,
        offset: Any = None,
        trials: Any = None,
        seed: int = 0,
    ) -> Self:
        """Take in more rows of known groups without fitting again.

        The effects of the groups in these rows are drawn anew, in place, given all rows of these groups: of
        training, of earlier updates and the new ones. Everything else stays as `fit` left it, conditioned
        on the training rows only: the network, the global variables, the effects of other groups. Make a new
        model to have them learn from the new rows too.

        Parameters
        ----------
        data : pandas.DataFrame or array-like
            Rows with their response; for a model from arrays the inputs x.
        y : array-like, optional
            Responses, for a model from arrays.
        groups, weights, offset, trials
            As in training, for a model from arrays.
        seed : int
            The same seed gives the same numbers.

        Returns
        -------
        ARMED
            The model itself. ``.idata`` has the new effects and rows; its attribute ``updated_rows`` counts
            the rows that all updates have brought.

        Raises
        ------
        UnseenGroupError
            For groups that training did not have; see ``new_groups="adapt"`` of `predict`.
        ArgumentError, DataError
            For a model without group effects, and rows that cannot be used.
        NotFittedError
            Before `fit`, and for a model from a file, which has no training rows. Update before saving.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> data = pa.simulate.mixed_model(8, 20, seed=0)
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame[5:])
        >>> _ = model.fit(restarts=1, draws=100, seed=0, progressbar=False)
        >>> model.update(data.frame[:5]).idata.attrs["updated_rows"]
        5
        """
        posterior = self._fitted()
        if self._training is None:
            raise NotFittedError(
                "A model from a file has no training rows, which update() needs; update before saving, or "
                "make a new ARMED."
            )
        beside = {"weights": weights, "offset": offset, "trials": trials}
        encoded = self._encode(data, groups, y, response=True, **beside)
        known = self._training if self._added is None else self._training.joined(self._added)
        updated = update_effects(self.spec, posterior, known.batch, encoded, seed=seed)
        rows, omitted = known.joined(encoded), self._idata.attrs.get("omitted_groups", "")
        self._idata = build_idata(
            updated,
            rows.batch,
            index=rows.index.tolist(),
            seed=seed,
            log_likelihood=False if "log_likelihood" in omitted else "auto",
            attributes={"formula": self.formula, **updated.attributes},
        )
        self._added = encoded if self._added is None else self._added.joined(encoded)
        self._posterior = updated
        return self

    def fit_membership(self, *, seed: int | None = None, progressbar: bool = True) -> pd.DataFrame:
        """Learn to tell which seen groups a new group's rows resemble, for ``new_groups="membership"``.

        For each grouping factor a classifier of groups is trained on the training rows, in three parts: the
        covariates, hidden features included, are all that it sees. On the rows that each part has not seen it
        is calibrated; it is learned how much several rows of one group say together; and, with each group in
        the role of a stranger, when the effects of the groups that it resembles predict its responses better
        than a draw from Normal(0, Sigma) does.

        The first prediction with ``new_groups="membership"`` calls it. Call it before `save` to have it in
        the file, which keeps no training rows.

        Parameters
        ----------
        seed : int, optional
            The same seed gives the same numbers; None: the seed of `fit`.
        progressbar : bool
            Whether to show progress.

        Returns
        -------
        pandas.DataFrame
            One row for each grouping factor: ``groups`` told apart (at most 500, those with the most rows),
            the classifier's ``accuracy`` on single held-out rows, the mean probability of "none" for groups
            that are new to it (``none_new``) and for its own (``none_returning``); the evidence of n rows
            counts ``scale / (1 + (n - 1) * correlation)`` of its sum. ``note`` says why a factor has no
            classifier: too few groups, or no covariates to tell them by.

        Raises
        ------
        NotFittedError
            Before `fit`, and for a model from a file, which has no training rows.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(8, 20, seed=0).frame)
        >>> _ = model.fit(restarts=1, draws=20, progressbar=False)
        >>> model.fit_membership(progressbar=False)["groups"].tolist()
        [8]
        """
        posterior = self._fitted()
        if self._training is None:
            raise NotFittedError(
                "The file has no membership classifier, and no training rows to make one: call "
                "fit_membership() before save(), or pyro-armed fit with --membership."
            )
        seed = int(posterior.attributes.get("seed", 0)) if seed is None else seed
        self._membership = fit_membership(
            posterior, self._module, self._training.batch, seed=seed, progressbar=progressbar
        )
        return self._membership.quality()

    def membership(
        self,
        data: Any,
        *,
        groups: Mapping[str, Any] | None = None,
        top: int = 5,
        unseen_levels: str = "error",
    ) -> pd.DataFrame:
        """Which seen groups the new groups' rows resemble; responses are not looked at.

        Parameters
        ----------
        data : pandas.DataFrame or array-like
            Rows with new groups; for a model from arrays the inputs x.
        groups, unseen_levels
            As for `predict`.
        top : int
            How many of the seen groups to list, the likeliest first.

        Returns
        -------
        pandas.DataFrame
            Columns ``factor``, ``group`` (the new label), ``rows``, ``seen`` (a label of training; None for
            none of them) and ``probability``: that with which a draw of ``predict(...,
            new_groups="membership")`` gives all rows of the new group the effects of the seen one, or, for
            None, effects from Normal(0, Sigma).

        Raises
        ------
        ArgumentError
            Where there are too few groups or no covariates to tell them by.
        NotFittedError
            As for `fit_membership`, which the first call makes use of.

        Examples
        --------
        >>> import pyro_armed as pa
        >>> data = pa.simulate.mixed_model(8, 20, seed=0)
        >>> model = pa.ARMED("y ~ x1 + (1 | group)", data.frame)
        >>> _ = model.fit(restarts=1, draws=20, progressbar=False)
        >>> table = model.membership(data.frame.assign(group="another"), top=2)
        >>> len(table), round(float(table["probability"].sum()), 6) <= 1
        (3, True)
        """
        if not isinstance(top, int) or isinstance(top, bool) or top < 1:
            raise ArgumentError(f"top={top!r} must be a whole number of at least 1.")
        encoded = self._encode(data, groups, unseen_levels=unseen_levels)
        return self._fitted_membership().table(self.spec, encoded, top)

    def summary(self, *, effects: bool = False) -> Summary:
        """Estimates, intervals, R-hat, and sentences where something is off.

        Parameters
        ----------
        effects : bool
            Whether the groups' own effects are listed; there may be thousands.

        Returns
        -------
        Summary
            Prints as a table with its notes; ``.table`` is a DataFrame with columns ``mean``, ``sd``, ``q5``,
            ``q95``, ``r_hat``, ``ess``; ``.notes`` are the sentences.

        Raises
        ------
        NotFittedError
            Before `fit`.
        """
        return summarize(self.idata, self.spec, effects=effects)

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
    def idata(self) -> Any:
        """The ArviZ object that `fit` returned."""
        self._fitted()
        return self._idata

    @property
    def priors(self) -> dict[str, Distribution]:
        """Priors on the data's scale, defaults included."""
        return self._module.priors.describe()

    @property
    def formula(self) -> str:
        """The formula, or a description of the arrays."""
        return self._design.describe()

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

    def _fitted(self) -> Posterior:
        if self._posterior is None:
            raise NotFittedError("The model has no posterior yet: call fit() first.")
        return self._posterior

    def _calibration(
        self, intervals: str | None, calibration: Any, mode: Mode, unseen_levels: str
    ) -> Encoded | None:
        """The calibration rows that ``intervals`` needs."""
        if intervals is not None and intervals not in INTERVALS:
            raise ArgumentError(f"intervals={intervals!r} is not one of {', '.join(map(repr, INTERVALS))}.")
        if intervals != "conformal":
            if calibration is not None:
                raise ArgumentError(
                    "calibration= is for intervals='conformal'; leave it out, or ask for that."
                )
            return None
        if calibration is None:
            raise ArgumentError(
                "intervals='conformal' needs calibration=: rows with their response, of groups that training "
                "did not have. pa.cross_conformal makes do with the training groups."
            )
        x, y, groups = calibration, None, None
        if isinstance(self._design, ArrayDesign):
            if not isinstance(calibration, tuple) or len(calibration) != 3:
                raise ArgumentError("calibration= must be (x, y, groups) for a model from arrays.")
            x, y, groups = calibration
        encoded = self._encode(x, groups, y, response=True, unseen_levels=unseen_levels)
        if any(mode.name != received for some in mode.received(encoded).values() for received in some):
            raise ArgumentError(
                f"calibration= has groups that new_groups={mode.name!r} does not reach, and intervals hold "
                "for groups treated alike: move a few rows of each of these groups to support=."
            )
        return encoded

    def _mode(self, new_groups: str, support: Any) -> Mode:
        """What the arguments about new groups ask for."""
        if new_groups == Adapt.name:
            if support is None:
                raise ArgumentError(
                    "new_groups='adapt' needs support=..., rows of the new groups with their response."
                )
            return Adapt(self.spec, encode_support(self._design, support))
        if support is not None:
            raise ArgumentError(f"support= is for new_groups='adapt', not for {new_groups!r}.")
        if new_groups == Membership.name:
            return self._fitted_membership()
        return mode_of(new_groups)

    def _fitted_membership(self) -> Membership:
        if self._membership is None:
            self.fit_membership()
        return self._membership  # type: ignore[return-value]

    def _encode(self, data: Any, groups: Any = None, y: Any = None, **options: Any) -> Encoded:
        return encode_rows(self._design, data, y, groups=groups, **options)


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
