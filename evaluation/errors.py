"""The one error of the evaluation that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """One line that names the value, the limit and the remedy; a command prints it and exits 2."""
