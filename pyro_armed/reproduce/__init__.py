"""The applications of the ARMED paper: each a table, pictures and a posterior, on data that anyone can have.

``pyro-armed reproduce NAME`` runs one of them; so does `run`.
"""

from pyro_armed.reproduce._application import Application, Problem
from pyro_armed.reproduce._run import APPLICATIONS, Reproduction, find, run

__all__ = ["APPLICATIONS", "Application", "Problem", "Reproduction", "find", "run"]
