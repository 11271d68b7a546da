"""Frozen encoders: plain twins of their networks, what they never do, and what a run
says of them."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lewm import registry
from lewm.analyses.economy import _parameters
from lewm.contracts import DataSpec, Statistics
from lewm.data.episodes import Episodes
from lewm.files import read_json
from lewm.models.dino_wm import DINOWMConfig
from lewm.models.lewm import LeWM, LeWMConfig
from lewm.models.nn import frozen_encoders, memory
from lewm.models.nn.dinov2 import DINOv2
from lewm.models.nn.efficientnet import EfficientNetLite0, convolve_same
from lewm.models.nn.frozen_encoders import (
    ENCODERS,
    WeightsMissing,
    digest_of,
    frozen_parts,
    open_encoder,
    shapes_of,
)
from lewm.runs import checkpoints
from lewm.runs.run import open_run
from lewm.training.train import train
from tests.support import tiny


def pictures(count, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


# ---------------------------------------------------------------------------------------- networks


def test_dinov2_is_its_formulas():
    """One token, one head and one branch at a time, in double precision."""
    torch.manual_seed(0)
    net = DINOv2(width=8, depth=2, heads=2, patch=2, side=3).double()
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter)
    picture = torch.randn(1, 3, 6, 6, dtype=torch.float64)

    def normalised(x, norm):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-6).sqrt() * norm.weight + norm.bias

    tokens = [net.cls[0, 0] + net.position[0, 0]]
    for row in range(3):
        for column in range(3):
            patch = picture[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            value = (net.patches.weight * patch).sum(dim=(1, 2, 3)) + net.patches.bias
            tokens.append(value + net.position[0, len(tokens)])
    for block in net.blocks:
        q, k, v = (
            [block.qkv.weight[part] @ normalised(x, block.norm1) + block.qkv.bias[part]
             for x in tokens]
            for part in (slice(0, 8), slice(8, 16), slice(16, 24))
        )  # fmt: skip
        after = []
        for i, x in enumerate(tokens):
            mixed = []
            for head in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([q[i][head] @ other[head] for other in k]) / 4**0.5
                shares = scores.softmax(0)
                mixed.append(sum(s * other[head] for s, other in zip(shares, v)))
            x = x + block.scale1 * (block.out.weight @ torch.cat(mixed) + block.out.bias)
            inner = block.fc1.weight @ normalised(x, block.norm2) + block.fc1.bias
            inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
            after.append(x + block.scale2 * (block.fc2.weight @ inner + block.fc2.bias))
        tokens = after
    expected = torch.stack([normalised(x, net.norm) for x in tokens[1:]])
    torch.testing.assert_close(net(picture)[0], expected)


def test_positions_of_the_own_grid_are_the_learned_ones_and_others_keep_their_order():
    net = DINOv2(width=2, depth=1, heads=1, side=5)
    net.position.data[0, 1:, 0] = torch.arange(5.0).repeat_interleave(5)  # the row
    net.position.data[0, 1:, 1] = torch.arange(5.0).repeat(5)  # the column
    net.position.data[0, 0] = 7
    assert torch.equal(net.positions(5, 5), net.position)
    stretched = net.positions(3, 2)
    assert stretched.shape == (1, 7, 2)
    assert stretched[0, 0].tolist() == [7, 7]
    rows, columns = (
        stretched[0, 1:, 0].unflatten(0, (3, 2)),
        stretched[0, 1:, 1].unflatten(0, (3, 2)),
    )
    assert (rows.diff(dim=0) > 1).all()
    assert (columns.diff(dim=1) > 1).all()
    # places are those of the patches' middles: a third of a row in, not the first row itself
    assert 0.15 < rows[0, 0] < 0.45
    # the middle of five rows is the middle of three
    torch.testing.assert_close(rows[1], torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before"),
    [(6, 3, 2, 0), (7, 3, 2, 1), (8, 5, 2, 1), (5, 5, 1, 2), (6, 1, 1, 0)],
)
def test_convolutions_pad_as_tensorflow_does(size, kernel, stride, before):
    """`before` zeros go above and to the left; the table is TensorFlow's, worked by hand."""
    layer = torch.nn.Conv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.constant_(layer.weight, 0.0)
    layer.weight.data[0, 0, 0, 0] = 1.0  # reads the upper left of its window
    picture = torch.arange(1.0, size**2 + 1).view(1, 1, size, size)
    out = convolve_same(picture, layer)
    assert out.shape[2:] == (-(-size // stride),) * 2
    padded = F.pad(picture, (before, 9, before, 9))
    expected = padded[:, :, ::stride, ::stride][:, :, : out.shape[2], : out.shape[3]]
    assert torch.equal(out, expected)


def test_efficientnet_has_its_published_sizes_and_its_shortcuts():
    net = EfficientNetLite0().eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 112)
    assert net(torch.zeros(1, 3, 70, 30)).shape == (1, 5 * 2, 112)
    shapes = [(b.residual, b.depthwise.kernel_size[0], b.depthwise.stride[0]) for b in net.blocks]
    assert shapes == [
        *((False, 3, 1), (False, 3, 2), (True, 3, 1), (False, 5, 2), (True, 5, 1)),
        *((False, 3, 2), (True, 3, 1), (True, 3, 1), (False, 5, 1), (True, 5, 1), (True, 5, 1)),
    ]
    # a residual block whose last norm is 0 changes nothing; another one gives 0
    for number, expected in ((2, torch.ones), (1, torch.zeros)):
        block = net.blocks[number]
        torch.nn.init.zeros_(block.norm2.weight)
        x = torch.ones(1, block.expand.in_channels, 4, 4)
        assert torch.equal(block(x).unique(), expected(1))


PUBLISHED_STAGES = (
    *("r1_k3_s11_e1_i32_o16", "r2_k3_s22_e6_i16_o24", "r2_k5_s22_e6_i24_o40"),
    *("r3_k3_s22_e6_i40_o80", "r3_k5_s11_e6_i80_o112"),
)
"""EfficientNet's own table, up to stride 16: repeats, kernel, stride of the first, expansion,
channels."""


def test_efficientnet_is_its_formulas():
    """Block by block out of the published table, in double precision: expand and depthwise have a
    ReLU6, the projection has none, and norms divide by sqrt(var + 0.001)."""
    torch.manual_seed(0)
    net = EfficientNetLite0().eval().double()
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.add_(0.2 * torch.rand_like(value))
    weights = net.state_dict()

    def padded(x, kernel, stride):
        need = [max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in x.shape[2:]]
        (h, w) = need
        return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))

    def normed(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{kind}"].view(-1, 1, 1)
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    def convolved(x, name, kernel=1, stride=1):
        weight = weights[f"{name}.weight"]
        assert weight.shape[2:] == (kernel, kernel), name
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(padded(x, kernel, stride), weight, stride=stride, groups=groups)

    picture = torch.rand(1, 3, 35, 32, dtype=torch.float64) * 2 - 1
    x = normed(convolved(picture, "stem", 3, 2), "norm").clamp(0, 6)
    number = 0
    for stage in PUBLISHED_STAGES:
        repeats, kernel, strides, expansion, before, after = (
            int(part[1:]) for part in stage.split("_")
        )
        for repeat in range(repeats):
            place, stride = f"blocks.{number}", strides % 10 if repeat == 0 else 1
            assert x.shape[1] == (before if repeat == 0 else after)
            y = x
            if expansion > 1:
                y = normed(convolved(x, f"{place}.expand"), f"{place}.norm0").clamp(0, 6)
                assert y.shape[1] == expansion * x.shape[1]
            y = convolved(y, f"{place}.depthwise", kernel, stride)
            y = normed(y, f"{place}.norm1").clamp(0, 6)
            y = normed(convolved(y, f"{place}.project"), f"{place}.norm2")
            x = x + y if repeat else y
            assert x.shape[1] == after
            number += 1
    assert number == len(net.blocks)
    torch.testing.assert_close(net(picture)[0], x[0].flatten(1).T)


# -------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize(
    ("name", "black", "grey", "white"),
    [
        ("efficientnet-lite0", -127 / 128, 0.0, 1.0),
        ("dinov2-small", -0.485 / 0.229, (127 / 255 - 0.485) / 0.229, (1 - 0.485) / 0.229),
    ],
)
def test_each_encoder_is_shown_what_its_authors_showed_it(name, black, grey, white):
    """Of the red channel: EfficientNet-Lite takes (x - 127) / 128, DINOv2 ImageNet's statistics."""
    kind = ENCODERS[name]
    seen = [(level / 255 - kind.mean[0]) / kind.std[0] for level in (0, 127, 255)]
    assert seen == pytest.approx([black, grey, white], abs=1e-6)
    assert kind.stride == {"efficientnet-lite0": 16, "dinov2-small": 14}[name]


def test_whatever_changes_what_is_said_of_a_picture_has_a_memory_of_its_own(tmp_path):
    """Also where tokens are equally many and equally wide: nothing else would show it."""
    shown = [("random-tiny", 32, 28), ("random-tiny", 40, 28), ("random-tiny", 32, 42)]
    encoders = [open_encoder(*each) for each in shown]
    folders = set()
    for encoder in encoders:
        encoder.recall(tmp_path / "episodes.h5")
        folders |= {encoder.memory._folder(device) for device in ("cpu", "cuda")}
    assert len(folders) == 2 * len(encoders)
    with torch.device("meta"):  # 16 tokens of 112 each, of pictures resized and not
        names = {open_encoder("efficientnet-lite0", 64, size).memory.name for size in (56, 64)}
    assert len(names) == 2


def test_shapes_resolutions_and_the_meta_device():
    for name in ENCODERS:
        with torch.device("meta"):  # no weights are needed there
            encoder = open_encoder(name, 64)
            assert encoder.tokens == 16
            assert encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (
                *(2, encoder.tokens, encoder.width),
            )
            assert open_encoder(name, 224, 196 if ENCODERS[name].whole else 224).tokens == 196
    assert open_encoder("random-tiny", 64, 112).tokens == 64
    assert open_encoder("random-tiny", 9).tokens == 1  # the least: one patch
    with pytest.raises(ValueError, match=r"multiple of 14.*got 60.*Take 56"):
        open_encoder("random-tiny", 64, 60)
    with pytest.raises(ValueError, match="Did you mean 'random-tiny'"):
        open_encoder("random-tin", 64)


def test_tokens_are_the_networks_own_of_normalised_pictures():
    encoder, x = open_encoder("random-tiny", 28), pictures(3, 28)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in frozen_encoders.IMAGENET)
    with torch.no_grad():
        expected = encoder.net((x / 255 - mean) / std)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(encoder(x), encoder(x).half().float())


def test_pictures_are_resized_before_they_are_seen():
    encoder = open_encoder("random-tiny", 56, 28)
    small = pictures(2, 28)
    large = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    seen = encoder._seen(large)
    assert seen.shape == (2, 3, 28, 28)
    # no column is left out where four become one
    stripes = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    stripes[..., ::4] = 252
    grey = torch.full((1, 3, 112, 112), 63, dtype=torch.uint8)
    far = open_encoder("random-tiny", 112, 28)
    middle = (..., slice(4, 24))  # the border sees less
    difference = (far._seen(stripes) - far._seen(grey))[middle]
    assert difference.abs().max() < 1e-4
    plain = torch.full((1, 3, 56, 56), 90, dtype=torch.uint8)
    own = open_encoder("random-tiny", 28)
    torch.testing.assert_close(encoder._seen(plain), own._seen(plain[:, :, :28, :28]))


def test_a_picture_has_the_same_bits_in_any_company(monkeypatch):
    x = pictures(7, 64)
    alone = torch.cat([open_encoder("random-tiny", 64)(each[None]) for each in x])
    encoder = open_encoder("random-tiny", 64)
    assert torch.equal(encoder(x), alone)
    assert torch.equal(encoder(x.flip(0)), alone.flip(0))  # remembered
    assert torch.equal(encoder(torch.cat([x[3:5], x[3:5]])), alone[[3, 4, 3, 4]])
    # portions are of one shape: of a single picture on a CPU, of several on a GPU
    for expected in ([1] * 7, [4, 4]):
        shapes = []
        portions = open_encoder("random-tiny", 64)
        portions.net.register_forward_pre_hook(
            lambda _, args, shapes=shapes: shapes.append(args[0].shape[0])
        )
        torch.testing.assert_close(portions(x), alone, rtol=1e-3, atol=2e-3)
        assert shapes == expected
        monkeypatch.setitem(frozen_encoders.TOGETHER, "cpu", 4)  # the next time


def test_tokens_are_the_same_bits_where_nothing_can_be_remembered(monkeypatch):
    x = pictures(3, 64)
    remembered = open_encoder("random-tiny", 64)(x)
    monkeypatch.setattr(memory, "MOST_BYTES", 0)
    encoder = open_encoder("random-tiny", 64)
    assert torch.equal(encoder(x), remembered)
    assert torch.equal(encoder(x), remembered)


def test_nothing_trains_it_and_no_state_dict_holds_it():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = open_encoder("random-tiny", 32), torch.nn.Linear(32, 1)

    model = Model().train()
    assert not any(module.training for module in model.encoder.modules())
    assert {name.partition(".")[0] for name in model.state_dict()} == {"head"}
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"head"}
    model.head(model.encoder(pictures(2))).sum().backward()
    assert all(buffer.grad is None for buffer in model.buffers())
    moved = copy.deepcopy(model).to("meta")
    assert all(buffer.is_meta for buffer in moved.encoder.buffers())
    assert moved.encoder.memory is model.encoder.memory
    assert _parameters(model, {}) == {"encoder": 45_024, "head": 33, "total": 45_057}
    assert list(frozen_parts(model)) == ["encoder"]


def test_wrong_pictures_are_named():
    encoder = open_encoder("random-tiny", 32)
    with pytest.raises(ValueError, match=r"uint8 of shape \(n, 3, 32, 32\), got torch.float32"):
        encoder(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"got torch.uint8 \(1, 3, 64, 64\)"):
        encoder(pictures(1, 64))


def test_random_weights_are_the_same_numbers_for_ever():
    """Of this digest are the numbers that NumPy draws from the seed, on any machine."""
    encoder = open_encoder("random-tiny", 32)
    assert encoder.digest == open_encoder("random-tiny", 64).digest
    assert encoder.digest.startswith("6ccb0dc1fbc2")
    assert 0.019 < float(encoder.net.blocks[0].qkv.weight.std()) < 0.021


def test_a_digest_is_of_names_shapes_and_values():
    a = {"x": torch.arange(4.0), "y": torch.zeros(2)}
    assert digest_of(a) == digest_of(dict(reversed(a.items())))
    others = [
        {**a, "x": a["x"] + 1},
        {**a, "x": a["x"].view(2, 2)},
        {"z": a["x"], "y": a["y"]},
        {**a, "x": a["x"].double()},
    ]
    assert len({digest_of(each) for each in (a, *others)}) == 5


def test_missing_and_damaged_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LEWM_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"no such file. Run: lewm weights efficientnet-lite0"):
        open_encoder("efficientnet-lite0", 64)
    path = tmp_path / "efficientnet-lite0.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsMissing, match=r"is damaged.*lewm weights efficientnet-lite0"):
        open_encoder("efficientnet-lite0", 64)
    tensors = {
        name: torch.ones(shape) for name, shape in shapes_of(ENCODERS["efficientnet-lite0"]).items()
    }
    stem = tensors["stem.weight"]
    for wrong, named in (
        ({**tensors, "stem.weight": stem[:1]}, r"stem.weight is \(1, 3, 3, 3\)"),
        ({**tensors, "stem.weight": stem.half()}, "torch.float16"),
        ({**tensors, "stem.weight": stem / 0}, "stem.weight is not finite"),
        ({**tensors, "more": stem.clone()}, "more is unexpected"),
        ({k: v for k, v in tensors.items() if k != "stem.weight"}, "stem.weight is missing"),
    ):
        checkpoints.write_tensors(wrong, path)
        with pytest.raises(WeightsMissing, match=named):
            open_encoder("efficientnet-lite0", 64)
    checkpoints.write_tensors(tensors, path)
    assert open_encoder("efficientnet-lite0", 64).digest == digest_of(tensors)


def test_a_model_on_an_encoder_with_batch_norms_comes_back(tmp_path, monkeypatch):
    """Its checkpoint holds nothing of the encoder, and loading asks for nothing of it."""
    monkeypatch.setenv("LEWM_WEIGHTS", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.5 + torch.rand(shape, generator=generator)
        for name, shape in shapes_of(ENCODERS["efficientnet-lite0"]).items()
    }
    checkpoints.write_tensors(tensors, tmp_path / "efficientnet-lite0.safetensors")
    spec = DataSpec(64, 5, Statistics((0.5,) * 3, (0.2,) * 3, (0.0,), (1.0,)))
    model = DINOWMConfig.tiny().build(spec).eval()
    checkpoints.save(tmp_path / "run", 1, model)
    pixels = torch.randint(256, (2, 1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    loaded = checkpoints.load(tmp_path / "run")
    assert torch.equal(loaded.encode(pixels), model.encode(pixels))
    assert not any(name.startswith("encoder") for name in model.state_dict())


# ------------------------------------------------------------------------------------------ in runs


@dataclasses.dataclass(frozen=True)
class FrozenConfig(LeWMConfig):
    """LeWM on frozen tokens: as little as shows how a run keeps them."""

    def build(self, spec):
        return FrozenLeWM(self, spec)


class Pooled(torch.nn.Module):
    """Normalised pixels are turned back into the pictures that an encoder wants."""

    def __init__(self, size, width):
        super().__init__()
        self.frozen, self.linear = open_encoder("random-tiny", size), torch.nn.Linear(32, width)

    def forward(self, pixels):
        return self.linear(self.frozen(pixels).mean(dim=1))


class FrozenLeWM(LeWM):
    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.encoder = Pooled(spec.image_size, config.encoder_width)

    def encode(self, pixels):
        return self.projector(self.encoder(pixels.flatten(0, 1))).unflatten(0, pixels.shape[:2])


@pytest.fixture
def config(monkeypatch):
    load = registry.load
    name = FrozenConfig.__module__.rpartition(".")[2]
    monkeypatch.setattr(
        registry, "load", lambda kind, key: FrozenConfig if key == name else load(kind, key)
    )
    return FrozenConfig(**dataclasses.asdict(tiny.MODEL))


@pytest.fixture
def data(tmp_path):
    return tiny.write(tmp_path / "episodes.h5")


def newest(run):
    return (checkpoints.latest(run) / "weights.safetensors").read_bytes()


def encoded(monkeypatch):
    """How many pictures are encoded from now on."""
    counts = []
    before = frozen_encoders.FrozenEncoder._encode
    monkeypatch.setattr(
        frozen_encoders.FrozenEncoder,
        "_encode",
        lambda self, pixels: (counts.append(len(pixels)), before(self, pixels))[1],
    )
    return counts


def test_a_training_goes_on_bit_by_bit_and_encodes_each_picture_once(
    config, data, tmp_path, monkeypatch
):
    once = train(config, tiny.TRAINING, data, tmp_path / "once")
    assert (tmp_path / "episodes.h5.features").is_dir()
    counts = encoded(monkeypatch)

    def stop(progress):
        if progress.stage == "train" and progress.done == 4:
            raise KeyboardInterrupt

    often = dataclasses.replace(tiny.TRAINING, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(config, often, data, tmp_path / "twice", report=stop)
    train(config, often, data, tmp_path / "twice")
    assert newest(tmp_path / "twice") == newest(once)
    assert counts == []  # the first run left them all
    # and whoever opens a run of that file finds them too; who only has the weights does not
    with Episodes.open(data) as episodes:
        seen = torch.from_numpy(episodes.pixels_at(np.arange(episodes.steps))).permute(0, 3, 1, 2)
    said, asked = [], []
    for model in (open_run(once).model, checkpoints.load(once)):
        (part,) = frozen_parts(model).values()
        said.append(part(seen))
        asked.append(sum(counts))
        counts.clear()
    assert torch.equal(*said)
    assert asked[1] == len(seen)
    assert asked[0] < 0.5 * len(seen)
    shutil.rmtree(tmp_path / "episodes.h5.features")
    train(config, tiny.TRAINING, data, tmp_path / "anew")
    assert newest(tmp_path / "anew") == newest(once)
    assert sum(counts) <= 14 * 10  # rows of the file
    assert (once / "checkpoints").stat().st_size < 10**5


def test_a_run_names_its_weights_and_refuses_others(config, data, tmp_path, monkeypatch):
    run = train(config, tiny.TRAINING, data, tmp_path / "run")
    digest = open_encoder("random-tiny", 8).digest
    told = read_json(run / checkpoints.MODEL)
    assert told["frozen"] == {"encoder.frozen": {"encoder": "random-tiny", "weights": digest}}
    assert not any("frozen" in name for name in checkpoints.load(run).state_dict())
    monkeypatch.setattr(frozen_encoders, "SEED", 15)
    with pytest.raises(WeightsMissing, match="expected encoder 'random-tiny' with weights"):
        checkpoints.load(run)
    # the same folder is no run of other weights either
    longer = dataclasses.replace(tiny.TRAINING, updates=9)
    with pytest.raises(ValueError, match=r"frozen.*was"):
        train(config, longer, data, run)
    monkeypatch.undo()


def test_a_run_whose_weights_are_gone_says_how_to_get_them(config, data, tmp_path, monkeypatch):
    run = train(config, tiny.TRAINING, data, tmp_path / "run")
    kind = dataclasses.replace(ENCODERS["random-tiny"], drawn=False)
    monkeypatch.setitem(ENCODERS, "random-tiny", kind)
    monkeypatch.setenv("LEWM_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"model.json: .*Run: lewm weights random-tiny"):
        checkpoints.load(run)
    assert json.loads((run / checkpoints.MODEL).read_text())
