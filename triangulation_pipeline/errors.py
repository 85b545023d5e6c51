"""The base of this package's own errors."""


class PipelineError(Exception):
    """Something outside this program is at fault: a database, an object store, a webserver.

    The message is one sentence for a person. Wrong input is a ValueError instead.
    """
