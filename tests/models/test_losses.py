"""SIGReg against closed forms and against its plain twin; the prediction error; the numbers behind
the collapse alarm."""

import math
from contextlib import contextmanager

import pytest
import torch

from lewm.models.nn.losses import prediction, spread
from lewm.models.nn.sigreg import draw_directions, sigreg, sigreg_reference

BOTH = pytest.mark.parametrize("loss", [sigreg, sigreg_reference])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def value_and_gradient(loss, latents, *args):
    latents = latents.clone().requires_grad_()
    value = loss(latents, *args)
    value.backward()
    return value.detach(), latents.grad


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@contextmanager
def saved_sizes():
    """Collect the number of elements of every tensor that autograd keeps for backward."""
    sizes: list[int] = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


class TestKnownAnswers:
    @BOTH
    def test_collapsed_latents_have_a_closed_form(self, loss):
        # Their characteristic function is 1 everywhere: 2 B int_0^3 (1 - phi)^2 phi dt, a sum of
        # three Gaussian integrals.
        integral = sum(
            sign * math.sqrt(2 * math.pi / power) * math.erf(3 * math.sqrt(power / 2))
            for sign, power in [(1, 1), (-2, 2), (1, 3)]
        )
        value = loss(
            torch.zeros(32, 4, 8, dtype=torch.float64),
            draw_directions(8, 16, generator(), dtype=torch.float64),
            2001,
        )
        assert value.item() == pytest.approx(32 * integral, rel=1e-6)

    @BOTH
    def test_trapezoid_ends_have_half_weight(self, loss):
        # Three knots 0, 1, 2 by hand: 2 * (weight 1 at t=1, weight 1/2 at t=2); t=0 contributes
        # nothing.
        phi = [math.exp(-0.5), math.exp(-2.0)]
        expected = 5 * (2 * (1 - phi[0]) ** 2 * phi[0] + (1 - phi[1]) ** 2 * phi[1])
        value = loss(
            torch.zeros(5, 1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), 3, 2.0
        )
        assert value.item() == pytest.approx(expected, rel=1e-12)

    @BOTH
    def test_one_sample_at_a_known_place(self, loss):
        # Projection h: |exp(i t h) - phi|^2 = 1 - 2 phi cos(t h) + phi^2, at the single live knot
        # t=2 of weight 2.
        h, phi = 0.7, math.exp(-2.0)
        latents = torch.tensor([[[h, 0.0]]], dtype=torch.float64)
        value = loss(latents, torch.tensor([[1.0], [0.0]], dtype=torch.float64), 2, 2.0)
        assert value.item() == pytest.approx(
            2 * phi * (1 - 2 * phi * math.cos(2 * h) + phi**2), rel=1e-12
        )

    @pytest.mark.parametrize("batch", [16, 128])
    def test_true_gaussian_has_the_expected_value(self, batch):
        # The mean of B unit complex numbers of mean phi has variance (1 - phi^2) / B; the factor B
        # cancels.
        knots = torch.linspace(0, 3, 17, dtype=torch.float64)
        phi = torch.exp(-knots.square() / 2)
        expected = 2 * torch.trapezoid((1 - phi.square()) * phi, knots).item()
        draws = torch.stack(
            [
                sigreg(gaussian(batch, 8, 32, seed=seed), draw_directions(32, 32, generator(seed)))
                for seed in range(100)
            ]
        )
        assert draws.mean().item() == pytest.approx(expected, abs=4 * draws.std().item() / 10)
        assert expected == pytest.approx(1.05, abs=0.005)  # the number in the docstring

    @pytest.mark.parametrize("scale", [0.3, 0.8, 1.25, 3.0])
    def test_any_other_scale_costs_more(self, scale):
        latents, directions = gaussian(256, 2, 64), draw_directions(64, 64, generator())
        assert sigreg(scale * latents, directions) > 1.5 * sigreg(latents, directions)

    def test_time_steps_are_judged_apart_and_pooling_is_one_step(self):
        # Frame 0 all at -1, frame 1 all at +1: each is a collapse; pooled they are a two-point
        # distribution, which costs less.
        latents = torch.tensor([-1.0, 1.0]).view(1, 2, 1).expand(64, 2, 1)
        directions = torch.ones(1, 1)
        apart, pooled = (
            sigreg(latents, directions),
            sigreg(latents.flatten(0, 1)[:, None], directions),
        )
        torch.testing.assert_close(apart, sigreg(latents[:, :1], directions))
        assert pooled < apart

    def test_order_of_the_batch_is_irrelevant(self):
        latents, directions = gaussian(33, 4, 16), draw_directions(16, 64, generator())
        shuffled = latents[torch.randperm(33, generator=generator(1))]
        torch.testing.assert_close(sigreg(shuffled, directions), sigreg(latents, directions))

    def test_descent_spreads_collapsed_latents(self):
        latents = (0.01 * gaussian(64, 1, 8)).requires_grad_()
        optimiser = torch.optim.Adam([latents], lr=0.05)
        for step in range(100):
            optimiser.zero_grad()
            sigreg(latents, draw_directions(8, 64, generator(step))).backward()
            optimiser.step()
        std, rank = spread(latents)
        assert std.item() == pytest.approx(1.0, abs=0.1)
        assert rank > 7.5


class TestProductionEqualsReference:
    @pytest.mark.parametrize("T", [1, 4])
    @pytest.mark.parametrize("B", [2, 130])
    @pytest.mark.parametrize("D", [8, 192])
    @pytest.mark.parametrize("M", [1, 200])
    @pytest.mark.parametrize("num_knots", [2, 5, 17])
    def test_value_and_gradient(self, T, B, D, M, num_knots):
        latents = 1.3 * gaussian(B, T, D, dtype=torch.float64) + 0.2
        directions = draw_directions(D, M, generator(), dtype=torch.float64)
        ours = value_and_gradient(sigreg, latents, directions, num_knots, 2.5)
        plain = value_and_gradient(sigreg_reference, latents, directions, num_knots, 2.5)
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-13)

    def test_several_chunks_the_last_one_ragged(self):
        latents, directions = (
            gaussian(300, 2, 4, dtype=torch.float64),
            draw_directions(4, 500, generator(), dtype=torch.float64),
        )
        torch.testing.assert_close(
            value_and_gradient(sigreg, latents, directions),
            value_and_gradient(sigreg_reference, latents, directions),
        )

    # Near collapse all waves share one rounding error of up to half a unit in the last place,
    # raised to the 16th power.
    @pytest.mark.parametrize(
        ("scale", "tolerance"), [(1e-3, 1e-6), (0.3, 2e-7), (1.0, 1.2e-7), (3.0, 1.2e-7)]
    )
    def test_float32_is_as_exact_as_float32_can_be(self, scale, tolerance):
        latents, directions = scale * gaussian(128, 4, 192), draw_directions(192, 128, generator())
        value, gradient = value_and_gradient(sigreg, latents, directions)
        exact, exact_gradient = value_and_gradient(
            sigreg_reference, latents.double(), directions.double()
        )
        assert relative_error(value, exact) < tolerance
        assert relative_error(gradient, exact_gradient) < 7e-7

    def test_gradcheck(self):
        latents, directions = (
            gaussian(5, 2, 4, dtype=torch.float64),
            draw_directions(4, 6, generator(), dtype=torch.float64),
        )
        assert torch.autograd.gradcheck(
            lambda z: 3 * sigreg(z, directions), latents.requires_grad_()
        )

    def test_expanded_and_transposed_latents(self):
        latents, directions = (
            gaussian(4, 9, 6, dtype=torch.float64),
            draw_directions(6, 10, generator(), dtype=torch.float64),
        )
        for view in (
            latents.transpose(0, 1),
            latents[:1].expand(7, 9, 6),
            latents[..., ::2].repeat(1, 1, 2),
        ):
            torch.testing.assert_close(
                value_and_gradient(sigreg, view, directions),
                value_and_gradient(sigreg_reference, view, directions),
            )


class TestPrecisionAndMemory:
    @pytest.mark.parametrize("latents_dtype", [torch.float32, torch.bfloat16])
    def test_autocast_leaves_the_statistics_in_float32(self, latents_dtype):
        latents, directions = (
            gaussian(64, 4, 32).to(latents_dtype),
            draw_directions(32, 64, generator()),
        )
        expected = value_and_gradient(sigreg, latents.float(), directions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, gradient = value_and_gradient(sigreg, latents, directions)
        assert value.dtype == torch.float32
        assert gradient.dtype == latents_dtype
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1].to(latents_dtype))

    def test_keeps_nothing_larger_than_the_latents(self):
        latents, directions = (
            gaussian(16, 4, 8).requires_grad_(),
            draw_directions(8, 256, generator()),
        )
        with saved_sizes() as kept:
            sigreg(latents, directions)
        assert sum(kept) <= latents.numel()
        with saved_sizes() as kept_by_plain:
            sigreg_reference(latents, directions)
        assert max(kept_by_plain) >= 16 * 4 * 256 * 17  # the instrument sees what it is to rule out

    def test_without_gradient_nothing_is_kept(self):
        latents, directions = (
            gaussian(16, 4, 8).requires_grad_(),
            draw_directions(8, 256, generator()),
        )
        with torch.no_grad():
            assert not sigreg(latents, directions).requires_grad
        assert not sigreg(latents.detach(), directions).requires_grad

    def test_directions_are_constants(self):
        latents, directions = (
            gaussian(8, 1, 4).requires_grad_(),
            draw_directions(4, 4, generator()).requires_grad_(),
        )
        sigreg(latents, directions).backward()
        assert directions.grad is None

    def test_inputs_are_not_mutated(self):
        latents, directions = gaussian(8, 1, 4), draw_directions(4, 4, generator())
        before = latents.clone(), directions.clone()
        value_and_gradient(sigreg, latents, directions)
        assert torch.equal(latents, before[0])
        assert torch.equal(directions, before[1])


class TestDirections:
    def test_unit_columns(self):
        directions = draw_directions(192, 1024, generator())
        assert directions.shape == (192, 1024)
        torch.testing.assert_close(directions.norm(dim=0), torch.ones(1024))

    def test_cover_the_sphere_evenly(self):
        directions = draw_directions(3, 20_000, generator())
        torch.testing.assert_close(
            directions @ directions.T / 20_000, torch.eye(3) / 3, atol=0.01, rtol=0
        )
        torch.testing.assert_close(directions.mean(dim=1), torch.zeros(3), atol=0.02, rtol=0)

    def test_follow_the_generator(self):
        assert torch.equal(draw_directions(8, 4, generator(3)), draw_directions(8, 4, generator(3)))
        assert not torch.equal(
            draw_directions(8, 4, generator(3)), draw_directions(8, 4, generator(4))
        )
        one = generator(3)
        assert not torch.equal(draw_directions(8, 4, one), draw_directions(8, 4, one))


class TestPrediction:
    def test_known_answer(self):
        assert prediction(
            torch.zeros(2, 1, 2), torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
        ).item() == pytest.approx(14 / 4)

    def test_the_target_is_pulled_too(self):
        predicted, target = (
            torch.zeros(2, 3, requires_grad=True),
            torch.ones(2, 3, requires_grad=True),
        )
        prediction(predicted, target).backward()
        torch.testing.assert_close(target.grad, -predicted.grad)
        torch.testing.assert_close(target.grad, torch.full((2, 3), 1 / 3))

    def test_half_precision_is_averaged_in_float32(self):
        assert (
            prediction(
                torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
            ).dtype
            == torch.float32
        )


class TestSpread:
    def test_isotropic_latents_have_full_rank(self):
        std, rank = spread(2 * gaussian(5000, 4, 16))
        assert std.item() == pytest.approx(2.0, rel=0.02)
        assert rank.item() == pytest.approx(16.0, rel=0.01)

    def test_rank_counts_equal_directions(self):
        signs = torch.tensor(
            [[1.0, 1, 0, 0], [1, -1, 0, 0], [-1, 1, 0, 0], [-1, -1, 0, 0]]
        )  # two uncorrelated dimensions of four
        std, rank = spread(signs)
        assert rank.item() == pytest.approx(2.0, rel=1e-5)
        assert std.item() == pytest.approx(0.5)

    def test_rank_is_the_exponential_of_an_entropy(self):
        # Variances 3 and 1: shares 3/4 and 1/4.
        latents = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * torch.tensor(
            [math.sqrt(3), 1]
        )
        expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        assert spread(latents)[1].item() == pytest.approx(expected, rel=1e-5)

    def test_collapse_to_a_point_and_to_a_line(self):
        assert [number.item() for number in spread(torch.zeros(8, 4, 6))] == [0.0, 1.0]
        line = gaussian(100, 1) * torch.tensor([1.0, 2.0, -1.0]) + 5
        assert spread(line)[1].item() == pytest.approx(1.0, abs=1e-3)

    def test_where_the_cloud_lies_is_no_spread(self):
        """Each dimension has a mean of its own: one that all share would leave it a variance."""
        latents = gaussian(400, 3, 8, seed=4)
        std, rank = spread(latents)
        moved, moved_rank = spread(latents + 10 * torch.arange(8.0))
        assert moved.item() == pytest.approx(std.item(), rel=1e-3)
        assert moved_rank.item() == pytest.approx(rank.item(), rel=1e-3)
        still = torch.arange(8.0).expand(5, 3, 8)
        assert [number.item() for number in spread(still)] == [0.0, 1.0]

    def test_a_diverged_run_can_still_report(self):
        latents = gaussian(10, 3)
        latents[0, 0] = torch.inf
        assert all(number.isnan() for number in spread(latents))

    def test_takes_no_part_in_training(self):
        assert not any(number.requires_grad for number in spread(gaussian(10, 3).requires_grad_()))


class TestErrors:
    @pytest.mark.parametrize(
        ("latents", "directions"), [((8, 4), (4, 2)), ((8, 1, 4), (2, 4)), ((8, 1, 4), (4,))]
    )
    def test_shapes(self, latents, directions):
        with pytest.raises(
            ValueError, match=r"latents must be \(B, T, D\) and directions \(D, M\), got"
        ):
            sigreg(torch.zeros(latents), torch.zeros(directions))

    @pytest.mark.parametrize(("num_knots", "max_knot"), [(1, 3.0), (17, 0.0)])
    def test_quadrature(self, num_knots, max_knot):
        with pytest.raises(ValueError, match="num_knots >= 2 and max_knot > 0"):
            sigreg(torch.zeros(8, 1, 4), torch.eye(4), num_knots, max_knot)

    def test_prediction_shapes(self):
        with pytest.raises(ValueError, match="one shape"):
            prediction(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))
