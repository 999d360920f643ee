"""Pickles that ask for something or are damaged: nothing is called, one line says what it was."""

import collections
import pickle
import pickletools
import random
import struct

import numpy as np
import pytest
from pickled_things import PLAIN, Node
from released.checkpoint_files import pickle_calling, write_pickle_calling

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles import Call, Named, read_pickle
from perturbdiff_jax.pickles.read import CONSTANTS, HANDLERS


def refused(data, **options):
    with pytest.raises(RequestError) as caught:
        read_pickle(data, where="some.pkl", **options)
    text = str(caught.value)
    assert text.startswith("some.pkl: ") and text.isprintable() and len(text) < 300, text
    return text


CALLS = [
    ("posix", "system", ["touch {}"]),
    ("os", "mkdir", ["{}"]),
    ("builtins", "exec", ["open({!r}, 'w')"]),
    ("builtins", "eval", ["open({!r}, 'w')"]),
    ("__builtin__", "exec", ["open({!r}, 'w')"]),
    ("builtins", "open", ["{}", "w"]),
    ("io", "open", ["{}", "w"]),
]


@pytest.mark.parametrize("how", ["reduce", "stack_global", "inst", "obj"])
@pytest.mark.parametrize(("module", "name", "args"), CALLS, ids=lambda value: str(value)[:12])
def test_nothing_is_called(tmp_path, module, name, args, how):
    made = tmp_path / "made"
    args = [arg.format(str(made)) for arg in args]
    file = write_pickle_calling(tmp_path / "bad.pkl", module, name, *args, how=how)
    text = refused(file.read_bytes())
    named = f"{module.replace('__builtin__', 'builtins')}.{name}"
    assert text == f"some.pkl: asks to call {named}; nothing that a file contains is executed."
    assert not made.exists()
    if (
        how != "stack_global" or module != "__builtin__"
    ):  # a name of Python 2, for which this form came too late
        pickle.loads(file.read_bytes())  # the file is as bad as it is meant to be
        assert made.exists()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (pickle_calling("functools", "partial", "x"), "functools.partial"),
        (pickle_calling("torch", "load", "x"), "torch.load"),
        (pickle_calling("torch.hub", "load", "x"), "torch.hub.load"),
        (
            pickle_calling("omegaconf.omegaconf", "OmegaConf.register_new_resolver", "x"),
            "register_new_resolver",
        ),
        (pickle_calling("torch.storage", "_load_from_bytes", b"x"), "torch.storage._load_from_bytes"),
        (pickle_calling("numpy", "load", "x"), "numpy.load"),
        (pickle_calling("builtins", "type", "x"), "builtins.type"),
        (pickle_calling("collections", "ChainMap", "x"), "collections.ChainMap"),
        (b"cbuiltins\ngetattr\n(cbuiltins\nobject\nVexec\ntR.", "builtins.getattr"),
        (b"coperator\ngetitem\n(cos\nenviron\nVHOME\ntR.", "operator.getitem"),
        (b"clogging\ngetLogger\n(tR(Vrm\ntR.", "made (logging.getLogger)"),  # calls what a call gave
        (b"}(K\x01tR.", "made (dict)"),
        (b"cos\nenviron\n}VA\nVB\nsb.", "asks to change os.environ"),
        (b"cos\nenviron\nVA\nVB\ns.", "asks to change os.environ"),
        (b"\x82\x07.", "entry 7 of Python's extension registry"),
        (b"\x97.", "a buffer outside the file"),
        (b"Pkey\n.", "data outside the file"),
        (b"K\x01Q.", "data outside the file"),
        (b"(ios\nline\nbreak\n.", "os.line"),
        (b"\x8c\x01o\x8c\x04a\nb\x07\x93)R.", r"asks to call o.a\nb\x07"),
        (b"\x8c\x01o\x8c\xfa" + b"n" * 250 + b"\x93)R.", "nnn..."),
    ],
)
def test_every_other_request_is_refused_by_its_name(data, word):
    assert word in refused(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "the file is empty"),
        (b"\x80\x04", "exhausted before seeing STOP"),
        (b"not a pickle\n", "damaged, or not a pickle"),
        (b"\xfe.", "unknown"),
        (b"\x80\x09N.", "protocol 9"),
        (b"h\x05.", "entry 5 of its memo, which was never written"),
        (b".", "ends with other than one value"),
        (b"NN.", "ends with other than one value"),
        (b"(N.", "ends with other than one value"),
        (b"00.", "takes more from its stack"),
        (b"K\x01\x86.", "takes more from its stack"),
        (b"K\x01e.", "takes more from its stack"),
        (b"q\x00.", "takes more from its stack"),
        (b"}]K\x01s.", "a list as a dictionary key"),
        (b"}(]tK\x01s.", "a list as a dictionary key"),
        (b"\x8f(}\x90.", "a dict as a dictionary key"),
        (b"(]\x91.", "a list as a dictionary key"),
        (b"(K\x01d.", "a dictionary key without its value"),
        (b"K\x01K\x02K\x03s.", "fills a int as a dictionary"),
        (b"N]a.", "fills a NoneType as a list"),
        (b"](K\x01\x90.", "fills a list as a set"),
        (b"]}b.", "fills a list as a object"),
        (b"K\x01K\x02\x93.", "a name that is not text"),
        (b"cm\nC\n]\x81.", "an object without its arguments"),
        (b"K\x01)\x81.", "an object of a class that is a int"),
        (b"cm\nC\n]R.", "a call without its arguments"),
        (b"cm\nC\n)\x81}b}b.", "gets its attributes twice"),
        (b"cm\nC\n)\x81K\x01aK\x01K\x02s.", "both as a list and as a dictionary"),
        (b"]" * 1000 + b"a" * 999 + b".", "nested deeper than 200 levels"),
        (b"N" + b"\x85" * 100_000 + b".", "nested deeper than 200 levels"),
        (b"}N" + b"\x85" * 100_000 + b"Ns.", "a dictionary key of more than"),
        (b"}N" + b"2\x86" * 100 + b"Ns.", "a dictionary key of more than"),  # 2**100 parts
        (b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x000c_codecs\nencode\nq\x010]("
         + b"h\x01(h\x00Vlatin1\ntR" * 50 + b"e.", "copies its parts over and over"),
        (pickle_calling("builtins", "bytearray", 10**15), "bytes out of int"),
        (pickle_calling("builtins", "bytes", "x", "utf-7"), "unknown coding"),
        (pickle_calling("_codecs", "encode", "x", "zip"), "unknown coding"),
        (pickle_calling("builtins", "list", 10**15), "a list is needed, found int"),
        (pickle_calling("builtins", "set", [[]]), "a list as a dictionary key"),
        (pickle_calling("collections", "OrderedDict", [1]), "damaged"),
        (pickle_calling("builtins", "complex", "1+2j"), "complex"),
        (pickle_calling("numpy._core.multiarray", "scalar", 1, b""), "without its type"),
    ],
)  # fmt: skip
def test_damage_is_refused_in_one_line(data, word):
    assert word in refused(data)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (b"U2", b"V2", "numpy array of type 'V2'"),
        (b"U2", b"U3", "shape and values disagree"),
        (b"K\x02\x85", b"K\x03\x85", "shape and values disagree"),
        (b"K\x02\x85", b"Nq\x63", "damaged"),
        (b"U2", b"U0", "shape and values disagree"),
        (b"a\x00\x00\x00b", b"a\x00\x12\x00b", "characters that do not exist"),
    ],
)
def test_damaged_numpy_arrays(before, after, word):
    data = pickle.dumps(np.array(["ab", "c"]), 4)
    assert data.count(before) == 1
    assert word in refused(data.replace(before, after))


def test_outside_data_and_calls_are_given_by_the_reader_of_the_file():
    data = b"(X\x01\x00\x00\x00aK\x07tQcmine\nmake\n(K\x01tR\x86."
    asked = []

    def build(call):
        asked.append(call)
        return "made" if call.named.module == "mine" else NotImplemented

    assert read_pickle(data, where="f", persistent=lambda key: key[1], build=build) == (7, "made")
    assert asked == [Call(Named("mine", "make"), (1,))]
    assert "posix.system" in refused(pickle_calling("posix", "system", "x"), build=build)


def test_every_instruction_is_known():
    assert {opcode.name for opcode in pickletools.opcodes} == set(HANDLERS) | CONSTANTS


def test_damaged_bytes_bring_nothing_but_refusals():
    draw = random.Random(0)
    whole = [
        pickle.dumps([PLAIN | {"many": 0}, Node(), np.array(["a", "b"]), np.float32(1)], p) for p in range(6)
    ]
    seen = collections.Counter()
    for turn in range(1500):
        data = bytearray(whole[turn % 6])
        if turn % 5 == 0:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.choice([1, 2, 8])):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            read_pickle(bytes(data), where="f")
            seen["read"] += 1
        except RequestError as error:
            assert str(error).isprintable()
            seen["refused"] += 1
    assert seen["refused"] > 1000


def test_huge_lengths_take_no_memory():
    assert "damaged" in refused(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.")
    assert "damaged" in refused(b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"abc.")
    assert read_pickle(b"K\x01r\xff\xff\xff\xff.", where="f") == 1
