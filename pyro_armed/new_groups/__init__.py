"""Effects of groups that training has not seen, one mode for each answer to what is known about them.

A mode is a `Mode`: it makes the effects of the new groups for every draw of a chain, `extend_chain` appends
them to the tables of group effects, and rows point to them by code. Everything after that is the same for
seen and new groups, and nothing outside this package asks which mode it is.

To add a mode, subclass `Mode` in a module of its own, here or beside what it is made of (as
`pyro_armed.membership` does): ``name``, ``effects``, and where it does not treat all groups alike
``received``. List the name in `MODES`. A mode without settings goes into ``_PLAIN``, from which `mode_of`
takes it by name; one with settings is made where those are at hand, in ``ARMED._mode``.
"""

from pyro_armed.new_groups._adapt import Adapt
from pyro_armed.new_groups._modes import (
    MODES,
    Marginal,
    Mode,
    Population,
    Refuse,
    draw_marginal,
    extend_chain,
    mode_of,
    row_modes,
)

__all__ = [
    "MODES",
    "Adapt",
    "Marginal",
    "Mode",
    "Population",
    "Refuse",
    "draw_marginal",
    "extend_chain",
    "mode_of",
    "row_modes",
]
