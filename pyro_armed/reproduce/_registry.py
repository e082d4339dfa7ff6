"""The applications by name."""

from pyro_armed.reproduce._application import Application
from pyro_armed.reproduce._cells import CELLS
from pyro_armed.reproduce._conversion import CONVERSION
from pyro_armed.reproduce._diagnosis import DIAGNOSIS
from pyro_armed.reproduce._letters import LETTERS
from pyro_armed.reproduce._spirals import CONFOUNDED, SPIRALS

__all__ = ["APPLICATIONS"]

APPLICATIONS: dict[str, Application] = {
    one.name: one for one in (SPIRALS, CONFOUNDED, CONVERSION, DIAGNOSIS, CELLS, LETTERS)
}
