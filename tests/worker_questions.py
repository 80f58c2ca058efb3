"""What tests ask a worker process; imports nothing that the question is about."""

import os
import sys


def modules() -> list[str]:
    """What the process that is asked has imported."""
    return sorted(sys.modules)


def leave() -> None:
    """Ends the process that is asked."""
    os._exit(3)
