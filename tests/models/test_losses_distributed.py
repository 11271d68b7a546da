"""SIGReg on two real processes (gloo, CPU): loss and gradients are those of one process with the
whole batch. So are what models keep of their batches: DINO's centre, DINO-WM's reduction."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lewm.contracts import Batch
from lewm.models.dino import DINOConfig
from lewm.models.dino_wm import DINOWMConfig
from lewm.models.nn.losses import prediction
from lewm.models.nn.sigreg import draw_directions, sigreg
from lewm.models.pldm import PLDMConfig
from tests.support.models import SPEC
from tests.support.small_models import SMALL

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)

B, T, D, M = 24, 3, 16, 40
EVEN, UNEVEN = (12, 12), (17, 7)


def inputs() -> torch.Tensor:
    return torch.randn(B, T, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def encoder() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(5, D, dtype=torch.float64)


def objective(
    encode: nn.Module, batch: torch.Tensor, directions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both kinds of loss at once: a mean over the local batch, and one number shared by all
    ranks."""
    latents = encode(batch)
    shared = sigreg(latents, directions)
    return shared, prediction(latents[:, :-1], latents[:, 1:]) + 0.1 * shared


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


def pictures() -> Batch:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (6, 3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.randn(6, 2, SPEC.block_dim, generator=generator))


def kept(batch: Batch) -> dict[str, torch.Tensor]:
    """What two models keep of a batch that they are trained on."""
    found = {}
    for name, kind in (("dino", DINOConfig), ("dino-wm", DINOWMConfig)):
        torch.manual_seed(0)
        model = kind(**SMALL[name], context=1).build(SPEC).train()
        model.loss(batch)
        buffers = dict(model.named_buffers())
        for key in ("centre", "middle", "directions", "scale", "projector.1.running_mean"):
            if key in buffers:
                found[f"{name} {key}"] = buffers[key].clone()
    return found


PLDMS = {
    "eb_jepa": {},
    "wall": {"time_variance_weight": 0.5, "time_covariance_weight": 0.3},
    "lewm": {"centred_time": True, "time_variance_weight": 0.7, "time_covariance_weight": 0.3},
    "first": {"first_frame": True, "open_loop": True},
}
"""Settings of PLDM whose statistics are each of another cut of the batch."""


class Whole(nn.Module):
    """A model's loss as its forward pass, which is what is spread over devices."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.model.loss(Batch(pixels, actions)).total


def pldm(settings: dict) -> nn.Module:
    torch.manual_seed(0)
    config = PLDMConfig(**{**SMALL["pldm"], "context": 1, "dropout": 0.0, **settings})
    return config.build(SPEC).double().train()


def part(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    whole = pictures()
    return whole.pixels.split(3)[rank], whole.actions.double().split(3)[rank]


def work(rank: int, folder: str) -> None:
    """What each process does; it writes down what it found and judges nothing."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {}
    directions = draw_directions(
        D, M, torch.Generator().manual_seed(100 + rank), dtype=torch.float64
    )
    found["directions"] = directions

    model = DistributedDataParallel(encoder())
    shared, total = objective(model, inputs().split(EVEN)[rank], directions)
    total.backward()
    found["even"] = {"sigreg": shared.detach(), "gradients": gradients(model)}

    model = DistributedDataParallel(encoder())
    shared = sigreg(model(inputs().split(UNEVEN)[rank]), directions)
    shared.backward()
    found["uneven"] = {"sigreg": shared.detach(), "gradients": gradients(model)}

    with torch.no_grad():
        found["evaluation"] = sigreg(encoder()(inputs().split(UNEVEN)[rank]), directions)
    for name, settings in PLDMS.items():
        model = DistributedDataParallel(Whole(pldm(settings)))
        model(*part(rank)).backward()
        found[f"pldm {name}"] = gradients(model)
    whole = pictures()
    found["kept"] = kept(Batch(whole.pixels.split(3)[rank], whole.actions.split(3)[rank]))
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_ranks_project_on_rank_0s_directions_whatever_their_generators(ranks):
    alone = draw_directions(D, M, torch.Generator().manual_seed(100), dtype=torch.float64)
    for rank in ranks:
        assert torch.equal(rank["directions"], alone)


def test_loss_and_gradients_equal_one_process_on_the_whole_batch(ranks):
    model = encoder()
    shared, total = objective(model, inputs(), ranks[0]["directions"])
    total.backward()
    for rank in ranks:
        torch.testing.assert_close(
            rank["even"], {"sigreg": shared.detach(), "gradients": gradients(model)}
        )


@pytest.mark.parametrize("name", PLDMS)
def test_variances_of_pldm_are_of_the_whole_batch(name, ranks):
    whole, model = pictures(), Whole(pldm(PLDMS[name]))
    model(whole.pixels, whole.actions.double()).backward()
    for rank in ranks:
        torch.testing.assert_close(rank[f"pldm {name}"], gradients(model))


def test_also_when_ranks_hold_batches_of_different_size(ranks):
    model = encoder()
    shared = sigreg(model(inputs()), ranks[0]["directions"])
    shared.backward()
    for rank in ranks:
        torch.testing.assert_close(
            rank["uneven"], {"sigreg": shared.detach(), "gradients": gradients(model)}
        )
        torch.testing.assert_close(rank["evaluation"], shared.detach())


def test_every_rank_returns_the_very_same_number(ranks):
    for case in ("even", "uneven"):
        assert torch.equal(ranks[0][case]["sigreg"], ranks[1][case]["sigreg"])


def test_ranks_apart_would_give_another_number(ranks):
    """The comparison above has teeth: the mean of two local SIGRegs is not the global one."""
    latents = encoder()(inputs()).detach()
    apart = torch.stack(
        [sigreg(half, ranks[0]["directions"]) for half in latents.split(EVEN)]
    ).mean()
    assert abs(apart - ranks[0]["even"]["sigreg"]) > 0.05 * apart


def test_what_models_keep_of_a_batch_is_of_all_of_it(ranks):
    alone, whole = kept(pictures()), pictures()
    assert len(alone) == 5
    for rank in ranks:
        torch.testing.assert_close(rank["kept"], alone, rtol=1e-3, atol=1e-4)
    half = kept(Batch(whole.pixels[:3], whole.actions[:3]))
    for name in alone:
        assert not torch.allclose(half[name], alone[name], rtol=1e-3, atol=1e-4), name
