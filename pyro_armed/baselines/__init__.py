"""One learning problem, several ways to deal with its groups, side by side."""

from pyro_armed.baselines._compare import compare, fits, score
from pyro_armed.baselines._configurations import BASELINES, Baseline
from pyro_armed.baselines._fitted import Fitted
from pyro_armed.baselines._group_input import GroupInput
from pyro_armed.baselines._meta_learning import MetaLearning, train_mldg
from pyro_armed.baselines._task import Rows, Task

__all__ = [
    "BASELINES",
    "Baseline",
    "Fitted",
    "GroupInput",
    "MetaLearning",
    "Rows",
    "Task",
    "compare",
    "fits",
    "score",
    "train_mldg",
]
