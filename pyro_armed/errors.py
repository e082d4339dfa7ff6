"""Exceptions and warnings.

Every exception is also a builtin, so that ``except ValueError`` works for users who do not import this
module. Messages name the column, group or argument and say what mends the call.
"""

__all__ = [
    "ArgumentError",
    "ArmedError",
    "ArmedWarning",
    "CompilationWarning",
    "ConvergenceWarning",
    "DataError",
    "DistributedError",
    "FileFormatError",
    "FormulaError",
    "MissingDependencyError",
    "NotFittedError",
    "UnseenGroupError",
]


class ArmedError(Exception):
    """Base of all errors raised by pyro_armed."""


class ArgumentError(ArmedError, ValueError):
    """An argument has a value that cannot be used."""


class DataError(ArmedError, ValueError):
    """The data cannot be used as they are (missing values, wrong shape, wrong type)."""


class FormulaError(ArmedError, ValueError):
    """A formula cannot be understood, or names what the data do not have."""


class UnseenGroupError(DataError):
    """Rows belong to groups that were not in the training data."""


class NotFittedError(ArmedError, RuntimeError):
    """The model has to be fitted first."""


class DistributedError(ArmedError, RuntimeError):
    """Processes that train together have lost each other."""


class FileFormatError(ArmedError, ValueError):
    """A file is truncated, foreign or from an unsupported version."""


class MissingDependencyError(ArmedError, ImportError):
    """An optional package is needed for what was asked."""


class ArmedWarning(UserWarning):
    """Base of all warnings issued by pyro_armed."""


class ConvergenceWarning(ArmedWarning):
    """Inference has not converged, or its approximation is not to be trusted."""


class CompilationWarning(ArmedWarning):
    """Training steps cannot be compiled as asked for, and run in a slower way with the same results."""
