"""Which seen groups a new group is like, told from its rows without their responses.

A classifier q(group | x) is trained on some of the training rows. On the others it is calibrated, it is
learned how much the rows of one group say together, and when none of the seen groups would be of use. A new
group's effects are then, in each posterior draw, those of a seen group or a draw from Normal(0, Sigma), with
these probabilities. The third part of ARMED (Nguyen, Treacher, Montillo, TPAMI 45(7), 2023) is such a
classifier without the last three.
"""

from pyro_armed.membership._factor import FactorMembership, fit_factor
from pyro_armed.membership._mode import Membership, fit_membership

__all__ = ["FactorMembership", "Membership", "fit_factor", "fit_membership"]
