"""The errors a user can meet. A message says the rule, the thing, the value, the limit and the way out."""


class PlannerError(Exception):
    """Anything this project refuses, in words meant for its user."""


class BadInput(PlannerError, ValueError):
    """An input that breaks a rule: a malformed file, an illegal degree, a contradictory pin."""


class UnknownName(PlannerError, LookupError):
    """A name that is in no catalogue; the message lists the nearest ones."""
