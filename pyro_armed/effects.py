"""Random effects as a user declares them: those of a predictor, and those within a network's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_armed.errors import ArgumentError

__all__ = ["RandomEffects", "ScaleBias"]


@dataclass(frozen=True)
class RandomEffects:
    """Effects that vary between the groups of one grouping factor.

    Parameters
    ----------
    group : str
        Key of the ``groups`` argument.
    intercept : bool
        Whether each group has an intercept.
    slopes : None, "features" or sequence
        ``"features"``: a slope on each of the network's last hidden activations. A sequence names
        columns of a two-dimensional ``x`` (positions, or names given as ``columns=``).
    correlated : bool
        Whether a group's effects are correlated a priori (LKJ). Slopes on features are always independent.
    parameter : str
        The parameter whose predictor the effects enter.

    Raises
    ------
    ArgumentError
        Where there is neither an intercept nor a slope.

    Examples
    --------
    >>> RandomEffects("site", slopes="features")
    RandomEffects(group='site', intercept=True, slopes='features', correlated=False, parameter='mu')
    """

    group: str
    intercept: bool = True
    slopes: str | Sequence[int | str] | None = None
    correlated: bool = False
    parameter: str = "mu"

    def __post_init__(self) -> None:
        if isinstance(self.slopes, str) and self.slopes != "features":
            raise ArgumentError(
                f"slopes={self.slopes!r} is not known: use 'features', a list of columns such as [0, 1], "
                "or None."
            )
        if not self.intercept and not self.slopes:
            raise ArgumentError(
                f"RandomEffects({self.group!r}) has neither an intercept nor slopes; set intercept=True "
                "or slopes."
            )


@dataclass(frozen=True)
class ScaleBias:
    """Group-specific scale and bias on the channels of a network's layers.

    The output h of each layer becomes (1 + gamma_c) h + b_c, with gamma_c and b_c a vector of one number per
    channel for each group c, gamma_c ~ Normal(0, tau_gamma) and b_c ~ Normal(0, tau_b), both tau learned.

    Parameters
    ----------
    layers : str or sequence of str
        Names of layers as in ``network.named_modules()``; ``nn.Linear`` and all convolutions.
    group : str
        The grouping factor.
    normalize : bool
        Whether h is first brought to mean 0 and sd 1 over the positions of each image and channel, as in the
        paper. Linear layers have no positions and are never normalised. A pretrained network expects what it
        was trained with: give False.

    Raises
    ------
    ArgumentError
        Where there are no layers, or one twice.

    Notes
    -----
    The network is read and changed by hooks that are gone after each pass; with gamma = b = 0 (the average
    group) what remains is the normalisation. Nguyen, Treacher, Montillo, TPAMI 45(7), 2023; the normalisation
    is that of Dumoulin, Shlens, Kudlur, "A learned representation for artistic style", ICLR 2017.

    Examples
    --------
    >>> ScaleBias(layers=["layers.0", "layers.4"], group="site")
    ScaleBias(layers=('layers.0', 'layers.4'), group='site', normalize=True)
    """

    layers: str | Sequence[str]
    group: str
    normalize: bool = True

    def __post_init__(self) -> None:
        layers = (self.layers,) if isinstance(self.layers, str) else self.layers
        if (
            not isinstance(layers, Sequence)
            or not layers
            or not all(isinstance(name, str) and name for name in layers)
        ):
            raise ArgumentError(
                f"layers={self.layers!r} of ScaleBias must name layers of the network, such as ['layers.0']."
            )
        if repeated := [name for i, name in enumerate(layers) if name in layers[:i]]:
            raise ArgumentError(f"ScaleBias names the layer {repeated[0]!r} twice; name it once.")
        if not isinstance(self.group, str) or not self.group:
            raise ArgumentError(f"group={self.group!r} of ScaleBias must name a grouping factor.")
        if not isinstance(self.normalize, bool):
            raise ArgumentError(f"normalize={self.normalize!r} of ScaleBias must be True or False.")
        object.__setattr__(self, "layers", tuple(layers))
