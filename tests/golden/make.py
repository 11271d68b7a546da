"""Make the golden arrays with the authors' own code: python tests/golden/make.py PUBLIC

PUBLIC is a folder that holds `jepa.py` and `module.py` of github.com/lucas-maes/le-wm (MIT). It
also needs transformers 5 and einops, and nothing else: no GPU, no data, no weights. Weights and
inputs come from seeds (tests/support/reference_lewm.py), so a file holds outputs alone.
tests/models/test_parity.py compares `lewm` with them.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import ViTConfig, ViTModel

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent.parent), sys.argv[1]]

from jepa import JEPA  # noqa: E402  of PUBLIC
from module import MLP, ARPredictor, Embedder, SIGReg  # noqa: E402  of PUBLIC

from tests.support import reference_lewm  # noqa: E402


def published_model(config):
    """The authors' model with our seeded weights in the dialect that their libraries build today;
    dropout off."""
    s = reference_lewm.sizes(config)
    vit = ViTConfig(
        hidden_size=s.width,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        intermediate_size=4 * s.width,
        image_size=s.image,
        patch_size=s.patch,
    )
    parts = {
        name: {k: v for k, v in config[name].items() if k[0] != "_"}
        for name in ("predictor", "action_encoder")
    }
    mlps = {
        name: MLP(
            config[name]["input_dim"],
            config[name]["hidden_dim"],
            config[name]["output_dim"],
            torch.nn.BatchNorm1d,
        )
        for name in ("projector", "pred_proj")
    }
    model = JEPA(
        ViTModel(vit, add_pooling_layer=False, use_mask_token=False),
        ARPredictor(**{**parts["predictor"], "dropout": 0.0}),
        Embedder(**parts["action_encoder"]),
        **mlps,
    )
    model.load_state_dict(reference_lewm.weights(config, "second"), strict=True)
    return model


def normalised(pixels):
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (reference_lewm.IMAGENET_MEAN, reference_lewm.IMAGENET_STD)
    )
    return (pixels.float() / 255 - mean) / std


@torch.no_grad()
def outputs(config):
    """Everything the authors' code says: latents, rollouts from 1 to 3 frames, costs of plans, and
    the two losses."""
    given, model = reference_lewm.inputs(config), published_model(config).eval()
    pixels, goal = normalised(given.pixels), normalised(given.goal)
    found = {"latents": model.encode({"pixels": pixels})["emb"]}
    for k in (1, 2, 3):
        # Blocks 2.. are the candidates; the k-1 before them were executed, and are the same for all
        # candidates.
        blocks = torch.cat(
            [
                given.plans[:, :1, 3 - k : 2].expand(-1, given.plans.shape[1], -1, -1),
                given.plans[:, :, 2:],
            ],
            dim=2,
        )
        frames = pixels[:, None, 3 - k : 3].expand(-1, blocks.shape[1], *[-1] * 4)
        found[f"rollout_{k}"] = model.rollout({"pixels": frames}, blocks)["predicted_emb"][:, :, k:]
    found["cost"] = torch.cat(
        [
            _cost(model, pixels[b : b + 1], goal[b : b + 1], given.plans[b : b + 1])
            for b in range(len(pixels))
        ]
    )
    model.train()
    latents = model.encode({"pixels": pixels, "action": given.blocks})
    predicted = model.predict(latents["emb"][:, :3], latents["act_emb"])
    found["prediction"] = (predicted - latents["emb"][:, 1:]).pow(2).mean()
    # the authors draw them, on a GPU
    with mock.patch("torch.randn", return_value=given.directions.clone()):
        found["sigreg"] = SIGReg(num_proj=given.directions.shape[1])(latents["emb"].transpose(0, 1))
    return {name: value.numpy() for name, value in found.items()}


def _cost(model, pixels, goal, plans):
    """Costs of candidates of one environment from its third frame alone; of several, the authors'
    cost mixes up the goals."""
    N = plans.shape[1]
    seen = {"pixels": pixels[:, None, 2:3], "goal": goal[:, None], "action": plans[:, :, :1]}
    seen = {name: value.expand(-1, N, *value.shape[2:]) for name, value in seen.items()}
    return model.get_cost(seen, plans[:, :, 2:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, config in reference_lewm.CONFIGS.items():
        np.savez_compressed(FOLDER / f"{name}.npz", **outputs(config))
