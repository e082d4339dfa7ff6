"""Settings of the adversary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._common import sizes_of, whole

__all__ = ["Adversary"]


@dataclass(frozen=True)
class Adversary:
    """Settings of the group classifier that the network is trained against.

    Parameters
    ----------
    weight
        Weight of the reversed gradient in the network's loss; 0 only watches.
    hidden
        Units of the classifier's hidden layers.
    conditional
        True asks that the features be independent of the group *given the response*, False that they be
        independent of it altogether. The latter attacks the target itself where response rates differ by
        group. ``"auto"`` is True for classification families and False for others.
    warmup
        Fraction of training over which the weight rises linearly from 0, in [0, 1]. It is 0 because 0.5 cost
        accuracy on new groups: 0.81 and 0.71 at weight 0.5, on known ones 0.88 and 0.90 (confounded spirals,
        layers of 4 units, three seeds; tests/studies/warmup.py).
    learning_rate, weight_decay
        Of the classifier's own part of the optimiser (Adam).
    groups
        Name or names of the grouping factors to hide; None is the model's first.
    layers
        Name or names of the network's layers, as in ``network.named_modules()``, whose outputs the classifier
        sees side by side, flattened to a row each; None is what goes into the network's last linear layer.
    independence
        Factor of `group_dependence`, a kernel measure of how far the features depend on the group, which is
        minimised beside the classifier's reversed loss: the network's loss has ``weight * independence``
        times it. A classifier lags behind the network that it is trained against, and a fresh one then finds
        what it missed; the kernel has nothing to learn. 100 served an autoencoder's latents, 15 a CNN's last
        8 activations, on letters 3 cost accuracy: try some, with `diagnostics.leakage`. It needs a response
        of classes if the adversary is conditional, and all rows in memory.
    grid
        Images among these outputs are averaged over ``grid`` x ``grid`` parts; None keeps each position,
        which for the blocks of a `CNN` is thousands of numbers.

    Raises
    ------
    ArgumentError
        If a setting cannot be used.

    Examples
    --------
    >>> Adversary(weight=0.5, warmup=0.2).weight_at(0.1)
    0.25

    Notes
    -----
    Gradient reversal: Ganin et al., JMLR 17, 2016. Given the response: Li et al., ECCV 2018; why: Zhao et
    al., ICML 2019. `diagnostics.adversary` tells how it fared.
    """

    weight: float
    hidden: Sequence[int] = (8, 8)
    conditional: bool | Literal["auto"] = "auto"
    warmup: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    groups: str | Sequence[str] | None = None
    layers: str | Sequence[str] | None = None
    independence: float = 0.0
    grid: int | None = 4

    def __post_init__(self) -> None:
        """Check and normalise the settings."""
        weight = _number(self.weight, "weight", "a number of at least 0")
        if weight < 0.0:
            raise ArgumentError(
                f"weight of the adversary must be a number of at least 0, not {self.weight!r}."
            )
        warmup = _number(self.warmup, "warmup", "a fraction of training in [0, 1]")
        if not 0.0 <= warmup <= 1.0:
            raise ArgumentError(f"warmup of the adversary must be in [0, 1], not {self.warmup!r}.")
        rate = _number(self.learning_rate, "learning_rate", "a number above 0")
        if rate <= 0.0:
            raise ArgumentError(
                f"learning_rate of the adversary must be a number above 0, not {self.learning_rate!r}."
            )
        decay = _number(self.weight_decay, "weight_decay", "a number of at least 0")
        if decay < 0.0:
            raise ArgumentError(
                f"weight_decay of the adversary must be a number of at least 0, not {self.weight_decay!r}."
            )
        independence = _number(self.independence, "independence", "a number of at least 0")
        if independence < 0.0:
            raise ArgumentError(
                f"independence of the adversary must be a number of at least 0, not {self.independence!r}."
            )
        if not isinstance(self.conditional, bool) and self.conditional != "auto":
            raise ArgumentError(
                f"conditional of the adversary must be True, False or 'auto', not {self.conditional!r}."
            )
        for name, value in (
            ("weight", weight),
            ("warmup", warmup),
            ("learning_rate", rate),
            ("hidden", sizes_of(self.hidden, "hidden of the adversary")),
            ("weight_decay", decay),
            ("groups", _names(self.groups, "groups", "grouping factors")),
            ("layers", _names(self.layers, "layers", "layers of the network")),
            ("independence", independence),
            ("grid", None if self.grid is None else whole(self.grid, "grid of the adversary")),
        ):
            object.__setattr__(self, name, value)

    def weight_at(self, progress: float) -> float:
        """Return the weight at one point of training; full from ``warmup`` onwards.

        Parameters
        ----------
        progress
            Fraction of training done, 0 to 1.
        """
        if progress >= self.warmup:
            return self.weight
        return self.weight * max(progress, 0.0) / self.warmup

    def is_conditional(self, classification: bool) -> bool:
        """Say whether the classifier sees the response.

        Parameters
        ----------
        classification
            Whether the response family is one of classes.
        """
        return classification if self.conditional == "auto" else bool(self.conditional)

    def config(self) -> dict[str, Any]:
        """Return the settings as a dict that JSON can hold, for `from_config`."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make settings from what ``config()`` returned; `ArgumentError` for unknown or missing ones.

        Parameters
        ----------
        config
            The dict.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(key) for key in config if key not in known)
        if unknown:
            raise ArgumentError(f"an adversary has no setting(s) {', '.join(unknown)}.")
        if "weight" not in config:
            raise ArgumentError("an adversary's config needs its weight.")
        return cls(**config)


def _number(value: Any, name: str, meaning: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentError(f"{name} of the adversary must be {meaning}, not {value!r}.")
    return number


def _names(value: Any, argument: str, what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{argument} of the adversary must name {what}, not {value!r}.")
    if len(set(names)) != len(names):
        raise ArgumentError(f"{argument} of the adversary has a name twice: {list(names)}.")
    return tuple(names)
