"""How good a model is on rows that it was not fitted to, of groups that it knows and of new ones."""

from pyro_armed.cross_validation._compare import compare
from pyro_armed.cross_validation._conformal import cross_conformal
from pyro_armed.cross_validation._predict import cross_predict
from pyro_armed.cross_validation._scores import cross_validate, score_rows

__all__ = ["compare", "cross_conformal", "cross_predict", "cross_validate", "score_rows"]
