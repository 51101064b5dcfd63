"""The one kind of exception that is shown to the user as a single line."""


class UserError(Exception):
    """A mistake that the user can correct, described in one line.

    The message names the key or path, the value found, what is allowed and what to do next. The scripts print it as
    ``error: ...`` on standard error and exit with code 2; no traceback is shown.
    """
