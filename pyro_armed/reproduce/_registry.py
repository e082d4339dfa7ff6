"""The applications by name."""

from pyro_armed.reproduce._application import Application
from pyro_armed.reproduce._spirals import CONFOUNDED, SPIRALS

__all__ = ["APPLICATIONS"]

APPLICATIONS: dict[str, Application] = {one.name: one for one in (SPIRALS, CONFOUNDED)}
