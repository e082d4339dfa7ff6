"""Networks of the library from their settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_armed.errors import ArgumentError
from pyro_armed.networks._autoencoder import AutoencoderClassifier
from pyro_armed.networks._builtin import CNN, MLP, BuiltIn
from pyro_armed.networks._common import sizes_of

# Names that a file may ask for: loading must not be able to reach any other class.
_CLASSES: dict[str, type[BuiltIn]] = {cls.__name__: cls for cls in (AutoencoderClassifier, CNN, MLP)}


def from_config(config: Mapping[str, Any]) -> BuiltIn:
    """Make a network from what its ``config()`` returned; weights are not part of it.

    Raises
    ------
    ArgumentError
        If the class is not one of the library's, or a setting is unknown or cannot be used.

    Examples
    --------
    >>> from pyro_armed.networks import MLP
    >>> from_config(MLP(hidden=(4,)).build(2, 1).config()).config()["built"]
    [[2], 1]
    """
    if not isinstance(config, Mapping):
        raise ArgumentError("a network's config must be a dict, as its config() returns.")
    settings = dict(config)
    name, built = settings.pop("class", None), settings.pop("built", None)
    if not isinstance(name, str) or name not in _CLASSES:
        raise ArgumentError(
            f"{name!r} is not a network that can be made from a config; known are {', '.join(_CLASSES)}."
        )
    cls = _CLASSES[name]
    unknown = sorted(str(key) for key in settings if key not in cls._settings)
    if unknown:
        raise ArgumentError(f"{name} has no setting(s) {', '.join(unknown)}.")
    network: Any = cls(**settings)
    if built is not None:
        if not isinstance(built, Sequence) or isinstance(built, str) or len(built) != 2:
            raise ArgumentError("'built' in a network's config must be [input shape, outputs].")
        shape = sizes_of(built[0], "input shape in 'built'")
        if name == "MLP" and len(shape) != 1:
            raise ArgumentError(f"an MLP's input shape in 'built' must have one entry, not {list(shape)}.")
        network.build_for(shape, built[1])
    return network
