"""Which of the environment's variables may travel to other machines: addresses and settings, never credentials.

What a job or a worker is given by Ray is written to Ray's logs.
"""

from collections.abc import Mapping

SECRET = ("SECRET", "ACCESS_KEY", "TOKEN", "PASSWORD")
"""What the name of a variable that holds a credential has in it."""


def without_secrets(env: Mapping[str, str], *, prefixes: tuple[str, ...]) -> dict[str, str]:
    """The variables of `env` whose names begin with one of `prefixes`, but for credentials."""
    return {name: value for name, value in env.items()
            if name.startswith(prefixes) and not any(word in name for word in SECRET)}
