"""Tables with one row for each group, of which processes exchange and move the rows in their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from pyro_armed.updates import adam

__all__ = ["LazyAdam", "exchanged", "sparse_gradients", "world_size"]


def world_size() -> int:
    """Number of processes."""
    running = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if running else 1


def exchanged(codes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of some rows of a table, averaged over the processes.

    What is sent grows with the batches, not with the table.

    Parameters
    ----------
    codes : Tensor, shape (P,)
        Which rows this process has a gradient for, each once.
    rows : Tensor, shape (P, W)
        Their gradients.

    Returns
    -------
    codes : Tensor, shape (Q,)
        Rows that any process has, ascending; the same in all of them, as are the averages.
    rows : Tensor, shape (Q, W)
        Sums over the processes by their number: a row that a process lacks has no gradient there.

    Examples
    --------
    >>> exchanged(torch.tensor([5, 2]), torch.tensor([[1.0], [3.0]]))
    (tensor([2, 5]), tensor([[3.],
            [1.]]))
    """
    world = world_size()
    if world > 1:
        codes, rows = _gathered(codes, rows, world)
    found, places = codes.unique(return_inverse=True)
    total = rows.new_zeros(len(found), rows.shape[1]).index_add_(0, places, rows)
    return found, total / world


def _gathered(codes: Tensor, rows: Tensor, world: int) -> tuple[Tensor, Tensor]:
    """Codes and rows of all processes, one after another, by two messages of one size and one of sizes."""
    size = torch.tensor([len(codes)], device=codes.device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    distributed.all_gather(sizes, size)
    counts = [int(one) for one in sizes]

    def gather(own: Tensor) -> Tensor:
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(world)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    return gather(codes), gather(rows)


class LazyAdam(torch.optim.Adam):
    """Adam that moves only the rows of a table for which a sparse gradient has values.

    Moments and step counts are kept by row, as those of `pyro_armed.updates.Update`. Parameters with dense
    gradients get Adam's step.

    Its parameters are those of `torch.optim.Adam`.

    Examples
    --------
    >>> table = torch.zeros(3, 1)
    >>> optimizer = LazyAdam([table], lr=0.1)
    >>> (table.grad,) = sparse_gradients([table], torch.tensor([2]), torch.tensor([[5.0]]))
    >>> optimizer.step()
    >>> table.flatten()
    tensor([ 0.0000,  0.0000, -0.1000])
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the closure, if there is one, computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tables = [
            (parameter, parameter.grad, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for table, _, _ in tables:
            table.grad = None
        super().step()
        for table, gradient, group in tables:
            self._move(table, gradient, group)
        return loss

    def _move(self, table: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        gradient = gradient.coalesce()
        (codes,), rows = gradient.indices(), gradient.values()
        state = self.state[table]
        if "step" not in state:
            state["step"] = torch.zeros(len(table), dtype=table.dtype)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        steps = state["step"] = state["step"].to(table.device)  # a restored one is on the CPU
        count = steps[codes] + 1.0
        steps[codes] = count
        keys = ("exp_avg", "exp_avg_sq")
        mean, square = (state[key][codes].reshape(len(codes), -1) for key in keys)
        value = table[codes].reshape(len(codes), -1)
        rate = torch.as_tensor(group["lr"], dtype=torch.float64, device=table.device)
        new = adam(value, mean, square, rows.reshape(value.shape), count, rate)
        for whole, part in ((table, new), (state["exp_avg"], mean), (state["exp_avg_sq"], square)):
            whole[codes] = part.reshape(len(codes), *table.shape[1:])


def sparse_gradients(tables: Sequence[Tensor], codes: Tensor, rows: Tensor) -> list[Tensor]:
    """Gradients of some tables of one grouping factor, from the rows of all of them side by side.

    Parameters
    ----------
    tables : sequence of Tensor, shape (C, ...)
        The tables.
    codes : Tensor, shape (Q,)
        Which rows.
    rows : Tensor, shape (Q, W)
        Their gradients, those of one table after those of the other.

    Returns
    -------
    list of Tensor
        Sparse tensors of the tables' shapes.
    """
    parts = rows.split([table[0].numel() for table in tables], dim=1)
    return [
        torch.sparse_coo_tensor(
            codes[None],
            part.reshape(-1, *table.shape[1:]),
            table.shape,
            check_invariants=False,  # `exchanged` sees to them
            is_coalesced=True,
        )
        for table, part in zip(tables, parts, strict=True)
    ]
