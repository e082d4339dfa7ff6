"""NUTS on the Pyro model: the reference that variational inference is judged by.

The density is that of the Pyro model, taken from its trace. Its gradient is recorded once as a graph of
tensor operations, which spares Pyro's handlers and autograd's bookkeeping at each leapfrog step. A short
mean-field fit gives the sampler its units: it starts with a mass matrix of about the right size, which
halves the leapfrog steps of the warm-up.
"""

from pyro_armed.sampling._density import Density
from pyro_armed.sampling._nuts import CONDITIONS_ON, sample_nuts

__all__ = ["CONDITIONS_ON", "Density", "sample_nuts"]
