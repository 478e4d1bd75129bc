"""`python -m tests.simulation PROFILE SEED [COUNT]`: play a seed again with its trace; or many, naming the broken."""

from __future__ import annotations

import sys

from .profiles import PROFILES
from .world import Broken, play, shown


def main(arguments: list[str]) -> int:
    """0 where every seed kept the laws."""
    if len(arguments) not in (2, 3) or arguments[0] not in PROFILES:
        print(f"{__doc__}\nProfiles: {', '.join(PROFILES)}.", file=sys.stderr)
        return 2
    profile, seed = PROFILES[arguments[0]], int(arguments[1])
    if len(arguments) == 2:
        try:
            world, broken = play(profile, seed), None
        except Broken as found:
            world, broken = found.world, found
        for one in world.kernel.trace:
            print(shown(one))
        print(f"{profile.name} {seed}: trace {world.kernel.trace_hash()}, {dict(world.laws.seen)}")
        if broken is not None:
            print(str(broken).partition("\n")[0])
        return broken is not None
    bad = 0
    for one_seed in range(seed, seed + int(arguments[2])):
        try:
            play(profile, one_seed)
        except Broken as found:
            bad += 1
            print(f"{profile.name} {one_seed}: {str(found).partition(chr(10))[0]}")
    print(f"{bad} of {arguments[2]} seeds broke a law")
    return bad > 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
