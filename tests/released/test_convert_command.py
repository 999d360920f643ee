"""`perturbdiff convert` on the command line: what is wrong is one line and leaves nothing, a look is a table."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from checkpoint_files import Global, Made, write_pickle_calling
from recorded_files import convert, tensors, write

from perturbdiff_jax.bundle import read_bundle


def refused(folder, *words):
    """stderr of a refusal: exit code 2, one or two lines, and `folder` as it was."""
    before = listing(folder)
    code, _, err = convert(*words)
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err
    assert len(err.splitlines()) <= 2 and listing(folder) == before
    return err


def listing(folder):
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*"))


def truncated(path, kind):
    data = write(path, kind).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def altered(path, kind):
    """One byte of the numbers of a tensor."""
    name = write(path, kind)
    with zipfile.ZipFile(name) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
        place = member.header_offset + 30 + len(member.filename) + member.file_size // 2
    data = bytearray(name.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(bytes(data))


def other_zip(path, kind):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights here")


def calling(path, kind):
    write_pickle_calling(path, "posix", "system", f"touch {path.parent / 'made'}")


def calling_within(path, kind):
    """The call stands among the callbacks, which no conversion looks at."""
    call = Made(Global("posix", "system"), (f"touch {path.parent / 'made'}",))
    write(path, kind, callbacks={"EarlyStopping": call})


def calling_in_moments(path, kind):
    call = Made(Global("subprocess", "Popen"), (["touch", str(path.parent / "made")],))
    write(path, kind, optimizer_states=[{"state": {0: {"step": call}}, "param_groups": []}])


FILES = {
    "nothing": (lambda path, kind: None, "no such file"),
    "folder": (lambda path, kind: path.mkdir(), "a directory"),
    "empty": (lambda path, kind: path.write_bytes(b""), "empty (0 bytes)"),
    "truncated": (truncated, "truncated or damaged"),
    "altered": (altered, "damaged"),
    "text": (lambda path, kind: path.write_text("weights\n" * 99), "not a checkpoint of PyTorch"),
    "another zip": (other_zip, "0 members data.pkl"),
    "calling": (calling, "asks to call posix.system; nothing that a file contains is executed"),
    "calling in callbacks": (calling_within, "asks to call posix.system"),
    "calling in moments": (calling_in_moments, "asks to call subprocess.Popen"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_checkpoint(tmp_path, case):
    make, message = FILES[case]
    path = tmp_path / "a.ckpt"
    make(path, "genept")
    assert message in (text := refused(tmp_path, "--input", path, "--output", tmp_path / "new" / "b"))
    assert str(path) in text and not (tmp_path / "made").exists()
    if case not in ("altered",):  # a look reads no numbers
        assert message in refused(tmp_path, "--input", path, "--inspect")


def test_damage_is_found_after_the_output_was_begun(tmp_path, monkeypatch):
    """Whatever fails while the bundle is written takes the unfinished folder along."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "a.ckpt", "genept")
    monkeypatch.setattr("perturbdiff_jax.convert.np.savez", full)
    assert "cannot be written (No space left on device)" in refused(
        tmp_path, "--input", path, "--output", tmp_path / "b"
    )


def test_what_is_there_is_kept(released, tmp_path):
    source = released("genept")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for words in ((), ("--overwrite",)):
        text = refused(tmp_path, "--input", source, "--output", tmp_path / "notes", *words)
        assert "is there and is no bundle, so it is left alone" in text
    assert convert("--input", source, "--output", tmp_path / "b")[0] == 0
    assert "is there already; --overwrite replaces it" in refused(
        tmp_path, "--input", source, "--output", tmp_path / "b"
    )
    broken = tmp_path.parent / f"{tmp_path.name}.ckpt"
    truncated(broken, "genept")
    refused(tmp_path, "--input", broken, "--output", tmp_path / "b", "--overwrite")
    assert read_bundle(tmp_path / "b").origin["weights"] == "ema"
    code, _, err = convert("--input", source, "--output", tmp_path / "b", "--overwrite", "--weights", "live")
    assert (code, err) == (0, "") and read_bundle(tmp_path / "b").origin["weights"] == "live"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_conversion_left_is_put_right(released, tmp_path):
    """Killed between its two renames it leaves the old bundle aside: it comes back, also when the next run refuses."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert convert("--input", released("genept"), "--output", tmp_path / "b")[0] == 0
    (tmp_path / "b").rename(tmp_path / f".b.old-{dead.pid}")
    (tmp_path / f".b.partial-{dead.pid}").mkdir()
    mine = tmp_path / f".b.partial-{os.getpid()}"  # of a process at work
    mine.mkdir()
    code, _, err = convert("--input", tmp_path / "none.ckpt", "--output", tmp_path / "b", "--overwrite")
    assert code == 2 and "no such file" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, "b"]
    assert read_bundle(tmp_path / "b").origin["weights"] == "ema"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "{}/b", "--weights", "raw"], "invalid choice: 'raw' (choose from"),
        (["--output", "{}/b", "--cells-per-set", "0"], "--cells-per-set 0: must be at least 1"),
        (["--output", "{}/b", "--cells-per-set", "few"], "invalid int value: 'few'"),
        (["--output", "{}/b", "--genes", "{}/short.txt"], "short.txt: lists 3 genes, genept.ckpt has 24"),
        (["--output", "{}/b", "--genes", "{}/none.txt"], "none.txt: no such file"),
        (["--output", "{}/short.txt/b"], "nothing can be written in"),
        (["--output", "{}/short.txt"], "is there and is no bundle"),
        (["--output", "/proc/b"], "--output /proc/b: "),
        (["--inspect", "--genes", "{}/short.txt"], "--genes belongs to --output"),
        (["--inspect", "--overwrite"], "--overwrite belongs to --output"),
        (["--inspect", "--output", "{}/b"], "not allowed with argument"),
        (["--export", "{}/p.npz"], "bundle"),
        ([], "one of the arguments --output --inspect --export is required"),
    ],
)
def test_wrong_words(released, tmp_path, words, message):
    (tmp_path / "short.txt").write_text("A\nB\nC\n")
    text = refused(tmp_path, "--input", released("genept"), *[word.format(tmp_path) for word in words])
    assert message in text


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("p.txt", "must end in .npz"),
        ("", "is a directory; give the name of an npz file"),
        ("file/p.npz", "nothing can be written in"),
    ],
)
def test_exports_that_cannot_be(converted, tmp_path, target, message):
    (tmp_path / "file").write_text("")
    text = refused(tmp_path, "--input", converted("genept"), "--export", tmp_path / target)
    assert message in text


def test_a_table_that_is_not_the_bundles_is_refused(released, tmp_path):
    """bundle.json names the frozen tables by hash: weights that were put in afterwards are noticed."""
    assert convert("--input", released("esm2"), "--output", tmp_path / "b")[0] == 0
    content = json.loads((tmp_path / "b" / "bundle.json").read_text())
    content["tables"]["perturbation"]["sha256"] = "0" * 64
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(content))
    text = refused(tmp_path / "b", "--input", tmp_path / "b", "--export", tmp_path / "p.npz")
    assert "the perturbation table is not the one that bundle.json names" in text


@pytest.mark.parametrize("kind", ["esm2", "chemberta", "by_name"])
def test_a_look_shows_everything_and_writes_nothing(released, tmp_path, kind):
    code, out, err = convert("--input", released(kind), "--inspect")
    assert (code, err) == (0, "") and not list(tmp_path.iterdir())
    lines = out.splitlines()
    shown = {line.split()[0]: line for line in lines if line.startswith("  ")}
    for name, array in tensors(kind).items():
        assert " x ".join(str(n) for n in array.shape) in shown[name] and str(array.dtype) in shown[name]
    assert "MISSING" not in out and "NOT KNOWN" not in out and max(map(len, lines)) < 200
    for text in {
        "esm2": ("esm2", "82", "CYT00, CYT01", "32 x 2, 4 heads", "linear, 1000 steps", "--weights live"),
        "chemberta": ("chemberta", "0, 0.05, 0.5, 5", "[('Allantoin', 0.05, 'uM')]", "vocabulary of doses"),
        "by_name": ("not looked at (marginal pretraining)", "pbmc, tahoe100m, replogle, cellxgene"),
    }[kind]:
        assert text in out, text
