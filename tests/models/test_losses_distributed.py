"""SIGReg on two real processes (gloo, CPU): loss and gradients are those of one process with the
whole batch."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lewm.models.nn.losses import prediction
from lewm.models.nn.sigreg import draw_directions, sigreg

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
