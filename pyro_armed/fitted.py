"""What a fitted model does: predictions, scores, updates, membership.

The methods of `ARMED` that need its posterior; how it is made and fitted is in `pyro_armed.armed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import pandas as pd
import xarray as xr

from pyro_armed.arrays import ArrayDesign
from pyro_armed.conformal import INTERVALS, regions_of
from pyro_armed.design import Encoded, FormulaDesign
from pyro_armed.errors import ArgumentError, NotFittedError
from pyro_armed.evaluation import evaluate
from pyro_armed.export import build_idata, prediction_idata
from pyro_armed.many_groups import ManyGroups
from pyro_armed.membership import Membership, fit_membership
from pyro_armed.module import MixedEffectsModule
from pyro_armed.new_groups import Adapt, Mode, mode_of
from pyro_armed.new_rows import encode_rows, encode_support
from pyro_armed.parquet import ParquetRows, is_parquet
from pyro_armed.posterior import Posterior
from pyro_armed.predict import predict_draws
from pyro_armed.reconstruct import reconstruct_rows
from pyro_armed.spec import ModelSpec
from pyro_armed.streamed_evaluation import evaluate_frames, frames_of
from pyro_armed.summary import Summary, summarize
from pyro_armed.updating import update_effects

__all__ = ["FittedModel"]


class FittedModel(ManyGroups):
    """A design, a posterior and what follows from them; `ARMED` is the one that users make."""

    spec: ModelSpec
    _design: FormulaDesign | ArrayDesign
    _training: Encoded | None
    _added: Encoded | None
    _module: MixedEffectsModule
    _posterior: Posterior | None
    _membership: Membership | None
    _idata: Any

    @property
    def idata(self) -> Any:
        """The ArviZ object that `fit` returned."""
        self._any_posterior()
        return self._idata

    @property
    def formula(self) -> str:
        """The formula, or a description of the arrays."""
        return self._design.describe()

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
        if is_parquet(data) and isinstance(self._design, FormulaDesign):
            raise ArgumentError(
                "predict returns the draws of all rows: pass it some rows of the files at a time as a data "
                "frame, or run `pyro-armed predict --stream`, which writes what they say of each row."
            )
        model = self._holding(data, groups, support, calibration)
        posterior = model._fitted()
        encoded = model._encode(data, groups, offset=offset, trials=trials, unseen_levels=unseen_levels)
        mode = model._mode(new_groups, support)
        known = model._calibration(intervals, calibration, mode, unseen_levels)
        values = predict_draws(posterior, encoded, mode, kind=kind, seed=seed, draws=draws)
        regions, how = None, {}
        if intervals is not None:
            regions = regions_of(posterior, encoded, mode, known, level=level, seed=seed)
            how = {"intervals": intervals, "level": level}
        return prediction_idata(
            model.spec, encoded, values, kind=kind, mode=mode, seed=seed, regions=regions, attributes=how
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
        data : pandas.DataFrame, path-like, pyarrow.dataset.Dataset or array-like
            Rows with their response; Parquet, a file or a folder, is read some rows at a time. For a model
            from arrays the inputs x.
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
        if is_parquet(data) and isinstance(self._design, FormulaDesign):
            how = {"new_groups": new_groups, "support": support, "unseen_levels": unseen_levels}
            return evaluate_frames(self, frames_of(self, ParquetRows(data)), seed=seed, **how)
        model = self._holding(data, groups, support)
        posterior = model._fitted()
        beside = {"weights": weights, "offset": offset, "trials": trials}
        encoded = model._encode(data, groups, y, response=True, unseen_levels=unseen_levels, **beside)
        return evaluate(posterior, encoded, model._mode(new_groups, support), seed=seed)

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
                "A model from a file, or of rows in Parquet, has no training rows in memory, which update() "
                "needs; update before saving, or make a new ARMED of a data frame."
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
                "fit_membership() before save(), or pyro-armed fit with --membership. Models of rows in "
                "Parquet cannot have one."
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
