"""Pickles are read as data: every protocol as Python reads it, objects as inert records."""

import collections
import pickle

import numpy as np
import pytest
from pickled_things import PLAIN, Node

from perturbdiff_jax.pickles import Named, Record, read_pickle


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_python_reads(protocol):
    data = pickle.dumps(PLAIN, protocol)
    again = read_pickle(data, where="some.pkl")
    assert again == PLAIN
    assert repr(again) == repr(pickle.loads(data))  # types and order, too
    assert read_pickle(pickle.dumps(None, protocol), where="some.pkl") is None


@pytest.mark.parametrize("protocol", range(6))
def test_collections_become_plain_containers(protocol):
    content = [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, x=[1]),
        collections.Counter("aab"),
        collections.deque([1, 2], maxlen=3),
    ]
    assert read_pickle(pickle.dumps(content, protocol), where="f") == [
        {"b": 1, "a": 2},
        {"x": [1]},
        {"a": 2, "b": 1},
        [1, 2],
    ]
    marked = collections.OrderedDict(a=1)
    marked._metadata = "torch hangs attributes on its dictionaries"
    assert read_pickle(pickle.dumps(marked, protocol), where="f") == {"a": 1}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_numpy_values(protocol, core):
    scalars = [
        np.str_("é1"),
        np.str_(""),
        np.float32(0.1),
        np.int64(-3),
        np.uint8(7),
        np.bool_(True),
        np.bytes_(b"q"),
    ]
    arrays = [
        np.array(["g1", "gene2", ""]),
        np.array(["g1", None, 3, [1, 2]], dtype=object),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(2.5),
        np.zeros((0, 3), np.float16),
        np.array([True, False]),
        np.array(["a", "bc"], dtype=">U2"),
    ]
    data = pickle.dumps([scalars, arrays, {np.str_("k"): 1}, arrays[0]], protocol)
    if protocol < 4:  # as numpy 1 wrote it
        data = data.replace(b"numpy._core", core.encode())
    plain, read, keyed, again = read_pickle(data, where="f")
    assert plain == [value.item() for value in scalars]
    assert [type(value) for value in plain] == [type(value.item()) for value in scalars]
    assert [type(key) for key in keyed] == [str]
    for ours, theirs in zip(read, arrays, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.tolist() == theirs.tolist()
    assert again is read[0], "what the file holds once is one object"


class Slotted:
    __slots__ = ("x", "y")


class Bag(dict):
    pass


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_records_with_their_cycles(protocol):
    node = read_pickle(pickle.dumps(Node(), protocol), where="f")
    assert type(node) is Record and node.named == Named(Node.__module__, "Node")
    (child,) = node.state["children"]
    assert child.state["parent"] is node and child.state["children"] == []
    assert repr(child) == f"<Record {Node.__module__}.Node>"
    bag = Bag(a=1)
    bag.name = "n"
    record = read_pickle(pickle.dumps([bag], protocol), where="f")[0]
    assert record.state == {"name": "n"} and "a" in (record.items or record.args[0])
    if protocol >= 2:
        slotted = Slotted()
        slotted.x = 1
        assert read_pickle(pickle.dumps(slotted, protocol), where="f").state == {"x": 1}
    assert read_pickle(pickle.dumps(Node, protocol), where="f") == Named(Node.__module__, "Node")


def test_a_list_may_hold_itself():
    data = pickle.dumps(PLAIN["many"][:3])
    assert read_pickle(data, where="f") == [0, 1, 2]
    loop = []
    loop.append(loop)
    again = read_pickle(pickle.dumps(loop), where="f")
    assert again[0] is again
    assert read_pickle(b"K\x01q\x05K\x02q\x09h\x05\x87.", where="f") == (1, 2, 1)  # entries in no order


def test_python_2_names_and_objects_with_keywords():
    named = read_pickle(b"\x80\x02c__builtin__\nlong\nq\x00c__builtin__\ndict\n\x86.", where="f")
    assert named == (Named("builtins", "int"), Named("builtins", "dict"))
    keyed = read_pickle(b"\x80\x04cmine\nThing\n(K\x01t}X\x01\x00\x00\x00aK\x02s\x92.", where="f")
    assert keyed.named == Named("mine", "Thing") and keyed.args == (1, {"a": 2})


def test_constructors_of_training_checkpoints_are_records():
    import argparse
    import datetime
    import logging
    import pathlib
    import typing
    import uuid

    content = [
        logging.getLogger("a.b"),
        pathlib.PurePosixPath("/a/b"),
        datetime.timedelta(1),
        uuid.UUID(int=1),
        argparse.Namespace(a=1),
        typing.Optional[int],  # noqa: UP045
        type(None),
        range(3),
    ]
    for protocol in range(2, 6):
        records = read_pickle(pickle.dumps(content, protocol), where="f")
        assert all(type(record) is Record for record in records)
        assert records[0].args == ("a.b",) and records[0].named == Named("logging", "getLogger")
    data = b"\x80\x04clightning.pytorch.trainer.states\nTrainerFn\nX\x03\x00\x00\x00fit\x85R."
    assert read_pickle(data, where="f").args == ("fit",)
    data = b"c__builtin__\ngetattr\n(clightning.states\nTrainerFn\nVFITTING\ntR."
    assert read_pickle(data, where="f").named == Named("lightning.states", "TrainerFn")
