"""Compiled training steps as shared libraries, kept on disk between processes.

Inductor's ahead-of-time compiler makes one library of a whole step, which runs without Python in between and
needs no part of Inductor to be loaded. It is kept in Inductor's cache directory under a fingerprint of
everything that it was made from, and only if nobody but the user can write there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["fingerprint", "kept_library", "load_library", "private_folder"]

Run = Callable[..., Sequence[Tensor]]

# Whose source says how a step is made of the gradient's graph.
_SOURCES = ("batch", "compiled", "graphs", "libraries", "training_state", "updates")
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    slice,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


class _UnknownError(Exception):
    """Something whose value cannot be written down."""


def fingerprint(graph: GraphModule, example: Sequence[Tensor], facts: object) -> str | None:
    """A name for the library of a step.

    Parameters
    ----------
    graph : GraphModule
        The gradient, of PyTorch's own operators.
    example : sequence of Tensor
        Tensors that the step takes; their values do not matter.
    facts : object
        What else it depends on: numbers, texts, tensors, and containers and dataclasses of these.

    Returns
    -------
    str or None
        None where something is not known by its value, such as an operator of the user's.

    Examples
    --------
    >>> graph = torch.fx.symbolic_trace(torch.nn.Identity())
    >>> len(fingerprint(graph, [torch.zeros(2)], {"clip": 10.0}))
    64
    >>> fingerprint(graph, [torch.zeros(2)], object()) is None
    True
    """
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    try:
        for part in (
            [(folder / f"{name}.py").read_text(encoding="utf-8") for name in _SOURCES],
            _machine(),
            [[t.shape, t.stride(), t.dtype, t.device] for t in example],
            facts,
            [[n.op, n.name, _target(graph, n), n.args, dict(n.kwargs)] for n in graph.graph.nodes],
        ):
            _feed(digest, part)
    except _UnknownError:
        return None
    return digest.hexdigest()


def _machine() -> list[object]:
    """What the compiler's output depends on besides the step."""
    from torch._inductor import config

    settings = config.save_config_portable()
    settings.pop("aot_inductor.metadata", None)  # what the compiler notes there of its last run
    processor = sorted(torch.cpu.get_capabilities().items()) if hasattr(torch.cpu, "get_capabilities") else []
    return [
        torch.__version__,
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        repr(processor),
        platform.machine(),
        repr(sorted(settings.items())),
    ]


def _target(graph: GraphModule, node: Node) -> object:
    """What a node stands for: an operator's name, or a constant's value."""
    target: Any = node.target
    if node.op == "get_attr":
        value = graph
        for name in str(target).split("."):
            value = getattr(value, name)
        return value
    if node.op != "call_function":
        return str(target)
    if isinstance(target, torch._ops.OpOverload) and target.namespace in ("aten", "prims"):
        return str(target)
    module, free = getattr(target, "__module__", ""), getattr(target, "__closure__", None)
    if free is None and (module == "_operator" or module.startswith("pyro_armed.")):
        return f"{module}.{target.__qualname__}"
    raise _UnknownError


def _feed(digest: Any, value: Any) -> None:
    """Write a value down, its kind and length included, so that different values differ."""
    if isinstance(value, Node):
        digest.update(f"node {value.name};".encode())
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {value.device} {tuple(plain.shape)} {value.stride()};".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for pair in value.items():
            _feed(digest, pair)
    elif isinstance(value, (list, tuple)):
        digest.update(f"sequence {len(value)};".encode())
        for one in value:
            _feed(digest, one)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, _PLAIN):
        text = repr(value)
        digest.update(f"{type(value).__name__} {len(text)} {text};".encode())
    else:
        raise _UnknownError


def kept_library(name: str, make: Callable[[], tuple[GraphModule, Sequence[Tensor]]]) -> Run:
    """The library of this name, compiled if it is not there.

    Parameters
    ----------
    name : str
        From `fingerprint`.
    make : callable
        Traces the step: its graph and tensors like those that it takes; called only if need be.

    Returns
    -------
    callable
        Takes the tensors, changes them as the graph does, and returns its results.

    Raises
    ------
    Exception
        Where there is no folder for it, or whatever keeps Inductor from compiling the graph.
    """
    folder = private_folder()
    if folder is None:
        raise RuntimeError("there is no folder for compiled steps that only this user can write to")
    path = folder / f"{name}.so"
    try:
        return load_library(path)
    except (OSError, RuntimeError):  # not there, or of no use
        path.unlink(missing_ok=True)
    graph, example = make()
    _compile(graph, example, path)
    return load_library(path)


def private_folder() -> Path | None:
    """Folder in Inductor's cache that belongs to the user and that nobody else can write to; None: none."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "pyro_armed"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if _private(folder) else None


def _private(path: Path) -> bool:
    if not hasattr(os, "getuid"):
        return False
    state = path.lstat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def load_library(path: Path) -> Run:
    """A compiled step from its file.

    Parameters
    ----------
    path : Path
        The library, which must be the user's own.

    Returns
    -------
    callable

    Raises
    ------
    OSError
        Where there is no such file.
    RuntimeError
        Where others could have written it, or it cannot be loaded.
    """
    if not _private(path):
        raise RuntimeError("the compiled step may not be the user's own")
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
    return lambda *tensors: runner.run(list(tensors))


def _compile(graph: GraphModule, example: Sequence[Tensor], path: Path) -> None:
    """Compile beside the library's place, then move it there."""
    from torch._inductor import aot_compile

    with (
        tempfile.TemporaryDirectory(dir=path.parent) as place,
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        draft = os.path.join(place, path.name)
        # What the processor says of its vector units is believed, as in `compiled.inductor_run`.
        options = {"aot_inductor.output_path": draft, "cpp.vec_isa_ok": True}
        made = aot_compile(graph, tuple(example), options=options)
        os.chmod(str(made), 0o600)
        os.replace(str(made), path)
