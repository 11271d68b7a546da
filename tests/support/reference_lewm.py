"""LeWorldModel a second time, straight from a published state_dict: plain sums and loops, nothing
shared with `lewm`.

It is what `lewm` must equal. Every step is written out (softmax, layer norm, one candidate and one
frame at a time), so that it can be read beside the paper; speed does not matter here. `weights` and
`inputs` make random checkpoints and inputs that are the same on every machine and for ever: NumPy
guarantees the stream of `RandomState`.
"""

import math
import zlib
from types import SimpleNamespace

import numpy as np
import torch

BATCH_NORM = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6)}


def config_json(
    width,
    latent,
    image,
    patch,
    depth,
    heads,
    context,
    blocks,
    predictor_heads,
    head_dim,
    mlp,
    hidden,
    actions,
):
    """The config.json of a checkpoint; a ViT of none of the named sizes says what it is made of."""
    encoder = {
        "_target_": "vit",
        "size": "tiny",
        "patch_size": patch,
        "image_size": image,
        "pretrained": False,
    }
    if (width, depth, heads) != SIZES["tiny"]:
        encoder |= {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
        }
    predictor = {
        "_target_": "predictor",
        "num_frames": context,
        "input_dim": latent,
        "hidden_dim": latent,
        "output_dim": latent,
    }
    predictor |= {"depth": blocks, "heads": predictor_heads, "mlp_dim": mlp, "dim_head": head_dim}
    projector = {
        "_target_": "mlp",
        "output_dim": latent,
        "hidden_dim": hidden,
        "norm_fn": BATCH_NORM,
    }
    return {
        "_target_": "world.model",
        "encoder": encoder,
        "predictor": {**predictor, "dropout": 0.1, "emb_dropout": 0.0},
        "action_encoder": {"_target_": "embedder", "input_dim": actions, "emb_dim": latent},
        "projector": {**projector, "input_dim": width},
        "pred_proj": {**projector, "input_dim": latent},
    }


CONFIGS = {
    # Widths, heads and depths all differ, so that nothing fits by chance.
    "small": config_json(24, 32, 42, 14, 2, 3, 3, 2, 4, 16, 48, 40, 10),
    "full": config_json(192, 192, 224, 14, 12, 3, 3, 6, 16, 64, 2048, 2048, 10),
}

LAYER = {
    "first": (
        "encoder.encoder.layer.",
        {
            "q": "attention.attention.query",
            "k": "attention.attention.key",
            "v": "attention.attention.value",
            "out": "attention.output.dense",
            "fc1": "intermediate.dense",
            "fc2": "output.dense",
        },
    ),
    "second": (
        "encoder.layers.",
        {
            "q": "attention.q_proj",
            "k": "attention.k_proj",
            "v": "attention.v_proj",
            "out": "attention.o_proj",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        },
    ),
}
"""Prefix of the encoder's layers and names of its linear maps, in the two dialects."""


def sizes(config):
    """The numbers of a config.json by short names."""
    encoder, predictor = config["encoder"], config["predictor"]
    width, depth, heads = SIZES[encoder["size"]]
    return SimpleNamespace(
        width=encoder.get("hidden_size", width),
        depth=encoder.get("num_hidden_layers", depth),
        heads=encoder.get("num_attention_heads", heads),
        patch=encoder["patch_size"],
        image=encoder["image_size"],
        latent=predictor["input_dim"],
        context=predictor["num_frames"],
        blocks=predictor["depth"],
        predictor_heads=predictor["heads"],
        head_dim=predictor["dim_head"],
        mlp=predictor["mlp_dim"],
        hidden=config["projector"]["hidden_dim"],
        actions=config["action_encoder"]["input_dim"],
    )


def shapes(config, dialect="first"):
    """Name -> shape of every tensor of a published checkpoint (303 at full size)."""
    s = sizes(config)
    found = {
        "encoder.embeddings.cls_token": (1, 1, s.width),
        "encoder.embeddings.position_embeddings": (1, 1 + (s.image // s.patch) ** 2, s.width),
        "encoder.embeddings.patch_embeddings.projection.weight": (s.width, 3, s.patch, s.patch),
        "encoder.embeddings.patch_embeddings.projection.bias": (s.width,),
        "predictor.pos_embedding": (1, s.context, s.latent),
        "action_encoder.patch_embed.weight": (10, s.actions, 1),
        "action_encoder.patch_embed.bias": (10,),
    }

    def norm(name, width):
        found.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def linear(name, rows, columns, bias=True):
        found[f"{name}.weight"] = (rows, columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    prefix, names = LAYER[dialect]
    for n in range(s.depth):
        norm(f"{prefix}{n}.layernorm_before", s.width)
        norm(f"{prefix}{n}.layernorm_after", s.width)
        for part in ("q", "k", "v", "out"):
            linear(f"{prefix}{n}.{names[part]}", s.width, s.width)
        linear(f"{prefix}{n}.{names['fc1']}", 4 * s.width, s.width)
        linear(f"{prefix}{n}.{names['fc2']}", s.width, 4 * s.width)
    norm("encoder.layernorm", s.width)
    for n in range(s.blocks):
        block, inner = f"predictor.transformer.layers.{n}", s.predictor_heads * s.head_dim
        norm(f"{block}.attn.norm", s.latent)
        linear(f"{block}.attn.to_qkv", 3 * inner, s.latent, bias=False)
        linear(f"{block}.attn.to_out.0", s.latent, inner)
        norm(f"{block}.mlp.net.0", s.latent)
        linear(f"{block}.mlp.net.1", s.mlp, s.latent)
        linear(f"{block}.mlp.net.4", s.latent, s.mlp)
        linear(f"{block}.adaLN_modulation.1", 6 * s.latent, s.latent)
    norm("predictor.transformer.norm", s.latent)
    linear("action_encoder.embed.0", 4 * s.latent, 10)
    linear("action_encoder.embed.2", s.latent, 4 * s.latent)
    for name, width in (("projector", s.width), ("pred_proj", s.latent)):
        linear(f"{name}.net.0", s.hidden, width)
        norm(f"{name}.net.1", s.hidden)
        found |= {
            f"{name}.net.1.running_mean": (s.hidden,),
            f"{name}.net.1.running_var": (s.hidden,),
        }
        found[f"{name}.net.1.num_batches_tracked"] = ()
        linear(f"{name}.net.3", s.latent, s.hidden)
    return found


def weights(config, dialect="first"):
    """A state_dict in which nothing is 0, 1 or alike; each tensor is drawn from its name in the
    first dialect, alone.

    What the first layer norms see is small, as it is at the start of a training, so that their
    epsilons show.
    """
    made = {}
    for name, (as_first, shape) in zip(
        shapes(config, dialect), shapes(config).items(), strict=True
    ):
        normal = np.random.RandomState(zlib.crc32(as_first.encode())).standard_normal(shape)
        kind = name.rpartition(".")[2]
        if kind == "num_batches_tracked":
            made[name] = torch.tensor(1234)
            continue
        if kind == "running_var":
            values = np.exp(0.3 * normal)
        elif kind == "weight" and len(shape) == 1:  # of a norm
            values = 1 + 0.2 * normal
        elif kind == "weight":
            values = normal / math.sqrt(np.prod(shape[1:]))
        else:
            values = 0.2 * normal
        if name.startswith("encoder.embeddings"):
            values = values / 200
        elif name.startswith(("projector.net.3", "pred_proj.net.3", "predictor.pos")):
            values = values / 10
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def inputs(config, batch=2, candidates=3, horizon=5, slices=8, seed=0):
    """Pixels (B,4,3,h,w) and goal pixels (B,1,3,h,w) uint8, training blocks (B,3,A), plans
    (B,N,2+H,A), directions (D,M)."""
    s, draw = sizes(config), np.random.RandomState(seed)
    grid = draw.randint(0, 256, (batch, 5, 3, s.image // s.patch, s.image // s.patch)).astype(
        np.uint8
    )
    pixels = (
        torch.from_numpy(grid)
        .repeat_interleave(s.patch // 2, -1)
        .repeat_interleave(s.patch // 2, -2)
    )
    pixels = torch.nn.functional.pad(
        pixels.flatten(0, 1), [0, s.image - pixels.shape[-1]] * 2, "circular"
    ).unflatten(0, (batch, 5))
    normal = [
        torch.from_numpy(draw.standard_normal(n).astype(np.float32))
        for n in ((batch, 3, s.actions), (s.latent, slices))
    ]
    plans = torch.from_numpy(
        draw.standard_normal((batch, candidates, 2 + horizon, s.actions)).astype(np.float32)
    )
    directions = normal[1] / normal[1].norm(dim=0)
    return SimpleNamespace(
        pixels=pixels[:, :4],
        goal=pixels[:, 4:],
        blocks=normal[0],
        plans=plans,
        directions=directions,
    )


class Reference:
    """The published model on one state_dict. `training` makes batch norm use the batch (there is no
    dropout)."""

    def __init__(self, tensors, config, training=False):
        self.w, self.s, self.training = tensors, sizes(config), training
        self.dialect = (
            "first" if any(name.startswith(LAYER["first"][0]) for name in tensors) else "second"
        )

    def encode(self, pixels):
        """(B, T, 3, h, w) uint8 -> (B, T, D)."""
        mean, std = (
            torch.tensor(v, dtype=self._dtype).reshape(3, 1, 1)
            for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        tokens = self._vit((pixels.flatten(0, 1).to(self._dtype) / 255 - mean) / std)
        return self._projector("projector", tokens[:, 0]).unflatten(0, pixels.shape[:2])

    def predict(self, latents, actions):
        """(n, k, D) latents and the (n, k, A) blocks that leave them -> (n, k, D) latents one step
        later."""
        s, w = self.s, self.w
        kernel = w["action_encoder.patch_embed.weight"][:, :, 0]
        condition = actions @ kernel.T + w["action_encoder.patch_embed.bias"]
        condition = self._linear(
            "action_encoder.embed.2", _silu(self._linear("action_encoder.embed.0", condition))
        )
        x = latents + w["predictor.pos_embedding"][:, : latents.shape[1]]
        for n in range(s.blocks):
            block = f"predictor.transformer.layers.{n}"
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._linear(
                f"{block}.adaLN_modulation.1", _silu(condition)
            ).split(s.latent, dim=-1)
            y = self._norm(
                f"{block}.attn.norm", _standardised(x, 1e-6) * (1 + scale_a) + shift_a, 1e-5
            )
            q, k, v = (y @ w[f"{block}.attn.to_qkv.weight"].T).split(
                s.predictor_heads * s.head_dim, dim=-1
            )
            x = x + gate_a * self._linear(
                f"{block}.attn.to_out.0", _attention((q, k, v), s.predictor_heads, causal=True)
            )
            y = self._norm(
                f"{block}.mlp.net.0", _standardised(x, 1e-6) * (1 + scale_m) + shift_m, 1e-5
            )
            x = x + gate_m * self._linear(
                f"{block}.mlp.net.4", _gelu(self._linear(f"{block}.mlp.net.1", y))
            )
        x = self._norm("predictor.transformer.norm", x, 1e-5)
        return self._projector("pred_proj", x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def rollout(self, context, blocks):
        """(k, D) latents, (k-1+H, A) blocks of which number i leaves frame i -> (H, D), for one
        candidate."""
        frames, known = list(context), len(context)
        while len(frames) <= len(blocks):
            present = len(frames)
            oldest = max(0, present - self.s.context)
            after = self.predict(torch.stack(frames[oldest:])[None], blocks[None, oldest:present])
            frames.append(after[0, -1])
        return torch.stack(frames[known:])

    def loss(self, pixels, blocks, directions):
        """Prediction error and SIGReg of (B, 4, ...) windows, not weighted."""
        z = self.encode(pixels)
        predicted = self.predict(z[:, :3], blocks)
        statistics = []
        for t in range(z.shape[1]):
            for direction in directions.T:
                h, value = z[:, t] @ direction, 0.0
                for k in range(17):
                    knot, step = 3 * k / 16, 3 / 16
                    weight = (step if k in (0, 16) else 2 * step) * math.exp(-(knot**2) / 2)
                    real, imaginary = (
                        (knot * h).cos().mean() - math.exp(-(knot**2) / 2),
                        (knot * h).sin().mean(),
                    )
                    value = value + weight * (real**2 + imaginary**2)
                statistics.append(len(z) * value)
        return ((predicted - z[:, 1:]) ** 2).mean(), torch.stack(statistics).mean()

    @property
    def _dtype(self):
        return self.w["predictor.pos_embedding"].dtype

    def _vit(self, pictures):
        s, w, (prefix, names) = self.s, self.w, LAYER[self.dialect]
        side, embeddings = s.image // s.patch, "encoder.embeddings"
        patches = (
            pictures.reshape(-1, 3, side, s.patch, side, s.patch)
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        kernel = w[f"{embeddings}.patch_embeddings.projection.weight"].flatten(1)
        patches = patches @ kernel.T + w[f"{embeddings}.patch_embeddings.projection.bias"]
        x = torch.cat(
            [w[f"{embeddings}.cls_token"].expand(len(patches), 1, s.width), patches], dim=1
        )
        x = x + w[f"{embeddings}.position_embeddings"]
        for n in range(s.depth):
            layer = f"{prefix}{n}."
            y = self._norm(f"{layer}layernorm_before", x, 1e-12)
            q, k, v = (self._linear(layer + names[part], y) for part in "qkv")
            x = x + self._linear(layer + names["out"], _attention((q, k, v), s.heads))
            y = self._norm(f"{layer}layernorm_after", x, 1e-12)
            x = x + self._linear(layer + names["fc2"], _gelu(self._linear(layer + names["fc1"], y)))
        return self._norm("encoder.layernorm", x, 1e-12)

    def _projector(self, name, x):
        w, x = self.w, self._linear(f"{name}.net.0", x)
        mean, variance = w[f"{name}.net.1.running_mean"], w[f"{name}.net.1.running_var"]
        if self.training:
            mean = x.mean(dim=0)
            variance = ((x - mean) ** 2).mean(dim=0)
        x = (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.net.1.weight"] + w[
            f"{name}.net.1.bias"
        ]
        return self._linear(f"{name}.net.3", _gelu(x))

    def _linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, name, x, eps):
        return _standardised(x, eps) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def _standardised(x, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / ((centred**2).mean(dim=-1, keepdim=True) + eps).sqrt()


def _attention(queries_keys_values, heads, causal=False):
    mixed = []
    for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in queries_keys_values), strict=True):
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if causal:
            future = torch.ones(scores.shape[-2:]).triu(1).bool()
            scores = scores.masked_fill(future, -math.inf)
        mixed.append(scores.softmax(dim=-1) @ v)
    return torch.cat(mixed, dim=-1)


def _gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _silu(x):
    return x / (1 + torch.exp(-x))
