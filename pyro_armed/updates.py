"""One training step as a function of tensors: the batch, its gradient, clipping and Adam.

Training calls the function itself, or a graph of it: see `pyro_armed.compiled`. Everything that changes is
in a dictionary of tensors, the state, and nothing is read back from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from pyro_armed.batch import Batch, inclusion_probability, present_groups
from pyro_armed.objective import LossParts, Objective
from pyro_armed.training_state import (
    ROLES,
    Layout,
    Parts,
    State,
    Tensors,
    rows_key,
    split_rows,
    unflattened,
)

__all__ = [
    "BETAS",
    "CONTROLS",
    "RARE",
    "Update",
    "adam",
]

# What a step is told besides its rows, in this order.
CONTROLS = ("adversary weight", "learning rate", "classifiers' learning rate")
BETAS, _EPS = (0.9, 0.99), 1e-8
# Learning rate of tables of which a step moves some rows, in units of the others'. A pass visits a group a
# few times, and where its effects lag behind the sds between groups grow in their place.
RARE = 5.0


class Update:
    """A step of Adam on one objective.

    The network, the guide and the adversary's classifiers are trained together; the gradient of the former
    two is clipped, that of the classifiers is not.

    Groups by the million: the effects of a grouping factor in ``sparse`` are drawn for the groups in the
    batch alone, the divergence of each from its prior divided by the probability that a batch has it, and
    Adam's moments and step counts are kept by group and move when the group is in the batch (the lazy Adam
    of sparse embeddings, with bias corrections by row).

    Parameters
    ----------
    objective : Objective
        The loss.
    data : Batch
        All rows, or as many as a step has where they come from files; only their shapes and the sizes of the
        groups are kept.
    size : int
        Rows per step.
    clip : float
        Largest norm of the gradient, relative to a running average of its norm.
    sparse : sequence of str
        Grouping factors of which a step touches only the groups in its batch.
    """

    def __init__(self, objective: Objective, data: Batch, size: int, clip: float, sparse: Sequence[str] = ()):
        self.parts, self.clip, self.size = Parts(objective), clip, size
        head = objective.adversary
        self.weight_decay = head.settings.weight_decay if head is not None else 0.0
        self.layout = Layout.of(objective, sparse)
        self.frame = replace(data.map(lambda tensor: tensor[:0]), size=size)
        sizes = {group.name: group.size for group in objective.module.spec.groups}
        self.dummies = {name: sizes[name] for name in sparse}
        self.partial = data.size < data.n_rows
        known = {group.name: group.counts for group in objective.module.spec.groups}
        # A factor for each number of rows that a group may have: one for each group would take more memory.
        self.counts = {name: _rows_of_groups(known[name], data, name) for name in sparse}
        factors = _row_shares if self.partial else _group_scales
        self.factors = {name: factors(int(self.counts[name].max()), data, size) for name in sparse}

    # --- the batch -------------------------------------------------------------------------------------

    def select(self, source: Tensors, rows: Tensor | None) -> tuple[Tensors, Tensors]:
        """Tensors of a batch, and the codes of its groups in the tables.

        Parameters
        ----------
        source : dict of str to Tensor
            `Batch.tensors` of all rows.
        rows : Tensor, shape (B,) or (R, B), optional
            Which of them; None: all.

        Returns
        -------
        batch : dict of str to Tensor
            As the model takes it: codes count the groups of the batch.
        present : dict of str to Tensor, shape (B,) or (R, B)
            The groups of the batch; as many as rows, padded with the number of groups.
        """
        if rows is None:
            return source, {}
        batch = {name: tensor[rows] for name, tensor in source.items()}
        batch["rows"] = rows
        present = {}
        for name, dummy in self.dummies.items():
            groups, codes = present_groups(batch[f"codes.{name}"], dummy)
            batch[f"codes.{name}"] = codes
            # Values are rows of what `values` gathers, not of the whole tables.
            batch[f"present.{name}"] = torch.arange(self.size, device=rows.device).expand(rows.shape)
            batch[f"group_scale.{name}"] = self._group_scale(name, groups, codes)
            present[name] = groups
        return batch, present

    def _group_scale(self, name: str, groups: Tensor, codes: Tensor) -> Tensor:
        """Factor of the divergence of each present group: its share of an epoch's steps, as an estimate."""
        counts = self.counts[name]
        scale = self.factors[name][counts[groups.clamp_max(len(counts) - 1)]]
        scale = torch.where(groups < len(counts), scale, torch.zeros_like(scale))  # none for padding
        if not self.partial:
            return scale
        # Rows of files are not shuffled as a whole, so that the chance of a group to be in a batch is not
        # known. Its rows here over its rows in the data sum to one over an epoch, however they are ordered.
        return scale * torch.zeros_like(scale).scatter_add(-1, codes, torch.ones_like(scale))

    # --- parameters and their gradient -----------------------------------------------------------------

    def values(self, state: State, present: Tensors) -> Tensors:
        """The trained parameters by name; of the tables, the rows that are present."""
        values = {}
        for key, shapes in self.layout.dense.items():
            values.update(unflattened(state[key], shapes))
        for group, shapes in self.layout.rows.items():
            width = sum(shape.numel() for shape in shapes.values())
            values.update(
                split_rows(shapes, state[rows_key(group)][self._places(present, group)][..., :width])
            )
        return values

    def _places(self, present: Tensors, group: str) -> Tensor:
        """Rows of the tables of all restarts, which stand one below the other."""
        groups = present[group]
        if groups.dim() == 1:
            return groups
        restarts = torch.arange(len(groups), device=groups.device)
        return groups + restarts[:, None] * (self.dummies[group] + 1)

    def gradient(
        self, values: Tensors, fixed: Tensors, batch: Tensors, weight: Tensor
    ) -> tuple[Tensors, Tensor]:
        """Gradient of the loss by autograd, and the step's record; the buffers are changed in place.

        Parameters
        ----------
        values : dict of str to Tensor
            Trained parameters by name.
        fixed : dict of str to Tensor
            Frozen parameters and buffers by name.
        batch : dict of str to Tensor
            From `select`.
        weight : Tensor
            Weight of the adversary.

        Returns
        -------
        gradient : dict of str to Tensor
        record : Tensor, shape (1 + G,)
            ELBO per row; accuracy of the adversary for each of its grouping factors.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        parts = self._loss({**leaves, **fixed}, batch, weight)
        found = torch.autograd.grad(parts.total, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True)), _record(parts)

    def pure_gradient(
        self, values: Tensors, fixed: Tensors, batch: Tensors, weight: Tensor
    ) -> tuple[Tensors, Tensors, Tensor]:
        """`gradient` as a pure function: buffers are arguments, new buffers a result."""

        def loss(values: Tensors, fixed: Tensors) -> tuple[Tensor, tuple[Tensors, Tensor]]:
            fixed = {name: tensor.clone() for name, tensor in fixed.items()}
            parts = self._loss({**values, **fixed}, batch, weight)
            return parts.total, (fixed, _record(parts))

        gradient, (_, (changed, record)) = grad_and_value(loss, has_aux=True)(values, fixed)
        return gradient, changed, record

    def _loss(self, tensors: Tensors, batch: Tensors, weight: Tensor) -> LossParts:
        return functional_call(self.parts, tensors, (self.frame.with_tensors(batch), weight), strict=False)

    # --- the step --------------------------------------------------------------------------------------

    def __call__(self, state: State, source: Tensors, rows: Tensor | None, controls: Tensor) -> Tensor:
        """Change the state by one step.

        Parameters
        ----------
        state : dict of str to Tensor
            Changed in place.
        source : dict of str to Tensor
            `Batch.tensors` of all rows.
        rows : Tensor, shape (B,), optional
            Which of them; None: all.
        controls : Tensor, shape (3,)
            See ``CONTROLS``.

        Returns
        -------
        Tensor, shape (1 + G,)
            ELBO per row; accuracy of the adversary for each of its grouping factors.
        """
        batch, present = self.select(source, rows)
        fixed = {name: state[name] for name in self.layout.fixed}
        gradient, record = self.gradient(self.values(state, present), fixed, batch, controls[0])
        self.ascend(state, gradient, present, controls)
        return record

    @torch.no_grad()
    def ascend(self, state: State, gradient: Tensors, present: Tensors, controls: Tensor) -> None:
        """Clip the gradient and take Adam's step."""
        lead = controls.shape[:-1]
        flat = {
            key: torch.cat([gradient[name].reshape((*lead, -1)) for name in names], dim=-1)
            for key, names in self.layout.dense.items()
        }
        rows = {name: gradient[name] for name in self.layout.tables}
        clipped = [g for key, g in [*flat.items(), *rows.items()] if not key.startswith(ROLES[1])]
        finite, factor = self._clipping(state, clipped, lead)
        state["count"].add_(1.0)
        for key, g in flat.items():
            role = ROLES.index(key.split(".")[0])
            if role:
                g = (g + self.weight_decay * state[key]).nan_to_num(0.0, 0.0, 0.0)
            else:
                g = _shortened(g, finite, factor)
            moments = state[f"{key}.mean"], state[f"{key}.square"]
            state[key].copy_(adam(state[key], *moments, g, state["count"], controls[..., 1 + role]))
        for group, shapes in self.layout.rows.items():
            g = torch.cat([rows[name].reshape((*lead, self.size, -1)) for name in shapes], dim=-1)
            g = _shortened(g.flatten(-2), finite, factor).reshape(-1, g.shape[-1])
            places = self._places(present, group).reshape(-1)
            self._ascend_rows(state[rows_key(group)], places, g, controls[..., 1])

    def _ascend_rows(self, table: Tensor, places: Tensor, gradient: Tensor, rate: Tensor) -> None:
        """Adam's step of some rows: values, both moments and number of steps of each side by side."""
        width = gradient.shape[-1]
        value, mean, square, count = table[places].split([width, width, width, 1], dim=-1)
        mean, square, count = mean.clone(), square.clone(), count + 1.0
        rates = RARE * (rate.repeat_interleave(self.size) if rate.dim() else rate)
        new = adam(value, mean, square, gradient, count[:, 0], rates)
        table.index_put_((places,), torch.cat([new, mean, square, count], dim=-1))

    def _clipping(self, state: State, gradients: Sequence[Tensor], lead: torch.Size) -> tuple[Tensor, Tensor]:
        """Whether the gradient is finite, and the factor that shortens it."""
        squares = [g.reshape((*lead, -1)).double().square().sum(-1) for g in gradients]
        norm = torch.stack(squares).sum(0).sqrt()
        finite, usual = norm.isfinite(), state["norm"].clone()
        shortened = torch.minimum(norm, self.clip * usual)
        average = torch.where(usual.isinf(), shortened, 0.95 * usual + 0.05 * shortened)
        state["norm"].copy_(torch.where(finite, average, usual))
        return finite, shortened / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def adam(
    value: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, count: Tensor, rate: Tensor
) -> Tensor:
    """Adam's step.

    Parameters
    ----------
    value : Tensor, shape (..., P)
        Parameters.
    mean, square : Tensor, shape (..., P)
        Moments; changed in place.
    gradient : Tensor, shape (..., P)
        Gradient.
    count, rate : Tensor, shape (...)
        Steps taken, this one included, and learning rates.

    Returns
    -------
    Tensor, shape (..., P)
        New values.
    """
    mean.lerp_(gradient, 1.0 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
    step = (rate / (1.0 - BETAS[0] ** count)).to(mean.dtype)[..., None]
    root = (1.0 - BETAS[1] ** count).sqrt().to(mean.dtype)[..., None]
    return value - step * mean / (square.sqrt() / root + _EPS)


def _shortened(gradient: Tensor, finite: Tensor, factor: Tensor) -> Tensor:
    kept = torch.where(finite[..., None], gradient, torch.zeros_like(gradient))
    return kept * torch.where(finite, factor, torch.zeros_like(factor)).to(gradient.dtype)[..., None]


def _record(parts: LossParts) -> Tensor:
    elbo, accuracy = -parts.elbo.detach(), parts.adversary_accuracy.detach()
    return torch.cat([elbo.reshape(1).double(), accuracy.double()])


def _rows_of_groups(counts: Sequence[int], data: Batch, group: str) -> Tensor:
    """Rows of each group, shape (C,), in the memory of the specification."""
    if data.size == data.n_rows != int(np.sum(counts)):  # other rows than those of the specification
        return torch.bincount(data.codes[group], minlength=len(counts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the numbers cannot be written to, and are not
        return torch.as_tensor(np.asarray(counts)).to(data.device)


def _group_scales(most: int, data: Batch, rows: int) -> Tensor:
    """Factor of a group's divergence in a batch that has the group, by its rows; 0 for none."""
    counts = torch.arange(1, most + 1, device=data.device)
    scale = 1.0 / inclusion_probability(counts, data.n_rows, rows)
    return torch.cat([scale.new_zeros(1), scale])


def _row_shares(most: int, data: Batch, rows: int) -> Tensor:
    """Steps of an epoch over the rows of a group, by their number; 0 for none."""
    each = torch.arange(1, most + 1, dtype=torch.float64, device=data.device)
    return torch.cat([each.new_zeros(1), data.n_rows / rows / each])
