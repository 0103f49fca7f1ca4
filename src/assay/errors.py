"""The one exception that means: what was asked cannot be done, and the message says what to change."""


class BadInput(ValueError):
    """A mistake in what the user passed; the message names it, what was expected, and the fix.

    The command line shows the message alone and ends with exit code 2.
    """
