"""The one exception for what a user can mend: its text names the file or key and the remedy, in one line."""


class InputError(Exception):
    """A file, a value or a command that cannot be used. Commands print it as one line, without a traceback, and exit with 2."""
