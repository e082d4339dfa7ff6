"""Random numbers that are repeatable, one stream for each purpose, and no trace in the global state."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch

from pyro_armed.errors import ArgumentError

__all__ = ["generator_for", "seeded", "stream"]


def stream(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose: random numbers of one seed that serve two purposes would be the same.

    Parameters
    ----------
    seed : int
        The user's seed.
    *purpose : str or int
        What the numbers are for.

    Returns
    -------
    int

    Raises
    ------
    ArgumentError
        For a seed that is not a whole number of at least 0.

    Examples
    --------
    >>> stream(0, "responses") == stream(0, "responses"), stream(0, "responses") == stream(0, "new groups")
    (True, False)
    """
    words = [word if isinstance(word, int) else zlib.crc32(word.encode()) for word in purpose]
    # A spawn key, because trailing zeros in a list of seeds say nothing: [seed, a] and [seed, a, 0] are one.
    sequence = np.random.SeedSequence(_checked(seed), spawn_key=tuple(words))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator of its own for one purpose."""
    return torch.Generator().manual_seed(stream(seed, *purpose))


@contextmanager
def seeded(seed: int | None, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Put torch's random state (CPU, CUDA ``devices``) back afterwards; start from ``seed`` if given."""
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        if seed is not None:
            # torch.manual_seed would also reseed accelerators that are not put back afterwards.
            torch.default_generator.manual_seed(_checked(seed))
            for index in cuda:
                with torch.cuda.device(index):
                    torch.cuda.manual_seed(seed)
        yield


def _checked(seed: int) -> int:
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ArgumentError(f"seed={seed!r} must be a whole number of at least 0.")
    return int(seed)
