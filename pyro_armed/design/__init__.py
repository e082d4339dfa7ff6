"""From formulas and data frames to the model's rows."""

from pyro_armed.design._encoded import Encoded
from pyro_armed.design._formula import FormulaDesign
from pyro_armed.design._streamed import SAMPLE, StreamedDesign

__all__ = ["SAMPLE", "Encoded", "FormulaDesign", "StreamedDesign"]
