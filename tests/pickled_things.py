"""What the tests of pickles pickle: plain values of every kind, and an object that is part of a cycle."""

PLAIN = {
    "texts": ["", "é", "a\nb\\u0041'\"", "x" * 300, "\U0001f9ec"],
    "numbers": [0, 1, 255, 256, 65536, -1, 2**31, -(2**31), 2**64, -(2**2100), 1.5, -0.0, float("inf"), True],
    "bytes": [b"", b"\x00\xff", b"x" * 300, bytearray(b"abc"), bytearray()],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": [set(), {1, "a", (2, 3)}, frozenset(), frozenset({1, 2})],
    "dicts": [{}, {1: {2: None}}, {(1, "a"): [], None: 0, 1.5: 1, b"k": 2}],
    "complex": 1 - 2j,
    "many": list(range(2500)),
    ("deep",): [[[[[[]]]]]],
}


class Node:
    """Refers to its parent, as the containers of checkpoints' settings do."""

    def __init__(self, parent=None):
        self.parent, self.children = parent, [] if parent else [Node(self)]
