"""Networks that come with the library, and reading any network's last hidden activations from outside.

``MLP`` and ``CNN`` learn their input and output sizes from the data (``build``). Every other function here
takes any ``nn.Module`` and leaves its code, its weights and its mode as they were.
"""

from pyro_armed.networks._builtin import CNN, MLP, from_config
from pyro_armed.networks._layers import flattened, layer_outputs
from pyro_armed.networks._reading import (
    copy_network,
    count_parameters,
    features_and_output,
    find_output_layer,
    network_output,
    reinitialise,
    untouched,
)

__all__ = [
    "CNN",
    "MLP",
    "copy_network",
    "count_parameters",
    "features_and_output",
    "find_output_layer",
    "flattened",
    "from_config",
    "layer_outputs",
    "network_output",
    "reinitialise",
    "untouched",
]
