"""Two passes over the same rows that share the layers before the first group effects."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def recorded(network: nn.Module, until: Collection[str], rows: int) -> Iterator[dict[str, Tensor]]:
    """Keep what the network's innermost modules return until one of some layers has returned.

    Left out are modules that run more than once, and those whose result is no tensor with a row for each row
    of the input or is changed in place afterwards.

    Parameters
    ----------
    network
        Any module; it is left as it was.
    until
        Names of layers, of which the first to run is the last that is kept.
    rows
        Number of input rows B.

    Yields
    ------
    dict of str to Tensor
        Results by the modules' names, complete when the context ends.

    Examples
    --------
    >>> import torch
    >>> network = nn.Sequential(nn.Identity(), nn.Linear(3, 2), nn.Linear(2, 1))
    >>> with recorded(network, ["1"], 5) as kept:
    ...     _ = network(torch.zeros(5, 3))
    >>> list(kept)
    ['0', '1']
    """
    kept: dict[str, Tensor] = {}
    versions: dict[str, int] = {}
    ran: set[str] = set()
    closed = False

    def keeping(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal closed
            result = forward(*args, **kwargs)
            whole = isinstance(result, Tensor) and result.dim() > 0 and len(result) == rows
            if name in ran:
                kept.pop(name, None)
            elif whole and not closed:
                kept[name], versions[name] = result, result._version
            ran.add(name)
            closed = closed or name in until
            return result

        return run

    innermost = {name: module for name, module in network.named_modules() if not any(module.children())}
    with _replaced({name: (module, keeping(name, module.forward)) for name, module in innermost.items()}):
        yield kept
    for name in [name for name, result in kept.items() if result._version != versions[name]]:
        del kept[name]


@contextmanager
def replayed(network: nn.Module, kept: Mapping[str, Tensor], rows: int) -> Iterator[None]:
    """Let modules return what they returned before instead of running, for the first rows.

    Parameters
    ----------
    network
        Any module; it is left as it was.
    kept
        From `recorded`.
    rows
        Number of rows of the second pass, the first of those of the first.
    """

    def again(result: Tensor) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: result if len(result) == rows else result[:rows]

    with _replaced({n: (network.get_submodule(n), again(result)) for n, result in kept.items()}):
        yield


@contextmanager
def _replaced(forwards: Mapping[str, tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    before = [(module, module.__dict__.get("forward")) for module, _ in forwards.values()]
    try:
        for module, forward in forwards.values():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
