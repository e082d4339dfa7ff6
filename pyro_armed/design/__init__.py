"""From formulas and data frames to the model's rows."""

from pyro_armed.design._encoded import Encoded
from pyro_armed.design._formula import FormulaDesign

__all__ = ["Encoded", "FormulaDesign"]
