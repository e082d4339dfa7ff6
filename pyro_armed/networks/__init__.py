"""Networks that come with the library, and reading any network's last hidden activations from outside.

``MLP``, ``CNN`` and ``AutoencoderClassifier`` learn their input and output sizes from the data (``build``).
Every other function here takes any ``nn.Module`` and leaves its code, its weights and its mode as they were.
"""

from pyro_armed.networks._autoencoder import AutoencoderClassifier
from pyro_armed.networks._builtin import CNN, MLP, BuiltIn
from pyro_armed.networks._config import from_config
from pyro_armed.networks._layers import flattened, layer_outputs
from pyro_armed.networks._layout import channels_last, image_layers
from pyro_armed.networks._modulation import (
    changed_layers,
    keep_still,
    layer_shapes,
    scale_and_shift,
    still_parts,
    still_statistics,
)
from pyro_armed.networks._reading import (
    Pass,
    copy_network,
    count_parameters,
    features_and_output,
    find_output_layer,
    network_output,
    reinitialise,
    run_network,
    untouched,
)

__all__ = [
    "CNN",
    "MLP",
    "AutoencoderClassifier",
    "BuiltIn",
    "Pass",
    "changed_layers",
    "channels_last",
    "copy_network",
    "count_parameters",
    "features_and_output",
    "find_output_layer",
    "flattened",
    "from_config",
    "image_layers",
    "keep_still",
    "layer_outputs",
    "layer_shapes",
    "network_output",
    "reinitialise",
    "run_network",
    "scale_and_shift",
    "still_parts",
    "still_statistics",
    "untouched",
]
