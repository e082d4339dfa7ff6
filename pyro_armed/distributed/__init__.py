"""Training in several processes, on one machine or more.

`fit` is for a plain script that ``torchrun`` starts; `pyro_armed.lightning` has the same for Lightning. Every
process takes its own shard of the rows; the loss is per row of the whole data, so that gradients are averaged
over the processes; draws differ between them; only the first one writes files.
"""

from pyro_armed.distributed._fit import fit, fit_from
from pyro_armed.distributed._shards import Shard
from pyro_armed.distributed._task import Task

__all__ = ["Shard", "Task", "fit", "fit_from"]
