"""The whole model on two real processes (gloo, CPU): loss, gradients and batch-norm statistics are
those of one process."""

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


class Loss(nn.Module):
    """DDP averages gradients of what goes through `forward`."""

    def __init__(self, model: LeWM) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels, actions):
        return self.model.loss(Batch(pixels, actions), torch.Generator().manual_seed(5)).total


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
    torch.save(
        outcome(DistributedDataParallel(Loss(own)), own, pixels, actions), f"{folder}/rank{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_two_processes_equal_one(tmp_path, double):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    own = model()
    alone = outcome(Loss(own), own, *batch())
    losses = torch.stack([rank.pop("loss") for rank in ranks])
    # each rank holds its own share of the prediction error
    torch.testing.assert_close(losses.mean(), alone.pop("loss"))
    assert any(isinstance(module, BatchNorm) for module in own.modules())
    for rank in ranks:
        torch.testing.assert_close(rank, alone, rtol=1e-6, atol=1e-8)
