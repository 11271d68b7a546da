"""Whole models on two real processes (gloo, CPU): loss, gradients and batch-norm statistics are
those of one process, and so is what a training in two stages ends with."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lewm.contracts import Batch, DataSpec, Statistics
from lewm.models.lewm import LeWM, LeWMConfig
from lewm.models.nn.layers import BatchNorm
from lewm.models.vjepa2_ac import VJEPA2AC, VJEPA2ACConfig
from lewm.training.train import _is_staged

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)

SPEC = DataSpec(16, 2, Statistics((0.5,) * 3, (0.3,) * 3, (0.0,), (1.0,)))
CONFIG = LeWMConfig(
    patch_size=4,
    encoder_width=16,
    encoder_depth=2,
    encoder_heads=2,
    latent_dim=12,
    projector_dim=24,
    context=2,
    predictor_width=16,
    predictor_depth=1,
    predictor_heads=2,
    predictor_head_dim=8,
    predictor_mlp_dim=32,
    dropout=0.0,
    sigreg_slices=32,
)


STAGED = VJEPA2ACConfig(
    patch_size=4,
    encoder_width=16,
    encoder_depth=1,
    encoder_heads=2,
    context=2,
    predictor_width=16,
    predictor_depth=1,
    predictor_heads=2,
    predictor_head_dim=8,
    predictor_mlp_dim=32,
    ema=0.8,
    masked_width=16,
    masked_depth=1,
    masked_heads=2,
)


class Loss(nn.Module):
    """DDP averages gradients of what goes through `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels, actions, seed=5):
        return self.model.loss(Batch(pixels, actions), torch.Generator().manual_seed(seed)).total


def model() -> LeWM:
    torch.manual_seed(0)
    model = CONFIG.build(SPEC).double()
    # AdaLN-zero would keep gradients from half of the predictor
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (12, 4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return pixels, torch.randn(12, 3, SPEC.block_dim, generator=generator, dtype=torch.float64)


def outcome(
    module: nn.Module, own: LeWM, pixels: torch.Tensor, actions: torch.Tensor
) -> dict[str, torch.Tensor]:
    total = module(pixels, actions)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
    return {"loss": total.detach(), **gradients, **dict(own.named_buffers())}


def staged(module: nn.Module, own: VJEPA2AC, pixels, actions) -> dict[str, torch.Tensor]:
    """What two updates of either stage leave, with the loss of each."""
    optimiser = torch.optim.AdamW(own.parameters(), lr=1e-2, weight_decay=0.5)
    losses = []
    for update in range(4):
        total = module(pixels, actions, update)
        total.backward()
        losses.append(total.detach())
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            own.follow(update, 4)
    return {"loss": torch.stack(losses), **own.state_dict()}


def staged_model() -> VJEPA2AC:
    torch.manual_seed(0)
    return STAGED.build(SPEC).double().train()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    own = model()
    pixels, actions = (part.split(6)[rank] for part in batch())
    found = outcome(DistributedDataParallel(Loss(own)), own, pixels, actions)
    torch.save(found, f"{folder}/rank{rank}.pt")
    own = staged_model()
    looking = DistributedDataParallel(Loss(own), find_unused_parameters=True)
    torch.save(staged(looking, own, pixels, actions), f"{folder}/staged{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return folder


def test_two_processes_equal_one(folder, double):
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    own = model()
    alone = outcome(Loss(own), own, *batch())
    losses = torch.stack([rank.pop("loss") for rank in ranks])
    # each rank holds its own share of the prediction error
    torch.testing.assert_close(losses.mean(), alone.pop("loss"))
    assert any(isinstance(module, BatchNorm) for module in own.modules())
    for rank in ranks:
        torch.testing.assert_close(rank, alone, rtol=1e-6, atol=1e-8)


def test_both_stages_of_two_processes_equal_those_of_one(folder, double):
    ranks = [torch.load(folder / f"staged{rank}.pt") for rank in range(2)]
    own = staged_model()
    alone = staged(Loss(own), own, *batch())
    losses = torch.stack([rank.pop("loss") for rank in ranks])
    torch.testing.assert_close(losses.mean(0), alone.pop("loss"), rtol=1e-6, atol=1e-8)
    assert alone["pretrained"] == 1
    for rank in ranks:
        torch.testing.assert_close(rank, alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("config", "answer"), [(STAGED, True), (CONFIG, False)])
def test_whose_parts_rest_is_known_before_anything_is_launched(config, answer):
    assert _is_staged(config, SPEC) == answer
