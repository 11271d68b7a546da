"""Published weights in and out: the authors' `weights.pt` and `config.json` become a run, and a
model becomes those files.

`weights.pt` is a plain state_dict, 303 tensors at full size. `config.json` holds nested sizes,
which are checked against the tensors field by field, and `_target_` strings, which are never
imported: nothing that a file brings is executed.

Neither holds the statistics that normalise actions; ours adds them, in `statistics.json`.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import lewm
from lewm import registry
from lewm.contracts import DataSpec, Statistics, TrainableModel
from lewm.data.episodes import Episodes, check_fits
from lewm.data.split import statistics as statistics_of
from lewm.files import fetch, hold, read_json, write_atomically, write_json
from lewm.models.nn.trunk import Trunk, TrunkConfig
from lewm.planning.config import PlanningConfig, describe_planning
from lewm.runs import checkpoints
from lewm.runs.dialects import (
    DIALECTS,
    PARAMETERS,
    VIT_SIZES,
    measured_sizes,
    published_names,
    published_shape,
    stated_sizes,
)

__all__ = ["Published", "build", "export", "import_run", "read_checkpoint"]

Numbers = Sequence[float]
WEIGHTS, CONFIG, STATISTICS = "weights.pt", "config.json", "statistics.json"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in [0, 1], per colour. Source: the authors' training and evaluation code normalises all
worlds by them."""

TRAINING_ONLY = ("position", "stop_gradient", "zero_modulation")
"""Fields of our config, besides those of SIGReg, that change how a model is trained and nothing of
what its weights compute."""


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        path: of the weights; config.json lies beside them.
        tensors: by their published names, without a prefix that they share, such as "model.".
        config: the parsed config.json.
        dialect: of the encoder's names, one of `DIALECTS`.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    dialect: str


# ------------------------------------------------------------------------------------------ reading


def read_checkpoint(source: Path | str) -> Published:
    """Read a published checkpoint.

    Args:
        source: a folder with weights.pt (or a single other .pt file) and config.json, a .pt file
            with config.json beside it, or a hub id as in `files.fetch`.

    Raises:
        ValueError: files are missing or damaged, hold more than plain tensors, or are of no known
            dialect.
    """
    path = fetch(source, "model", (WEIGHTS, CONFIG, STATISTICS))
    if path.is_dir():
        found = [path / WEIGHTS] if (path / WEIGHTS).is_file() else sorted(path.glob("*.pt"))
        if len(found) != 1:
            raise _unfit(
                path,
                f"{WEIGHTS} in it",
                _listed([file.name for file in found], "no .pt file"),
                "Name the file",
            )
        path = found[0]
    if not path.is_file():
        raise _unfit(
            path,
            f"a folder with {WEIGHTS} and {CONFIG}",
            "no such folder",
            "To fetch one, write hf:user/name",
        )
    config = _beside(path, CONFIG, "the sizes of the model")
    tensors, cls = _load_tensors(path), PARAMETERS["encoder.cls"]
    first = next((name for name in tensors if name.endswith(cls)), None)
    if first is None:
        raise _unfit(
            path,
            f"the tensors of a LeWorldModel, {cls} among them",
            _listed(tensors),
            "Give another checkpoint",
        )
    tensors = {
        name.removeprefix(first.removesuffix(cls)): tensor for name, tensor in tensors.items()
    }
    for dialect, layers in DIALECTS.items():
        if any(name.startswith(f"{layers}.") for name in tensors):
            return Published(path, tensors, config, dialect)
    expected = "encoder layers named " + " or ".join(
        f"'{layers}.0...'" for layers in DIALECTS.values()
    )
    strangers = [
        name
        for name in tensors
        if name.startswith("encoder.") and not name.startswith("encoder.embeddings.")
    ]
    raise _unfit(
        path,
        expected,
        _listed(strangers),
        "These weights are of another encoder, or in a dialect unknown here",
    )


def build(
    published: Published, action_mean: Iterable[float], action_std: Iterable[float]
) -> TrainableModel:
    """Make the model that a published checkpoint describes, with its weights, in evaluation mode.

    `emb_dropout` is passed over: it acts in training alone, and a LeWM has none.

    Args:
        action_mean, action_std: one number per dimension of the env's action, of the data that the
            weights were trained on.

    Raises:
        ValueError: config.json disagrees with the tensors; tensors are missing, left over, not
            finite or of a shape that does not fit (up to ten are named); or the action blocks are
            no multiple of the statistics' actions.
    """
    sizes, image_size, block_dim = _sizes(published)
    statistics = Statistics(
        IMAGENET_MEAN, IMAGENET_STD, tuple(map(float, action_mean)), tuple(map(float, action_std))
    )
    frameskip, rest = divmod(block_dim, statistics.action_dim)
    if rest:
        expected = (
            f"statistics of actions whose width divides that of the action block, {block_dim}"
        )
        raise _unfit(
            published.path,
            expected,
            f"{statistics.action_dim} numbers",
            "Take those of the training data",
        )
    spec = DataSpec(image_size, frameskip, statistics)
    try:
        config = registry.load("models", "lewm")(**sizes)
        with torch.device("meta"):  # of sizes that the tensors do not bear out
            own = config.build(spec).state_dict()  # nothing is allocated
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise _unfit(
            published.path.with_name(CONFIG),
            "sizes that fit each other",
            str(error).rstrip("."),
            "Mend it",
        ) from None
    tensors = _our_tensors(published, own)
    model = config.build(spec)
    checkpoints.fill(model, tensors, published.path)
    return model.eval()


def _sizes(published: Published) -> tuple[dict[str, Any], int, int]:
    """Settings of our config, the image size and A, from config.json and the tensors, which must
    agree where both speak."""
    path, tensors = published.path.with_name(CONFIG), published.tensors
    try:
        stated = stated_sizes(published.config)
    except ValueError as error:
        raise ValueError(f"{path}: expected sizes that are known, got {error}") from None
    measured = measured_sizes(tensors, published.dialect)
    wrong = [
        (
            f"{field} {stated[field]}, against {value} by the shape {tuple(tensors[name].shape)} "
            f"of {name}"
        )
        for field, (value, name) in measured.items()
        if stated.get(field, value) != value
    ]
    if wrong:
        raise _unfit(
            path,
            "sizes of the tensors beside it",
            _listed(wrong, between="; "),
            "The two are not of one model",
        )
    known = {**stated, **{field: value for field, (value, _) in measured.items()}}
    inner, heads, head_dim = (
        known.get(f"predictor.{field}") for field in ("heads x dim_head", "heads", "dim_head")
    )
    if inner and (heads or head_dim):  # one of the two and the tensors tell the other
        known |= {
            "predictor.heads": heads or inner // head_dim,
            "predictor.dim_head": head_dim or inner // heads,
        }

    def size(field: str) -> int:
        value = known.get(field)
        if type(value) is not int or value < 1:
            got = "none, and the tensors do not tell" if not value else str(value)
            raise _unfit(
                path, f"{field}, a whole number above 0", got, "Add it as it was in training"
            )
        return value

    sizes = {
        "patch_size": size("encoder.patch_size"),
        "encoder_width": size("encoder.hidden_size"),
        "encoder_depth": size("encoder.num_hidden_layers"),
        "encoder_heads": size("encoder.num_attention_heads"),
        "latent_dim": size("predictor.input_dim"),
        "projector_dim": size("projector.hidden_dim"),
        "context": size("predictor.num_frames"),
        # a published predictor of another width has maps that ours has not
        "predictor_width": size("predictor.input_dim"),
        "predictor_depth": size("predictor.depth"),
        "predictor_heads": size("predictor.heads"),
        "predictor_head_dim": size("predictor.dim_head"),
        "predictor_mlp_dim": size("predictor.mlp_dim"),
        "dropout": float(known.get("predictor.dropout", 0.0)),
    }
    return sizes, size("encoder.image_size"), size("action_encoder.input_dim")


def _our_tensors(published: Published, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under our names; `own` says what is needed."""
    there, left, ours, wrong = published.tensors, dict(published.tensors), {}, []
    for name, like in own.items():
        theirs = published_names(name, published.dialect)
        shape = published_shape(name, like, len(theirs))
        parts = [left.pop(their) for their in theirs if their in left]
        if len(parts) < len(theirs):
            wrong += [f"{their} is missing" for their in theirs if their not in there]
        elif misfits := [their for their in theirs if tuple(there[their].shape) != shape]:
            wrong += [
                f"{their} is {tuple(there[their].shape)}, expected {shape}" for their in misfits
            ]
        elif flaws := [
            f"{their} {flaw}"
            for their, part in zip(theirs, parts, strict=True)
            if (flaw := checkpoints.flaw_of(name, part))
        ]:
            wrong += flaws
        elif odd := [
            f"{their} is {part.dtype}, expected {like.dtype}"
            for their, part in zip(theirs, parts, strict=True)
            if part.is_floating_point() != like.is_floating_point()
        ]:
            wrong += odd
        else:
            ours[name] = torch.stack(parts).reshape(like.shape).to(like.dtype)
    wrong += [f"{name} is unexpected" for name in left]
    if wrong:
        expected = (
            f"a LeWorldModel of the sizes in its {CONFIG}, in the {published.dialect} dialect"
        )
        raise _unfit(
            published.path,
            expected,
            _listed(wrong, between="; "),
            "Fetch both files again, or export them anew",
        )
    return ours


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may provoke anything
        if zipfile.is_zipfile(path) and "weights_only" in str(error):
            got = "Python objects as well, whose code would run if they were loaded"
            raise _unfit(
                path, "plain tensors", got, "Save model.state_dict() instead of the model"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise _unfit(
            path,
            "weights that torch.save wrote",
            f"a damaged or other file ({reason})",
            "Fetch it again",
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, Tensor) for tensor in loaded.values()
    ):
        raise _unfit(
            path,
            "a state_dict, names and tensors",
            type(loaded).__name__,
            "Save model.state_dict()",
        )
    return {str(name): tensor.detach() for name, tensor in loaded.items()}


def _beside(path: Path, name: str, what: str) -> dict[str, Any]:
    """A JSON file that lies beside the weights."""
    beside = path.with_name(name)
    if not beside.is_file():
        raise _unfit(beside, what, "no such file", "It belongs beside the weights")
    return read_json(beside, f"{what} as JSON", "Fetch it again")


# -------------------------------------------------------------------------------------------- a run


def import_run(
    source: Path | str,
    out: Path,
    data: Path | None = None,
    action_mean: Numbers = (),
    action_std: Numbers = (),
    world: str | None = None,
    plannings: Mapping[str, PlanningConfig] = MappingProxyType({}),
) -> Path:
    """Turn a published checkpoint into a run folder.

    The statistics of its actions are those given; or those in a statistics.json beside the weights,
    which `export` writes; or those of all rows of `data` but the ones with NaN, which is how the
    authors compute them, validation episodes included. Pixels are normalised by ImageNet's, as
    published.

    Args:
        source: as for `read`.
        out: run folder to make.
        data: episode file that the run is then used with; which of it was held out of its training
            is unknown.
        action_mean, action_std: one number per dimension of the env's action.
        world: name of the world; by default the data's.
        plannings: world -> how a run of it plans, which the run stores; of other worlds it stores
            nothing.

    Returns:
        `out`. Its experiment.json says what was imported and from where the statistics are.

    Raises:
        ValueError: nothing says how actions are normalised, the checkpoint is unsound, the data do
            not fit it, or `out` holds another run.
    """
    published = read_checkpoint(source)
    _, image_size, block_dim = _sizes(published)
    if world is not None:
        world = registry.choose("world", world.replace("_", "-"), registry.names("worlds"))
    mean, std, origin = _known_statistics(published, action_mean, action_std)
    if data is not None:
        with Episodes.open(data) as episodes:
            check_fits(episodes, image_size)
            found = episodes.provenance.world
            if None not in (world, found) and world != found:
                raise _unfit(
                    episodes.path,
                    f"episodes of world '{world}'",
                    f"some of '{found}'",
                    f"Pass --world {found}",
                )
            world = world or found
            if not mean:
                # of its pixels nothing is asked
                seen = statistics_of(episodes, range(len(episodes)), max_frames=1)
                mean, std, origin = (
                    seen.action_mean,
                    seen.action_std,
                    f"all {episodes.steps} rows of {data}",
                )
    if not mean:
        cure = (
            "Published weights lack them: pass --data FILE, what they were trained on, or "
            "--action-mean and --action-std, a number for each dimension of the env's action "
            f"(the action block holds {block_dim}, of all its steps)"
        )
        raise _unfit(published.path, "the statistics that normalise its actions", "none", cure)
    model = build(published, mean, std)
    digest, config = hashlib.sha256(published.path.read_bytes()).hexdigest(), dict(published.config)
    imported = {
        "sha256": digest,
        "dialect": published.dialect,
        "statistics": origin,
        "config": config,
    }
    data_path = None if data is None else str(Path(data).resolve())
    description = {
        "model": checkpoints.describe_model(model),
        "imported": imported,
        "world": world,
        "data_path": data_path,
    }
    extra: dict[str, Any] = {
        "source": str(source),
        "lewm": lewm.__version__,
        "torch": torch.__version__,
    }
    if world is not None and world in plannings:
        extra["planning"] = describe_planning(plannings[world])
    with checkpoints.held(Path(out)):
        checkpoints.claim(Path(out), description, extra)
        checkpoints.save(Path(out), 0, model)
    return Path(out)


def _known_statistics(
    published: Published, mean: Numbers, std: Numbers
) -> tuple[Numbers, Numbers, str]:
    """Mean and std that were given or that lie beside the weights, and which of the two; else
    empty."""
    origin, beside = "given", published.path.with_name(STATISTICS)
    if not mean and not std:
        if not beside.is_file():
            return (), (), ""
        values = _beside(published.path, STATISTICS, "the statistics of the actions")
        origin = str(beside)
        mean, std = values.get("action_mean", ()), values.get("action_std", ())
    try:
        sound = (
            len(mean) == len(std) > 0 and min(std) > 0 and all(map(math.isfinite, (*mean, *std)))
        )
    except TypeError:  # a file may hold anything
        sound = False
    if not sound:
        raise ValueError(
            f"action_mean and action_std ({origin}): expected a finite number in each for every "
            f"dimension of the action, std above 0, got {mean} and {std}. Take both from the data "
            "that the weights were trained on."
        )
    return mean, std, origin


# ------------------------------------------------------------------------------------------ writing


def export(model: TrainableModel, folder: Path, dialect: str = "first") -> Published:
    """Write a model in the published form: weights.pt, config.json and, which is ours,
    statistics.json.

    A model that normalises pixels by statistics of its own gets them folded into its patch
    projection, so that it makes the same latents of pixels that were normalised by ImageNet's,
    which is what others feed it. All else is kept bit by bit.

    Args:
        model: a `LeWM`.
        folder: to make.
        dialect: "first", as in the published files, or "second", as today's libraries build it.

    Raises:
        ValueError: the published form has no place for this model (the fields are named), or
            `folder` holds weights already.
    """
    registry.choose("dialect", dialect, DIALECTS)
    if not isinstance(model.config, registry.load("models", "lewm")):
        raise ValueError(
            f"the published form holds a LeWorldModel, got a {type(model).__name__}. Export a run "
            "of 'lewm'."
        )
    assert isinstance(model, Trunk)
    path = Path(folder) / WEIGHTS
    if path.exists():
        raise _unfit(
            path.parent,
            "a folder without published weights",
            WEIGHTS,
            "Choose another folder, or delete it",
        )
    config = _published_config(model)
    _refuse_what_is_lost(model.config, Published(path, {}, config, dialect))
    tensors: dict[str, Tensor] = {}
    for name, tensor in {**model.state_dict(), **_patches_for_imagenet(model)}.items():
        theirs = published_names(name, dialect)
        parts = tensor.reshape(len(theirs), *published_shape(name, tensor, len(theirs)))
        # Clones: the parts of what is fused share its memory, and the model lives on.
        tensors |= {their: part.cpu().clone() for their, part in zip(theirs, parts)}
    checkpoints.check_weights(tensors, path)
    content = io.BytesIO()
    torch.save(tensors, content)
    statistics = {
        name: list(getattr(model.spec.statistics, name)) for name in ("action_mean", "action_std")
    }
    with hold(path.parent):
        write_json(path.with_name(CONFIG), config)
        write_json(path.with_name(STATISTICS), statistics)
        write_atomically(path, content.getvalue())
    return Published(path, tensors, config, dialect)


def _refuse_what_is_lost(config: TrunkConfig, published: Published) -> None:
    """Every field that does not come back from the published form must be one of training alone."""
    back = registry.load("models", "lewm")(**_sizes(published)[0])
    names = [
        f.name
        for f in fields(config)
        if f.name not in TRAINING_ONLY and not f.name.startswith("sigreg_")
    ]
    pairs = [(name, getattr(config, name), getattr(back, name)) for name in names]
    lost = [
        f"{name}={own!r} (there it is {theirs!r})" for name, own, theirs in pairs if own != theirs
    ]
    if config.predictor_heads == 1 and config.predictor_head_dim == config.latent_dim:
        lost.append("predictor_heads=1 as wide as the latent (there it has no output map)")
    if lost:
        cure = "Train one that it can hold, such as a paper recipe"
        raise ValueError(f"the published form cannot hold this model: {', '.join(lost)}. {cure}.")


def _published_config(model: Trunk) -> dict[str, Any]:
    """A config.json from which the authors' library builds the same model."""
    c, D, module = model.config, model.latent_dim, "stable_worldmodel.wm.lewm.module"
    made_of = (c.encoder_width, c.encoder_depth, c.encoder_heads)
    named = [name for name, known in VIT_SIZES.items() if known == made_of]
    words = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    encoder = {
        "size": named[0] if named else "tiny",
        "patch_size": c.patch_size,
        "image_size": model.spec.image_size,
    }
    encoder |= {} if named else dict(zip(words, (*made_of, 4 * c.encoder_width)))
    predictor = {
        "num_frames": c.context,
        "input_dim": D,
        "hidden_dim": D,
        "output_dim": D,
        "depth": c.predictor_depth,
    }
    predictor |= {
        "heads": c.predictor_heads,
        "mlp_dim": c.predictor_mlp_dim,
        "dim_head": c.predictor_head_dim,
    }
    norm = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
    projector = {
        "_target_": f"{module}.MLP",
        "output_dim": D,
        "hidden_dim": c.projector_dim,
        "norm_fn": norm,
    }
    vit = {
        "_target_": "stable_pretraining.backbone.utils.vit_hf",
        "pretrained": False,
        "use_mask_token": False,
    }
    return {
        "_target_": "stable_worldmodel.wm.lewm.LeWM",
        "encoder": {**vit, **encoder},
        "predictor": {
            "_target_": f"{module}.Predictor",
            **predictor,
            "dropout": c.dropout,
            "emb_dropout": 0.0,
        },
        "action_encoder": {
            "_target_": f"{module}.Embedder",
            "input_dim": model.spec.block_dim,
            "emb_dim": D,
        },
        "projector": {**projector, "input_dim": c.encoder_width},
        "pred_proj": {**projector, "input_dim": D},
    }


def _patches_for_imagenet(model: Trunk) -> dict[str, Tensor]:
    """The patch projection for pixels that ImageNet's statistics normalise; empty where those are
    the model's own."""
    s = model.spec.statistics
    if (s.pixel_mean, s.pixel_std) == (IMAGENET_MEAN, IMAGENET_STD):
        return {}
    weight, bias = (
        model.state_dict()[f"encoder.patches.{leaf}"].double().cpu() for leaf in ("weight", "bias")
    )
    own_mean, own_std, mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
        for v in (s.pixel_mean, s.pixel_std, IMAGENET_MEAN, IMAGENET_STD)
    )
    # With p a pixel: (p - own_mean) / own_std = (p - mean) / std * (std / own_std) + (mean -
    # own_mean) / own_std.
    folded = {
        "weight": weight * std / own_std,
        "bias": bias + (weight * (mean - own_mean) / own_std).sum(dim=(1, 2, 3)),
    }
    return {f"encoder.patches.{leaf}": tensor.float() for leaf, tensor in folded.items()}


def _listed(items: Iterable[str], none: str = "none", between: str = ", ") -> str:
    """Up to ten, and how many more."""
    items = list(items)
    return (between.join(items[:10]) or none) + (
        f" and {len(items) - 10} more" if len(items) > 10 else ""
    )


def _unfit(path: Path, expected: str, got: str, cure: str) -> ValueError:
    return ValueError(f"{path}: expected {expected}, got {got}. {cure}.")
