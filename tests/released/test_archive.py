"""Checkpoints open without PyTorch and without running anything; damage is refused in one line, by its name."""

import json
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
from released.checkpoint_files import (
    STORAGES,
    Global,
    Made,
    Tensor,
    omegaconf,
    pickle_calling,
    write_archive,
    write_checkpoint,
    write_pickle_calling,
)

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles import Named, Record
from perturbdiff_jax.released.archive import StoredTensor, open_checkpoint

WEIGHTS = {
    "model.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "cov_encoder.bias": np.ones(3, np.float32),
}


def refused(path, read=False):
    with pytest.raises(RequestError) as caught:
        content = open_checkpoint(path)
        assert read, "opened"
        for tensor in content["state_dict"].values():
            tensor.read()
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.isprintable(), text
    return text


@pytest.mark.parametrize("case", ["case1", "case3"])
def test_recorded_checkpoints_equal_their_recorded_weights(shared, case):
    folder = shared / "golden" / case
    content = open_checkpoint(folder / "lightning.ckpt")
    recorded = np.load(folder / "params.npz")
    averaged, live = content["state_dict"], content["current_model_state"]
    assert list(averaged) == list(live) and set(averaged) == set(recorded.files)
    for name in recorded.files:
        ours = averaged[name].read()
        assert ours.dtype == averaged[name].dtype == recorded[name].dtype
        assert ours.shape == averaged[name].shape == recorded[name].shape
        assert ours.tobytes() == recorded[name].tobytes(), name
        assert live[name].read().shape == ours.shape
    assert any((live[name].read() != averaged[name].read()).any() for name in averaged)
    settings = content["hyper_parameters"]["cov_encoding_cfg"]
    wanted = json.loads((folder / "meta.json").read_text())["spec"]["pert_dict"]
    codes = settings.state["_content"]["pert_dict"]
    assert codes.state["_parent"] is settings
    assert {name: node.state["_val"] for name, node in codes.state["_content"].items()} == wanted


def test_a_written_checkpoint_opens_as_it_was_written(tmp_path):
    live = {name: array + 1 for name, array in WEIGHTS.items()}
    settings = {
        "model_cfg": {"steps": 1000, "names": ["a", None], "vocabulary": {np.str_("é"): 0, "b": 1}},
        "x": 3,
    }
    path = write_checkpoint(
        tmp_path / "a.ckpt", WEIGHTS, settings, live=live, root="other", epoch=7, more=[1]
    )
    content = open_checkpoint(str(path))
    assert content["epoch"] == 7 and content["more"] == [1] and content["global_step"] == 12
    for name in WEIGHTS:
        np.testing.assert_array_equal(content["state_dict"][name].read(), WEIGHTS[name])
        np.testing.assert_array_equal(content["current_model_state"][name].read(), live[name])
    assert content["averaging_state"]["n_averaged"].read() == 2
    assert content["optimizer_states"][0]["state"][0]["exp_avg"].shape == (2, 3)
    facts = content["hyper_parameters"]
    assert facts["x"] == 3
    assert facts["py_logger"].named == Named("logging", "getLogger")
    model = facts["model_cfg"]
    assert model.named == Named("omegaconf.dictconfig", "DictConfig")
    inner = model.state["_content"]
    assert inner["steps"].state["_val"] == 1000 and inner["steps"].state["_parent"] is model
    assert [node.state["_val"] for node in inner["names"].state["_content"]] == ["a", None]
    keys = list(inner["vocabulary"].state["_content"])
    assert keys == ["é", "b"] and [type(key) for key in keys] == [str, str]
    assert inner["names"].state["_metadata"].state["key_type"] == Named("builtins", "int")


@pytest.mark.parametrize("name", STORAGES)
def test_every_type_of_number(tmp_path, name):
    kind = ml_dtypes.bfloat16 if name == "bfloat16" else name
    arrays = {
        "full": (np.arange(12).reshape(3, 4) % 2).astype(kind),
        "single": np.array(1).astype(kind),
        "empty": np.zeros((0, 5), kind),
    }
    content = open_checkpoint(write_archive(tmp_path / "a.ckpt", {"state_dict": arrays}))
    for key, wanted in arrays.items():
        tensor = content["state_dict"][key]
        assert (
            isinstance(tensor, StoredTensor) and tensor.shape == wanted.shape and tensor.dtype == wanted.dtype
        )
        read = tensor.read()
        assert isinstance(read, np.ndarray) and read.dtype == wanted.dtype and read.shape == wanted.shape
        np.testing.assert_array_equal(read, wanted)
        assert read.flags.writeable and read.flags.c_contiguous


def test_views_share_their_storage(tmp_path):
    numbers = np.arange(24, dtype=np.float32)
    views = {
        "transposed": Tensor(numbers, 0, (6, 4), (1, 6)),
        "part": Tensor(numbers, 7, (2, 3), (6, 2)),
        "last": Tensor(numbers, 23, (), ()),
        "none": Tensor(numbers, 24, (0, 2), (2, 1)),
    }
    path = write_archive(tmp_path / "a.ckpt", {"state_dict": views})
    assert sum(name.startswith("archive/data/") for name in zipfile.ZipFile(path).namelist()) == 1
    read = {name: tensor.read() for name, tensor in open_checkpoint(path)["state_dict"].items()}
    np.testing.assert_array_equal(read["transposed"], numbers.reshape(4, 6).T)
    np.testing.assert_array_equal(read["part"], numbers.reshape(4, 6)[1:3, 1::2])
    assert read["last"] == 23 and read["none"].shape == (0, 2)


def test_parameters_are_tensors_and_an_older_file_has_no_byte_order(tmp_path):
    inner = np.ones((2, 2), np.float32)
    wrapped = Made(Global("torch._utils", "_rebuild_parameter"), (inner, True, {}))
    path = write_archive(tmp_path / "a.ckpt", {"state_dict": {"w": wrapped}}, byteorder=None)
    np.testing.assert_array_equal(open_checkpoint(path)["state_dict"]["w"].read(), inner)


def test_moments_of_the_optimizer_are_not_read(tmp_path):
    path = write_checkpoint(tmp_path / "a.ckpt", WEIGHTS, {})
    damaged = bytearray(path.read_bytes())
    moment = (WEIGHTS["model.weight"] ** 2).tobytes()
    at = damaged.find(moment)
    damaged[at + 8] ^= 1
    path.write_bytes(damaged)
    content = open_checkpoint(path)
    content["state_dict"]["model.weight"].read()
    with pytest.raises(RequestError, match="damaged"):
        content["optimizer_states"][0]["state"][0]["exp_avg_sq"].read()


@pytest.mark.parametrize("how", ["reduce", "stack_global", "inst", "obj"])
@pytest.mark.parametrize(
    ("module", "name", "form"),
    [("posix", "system", "touch {}"), ("builtins", "exec", "open({!r}, 'w')"), ("os", "mkdir", "{}")],
)
def test_a_checkpoint_that_calls_is_refused_and_nothing_is_called(tmp_path, module, name, form, how):
    made = tmp_path / "made"
    path = write_pickle_calling(tmp_path / "bad.ckpt", module, name, form.format(str(made)), how=how)
    assert refused(path) == f"{path}: asks to call {module}.{name}; nothing that a file contains is executed."
    assert not made.exists()


def test_a_call_hidden_in_an_honest_checkpoint(tmp_path):
    made = tmp_path / "made"
    call = Made(Global("posix", "system"), (f"touch {made}",))
    for where in (
        {"state_dict": WEIGHTS | {"model.more": call}},
        {"callbacks": {"EarlyStopping": call}},
        {"hyper_parameters": {"model_cfg": omegaconf({"steps": call})}},
        {"x": Made(Global("torch._utils", "_rebuild_tensor_v2"), (call, 0, (1,), (1,), False, {}))},
        {"x": Made(Global("collections", "OrderedDict"), ([["a", call]],))},
        {"x": Made(Global("omegaconf.base", "Metadata"), (), {"key": call}, new=True)},
    ):
        path = write_checkpoint(tmp_path / "a.ckpt", WEIGHTS, where.pop("hyper_parameters", {}), **where)
        assert "asks to call posix.system" in refused(path)
        assert not made.exists()


def spoiled(tmp_path, **changes):
    return write_archive(tmp_path / "a.ckpt", {"state_dict": dict(WEIGHTS)}, **changes)


def test_files_that_are_something_else(tmp_path):
    file = tmp_path / "x.ckpt"
    assert "no such file" in refused(file)
    assert "a directory" in refused(tmp_path)
    for content, word in [
        (b"", "empty (0 bytes)"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before version 1.6"),
        ((60).to_bytes(8, "little") + b'{"a":{}}' + b" " * 60, "safetensors"),
        (pickle_calling("posix", "system", f"touch {tmp_path}/made"), "not a checkpoint of PyTorch"),
        (b"PK\x03\x04 and then nothing", "truncated or damaged zip"),
        (b"\x89HDF\r\n\x1a\n", "not a checkpoint of PyTorch"),
    ]:
        file.write_bytes(content)
        assert word in refused(file)
    assert not (tmp_path / "made").exists()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b/data.pkl", b"N.")
    assert "0 members data.pkl" in refused(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")
    assert "2 members data.pkl" in refused(file)


def test_damaged_archives(tmp_path):
    whole = spoiled(tmp_path).read_bytes()
    file = tmp_path / "cut.ckpt"
    for length in (100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "truncated or damaged zip" in refused(file)
    assert "byte order is 'big'" in refused(spoiled(tmp_path, byteorder=b"big"))
    assert "no member archive/data/1" in refused(spoiled(tmp_path, leave_out=("data/1",)))
    assert "0 members data.pkl" in refused(spoiled(tmp_path, leave_out=("data.pkl",)))
    text = refused(spoiled(tmp_path, instead={"data/0": b"\0" * 20}))
    assert "archive/data/0 has 20 bytes; 6 numbers of torch.FloatStorage take 24" in text
    assert "has 28 bytes" in refused(spoiled(tmp_path, instead={"data/0": b"\0" * 28}))
    assert "TorchScript" in refused(spoiled(tmp_path, instead={"constants.pkl": b")."}))
    flipped = bytearray(whole)
    flipped[whole.find(WEIGHTS["model.weight"].tobytes()) + 5] ^= 4
    file.write_bytes(flipped)
    assert "archive/data/0 is damaged" in refused(file, read=True)
    flipped = bytearray(whole)
    flipped[whole.find(b"model.weight")] ^= 4
    file.write_bytes(flipped)
    assert "archive/data.pkl is damaged" in refused(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"}.")
    assert "packed or encrypted" in refused(file)


def test_contents_that_are_no_checkpoint(tmp_path):
    file = tmp_path / "a.ckpt"
    assert "holds a list" in refused(write_archive(file, [1]))
    module = Made(Global("torch.nn.modules.linear", "Linear"), (), {"training": True}, new=True)
    assert "holds a torch.nn.modules.linear.Linear" in refused(write_archive(file, module))
    assert "exhausted" in refused(write_archive(file, b"\x80\x02}"))
    other = write_archive(file, {"x": Made(Global("some.project", "Thing"), (1,), new=True)})
    assert isinstance(open_checkpoint(other)["x"], Record)  # another project's object is no harm, and no use


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (1, (2, 2), (2, 1)),
        (4, (1,), (1,)),
        (0, (2,), (4,)),
        (0, (10**9,), (0,)),
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2,), (0.5,)),
        (0, (1,) * 40, (1,) * 40),
        (0, (0, 2**39, 2**39), (1, 1, 1)),
        (0, (1,), (2**70,)),
        ("0", (1,), (1,)),
    ],
)
def test_tensors_reach_no_further_than_their_storage(tmp_path, offset, shape, stride):
    tensor = Tensor(np.arange(4, dtype=np.float32), offset, shape, stride)
    text = refused(write_archive(tmp_path / "a.ckpt", {"state_dict": {"w": tensor}}))
    assert "tensor" in text


def test_references_that_are_no_storages(tmp_path):
    file = tmp_path / "a.ckpt"
    for data, word in [
        (b"K\x01Q.", "no tensor"),
        (b"Pkey\n.", "no tensor"),
        (b"(X\x07\x00\x00\x00storageNNNNtQ.", "a damaged reference"),
        (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nV0\nVcpu\nK\x04tQ.", "no member archive/data/0"),
        (
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nV../x\nVcpu\nK\x04tQ.",
            "no member archive/data/../x",
        ),
        (b"(X\x07\x00\x00\x00storagectorch\nComplexFloatStorage\nV0\nVcpu\nK\x04tQ.", "ComplexFloatStorage"),
        (b"(X\x07\x00\x00\x00storagecposix\nFloatStorage\nV0\nVcpu\nK\x04tQ.", "posix.FloatStorage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", "a damaged tensor"),
        (b"ctorch._utils\n_rebuild_parameter\n(NtR.", "a damaged parameter"),
        (b"ctorch._utils\n_rebuild_wrapper\n(NtR.", "asks to call torch._utils._rebuild_wrapper"),
    ]:
        assert word in refused(write_archive(file, data))


def test_flipped_bytes_bring_nothing_but_refusals(tmp_path):
    draw = random.Random(0)
    whole = write_checkpoint(
        tmp_path / "a.ckpt", WEIGHTS, {"cfg": {"a": [1, "b"]}}, live=WEIGHTS
    ).read_bytes()
    file = tmp_path / "b.ckpt"
    outcomes = {"read": 0, "refused": 0}
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3, 9])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data if turn % 5 else data[: draw.randrange(len(data))])
        try:
            tensors = open_checkpoint(file)["state_dict"]
            for name, tensor in tensors.items():
                assert (tensor.read() == WEIGHTS[name]).all(), "what is read is what was written"
            outcomes["read"] += 1
        except RequestError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
    assert outcomes["refused"] > 150 and outcomes["read"] > 0
