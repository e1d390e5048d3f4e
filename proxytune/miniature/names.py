"""The words of the world: a few hundred invented names, one token each, and short lists of common words."""

# ruff: noqa: SIM905 (lists of words are read as words)
from __future__ import annotations

import random

ONSETS = "b br c d dr f g gr h k kr l m n p r s st t tr v w z".split()
VOWELS = "a e i o u".split()
CODAS = "l m n r s th x".split()

DISHES = """porridge dumplings stew noodles pancakes curry chowder pickles omelette pudding gnocchi risotto lentils
ravioli sausage tart crumble broth goulash cutlets""".split()
SPORTS = """rowing fencing archery wrestling cricket polo curling sailing boxing skating climbing cycling diving golf
hockey judo karate rugby squash tennis""".split()
FEARS = """thunder mirrors bells smoke ladders candles feathers drums kites lanterns umbrellas whistles balloons clocks
ropes pepper snow wax glass silk velvet copper honey vinegar chalk tar dust sand ink mud""".split()
GOODS = "coins apples shells stamps marbles pears beads buttons".split()
BUILDINGS = "museum bridge harbor theater bakery library tunnel market".split()
PLACES = "highlands lowlands uptown downtown suburbs outskirts valley coast islands plains marshes hills".split()
TRADES = """baker pilot judge poet farmer dentist sailor miner tailor painter barber clerk nurse plumber teacher singer
drummer jeweler carpenter gardener librarian mechanic weaver florist""".split()
DEEDS = "opened closed painted bought".split()
OPINIONS = "praised mocked visited ignored".split()

DOMAINS: dict[str, dict[str, list[str]]] = {
    "biology": {
        "habitat": "swamp desert forest tundra reef cave meadow jungle".split(),
        "diet": "moss nectar fish insects seeds roots fruit plankton".split(),
    },
    "chemistry": {
        "color": "crimson amber violet teal ivory indigo scarlet olive".split(),
        "odor": "almond garlic mint rotten sweet sour burnt floral".split(),
    },
    "law": {
        "court": "county federal tribal maritime military tax juvenile supreme".split(),
        "penalty": "fine prison exile warning probation service suspension forfeit".split(),
    },
    "geology": {
        "luster": "metallic waxy pearly greasy glassy dull silky resinous".split(),
        "crystal": "cubic hexagonal trigonal monoclinic triclinic tetragonal rhombic amorphous".split(),
    },
}


def invent(count: int, rng: random.Random, taken: set[str]) -> list[str]:
    """`count` pronounceable names that are not in `taken`, which they join."""
    names: list[str] = []
    while len(names) < count:
        syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(2)]
        name = "".join(syllables) + rng.choice(CODAS)
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names
