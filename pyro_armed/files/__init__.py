"""Models in files that hold numbers and JSON, and nothing that could run.

One safetensors file: all tensors and arrays, and in its header's metadata a JSON description of the rest.
"""

from pyro_armed.files._model import restore, save
from pyro_armed.files._whole import write_netcdf, write_whole

__all__ = ["restore", "save", "write_netcdf", "write_whole"]
