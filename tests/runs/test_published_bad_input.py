"""What is wrong with a published checkpoint is said in one paragraph, and nothing that it brings is
executed."""

import json
import os
import sys

import pytest
import torch

from lewm.cli.main import main
from lewm.runs.published import build, read_checkpoint
from tests.support.published import CONFIG, MEAN, STD, checkpoint, edited
from tests.support.reference_lewm import CONFIGS, weights


def refusal(folder):
    """The one paragraph that a checkpoint is answered with."""
    with pytest.raises(ValueError, match=r"expected .*, got .*\.$") as caught:
        build(read_checkpoint(folder), MEAN, STD)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_missing_and_left_over_tensors_and_shapes_are_named_up_to_ten(tmp_path):
    tensors = weights(CONFIG)
    del (
        tensors["encoder.encoder.layer.1.attention.attention.key.bias"],
        tensors["projector.net.1.running_var"],
    )
    tensors["encoder.pooler.dense.weight"] = torch.zeros(3)
    tensors["predictor.transformer.layers.1.mlp.net.4.bias"] = torch.zeros(7)
    tensors["projector.net.3.bias"][2] = torch.nan
    said = refusal(checkpoint(tmp_path / "c", tensors))
    for words in (
        "encoder.encoder.layer.1.attention.attention.key.bias is missing",
        "projector.net.1.running_var is missing",
        "encoder.pooler.dense.weight is unexpected",
        "predictor.transformer.layers.1.mlp.net.4.bias is (7,), expected (32,)",
        "projector.net.3.bias holds NaN",
    ):
        assert words in said
    assert "attention.query.bias" not in said
    no_layer = {name: tensor for name, tensor in weights(CONFIG).items() if ".layer.0." not in name}
    said = refusal(checkpoint(tmp_path / "d", no_layer))
    assert said.count("is missing") == 10
    assert "and 6 more" in said


@pytest.mark.parametrize(
    ("edit", "field", "tensor"),
    [
        (
            {"encoder__patch_size": 16},
            "encoder.patch_size 16, against 14",
            "patch_embeddings.projection.weight",
        ),
        ({"encoder__image_size": 224}, "encoder.image_size 224, against 42", "position_embeddings"),
        (
            {"encoder__num_hidden_layers": 12},
            "encoder.num_hidden_layers 12, against 2",
            "encoder.encoder.layer.1.",
        ),
        (
            {"encoder__hidden_size": None},
            "encoder.hidden_size 192, against 24",
            "encoder.embeddings.cls_token",
        ),
        (
            {"encoder__intermediate_size": None},
            "encoder.intermediate_size 768, against 96",
            "intermediate.dense.weight",
        ),
        (
            {"predictor__num_frames": 1},
            "predictor.num_frames 1, against 3",
            "(1, 3, 32) of predictor.pos_embedding",
        ),
        (
            {"predictor__depth": 6},
            "predictor.depth 6, against 2",
            "predictor.transformer.layers.1.",
        ),
        ({"predictor__heads": 8}, "predictor.heads x dim_head 128, against 64", "to_out.0.weight"),
        (
            {"predictor__hidden_dim": 64},
            "predictor.hidden_dim 64, against 32",
            "predictor.transformer.norm.weight",
        ),
        (
            {"action_encoder__input_dim": 25},
            "action_encoder.input_dim 25, against 10",
            "action_encoder.patch_embed.weight",
        ),
        (
            {"pred_proj__hidden_dim": 2048},
            "pred_proj.hidden_dim 2048, against 40",
            "pred_proj.net.0.weight",
        ),
    ],
)
def test_a_field_that_disagrees_with_a_tensor_is_named_with_it(edit, field, tensor, tmp_path):
    said = refusal(checkpoint(tmp_path / "c", config=edited(**edit)))
    assert field in said
    assert tensor in said
    assert str(tmp_path / "c" / "config.json") in said
    assert said.count("against") == 1


def test_what_the_tensors_tell_may_be_left_out_and_nothing_else(tmp_path):
    bare = {"encoder": {"num_attention_heads": 3}, "predictor": {"dim_head": 16}}
    model = build(read_checkpoint(checkpoint(tmp_path / "a", config=bare)), MEAN, STD)
    assert (model.config.predictor_heads, model.spec.image_size) == (4, 42)
    for part in bare:
        said = refusal(
            checkpoint(tmp_path / part, config={name: bare[name] for name in bare if name != part})
        )
        assert {"encoder": "encoder.num_attention_heads", "predictor": "predictor.heads"}[
            part
        ] in said
    with pytest.raises(
        ValueError,
        match=r"config.json: expected sizes that are known, .*'tinny'. Did you mean 'tiny'",
    ):
        build(
            read_checkpoint(checkpoint(tmp_path / "size", config=edited(encoder__size="tinny"))),
            MEAN,
            STD,
        )
    said = refusal(checkpoint(tmp_path / "heads", config=edited(encoder__num_attention_heads=5)))
    assert "heads must divide the encoder's width" in said


def test_of_a_third_dialect_and_of_other_models(tmp_path):
    third = {
        name.replace("encoder.encoder.layer", "encoder.blocks"): tensor
        for name, tensor in weights(CONFIG).items()
    }
    said = refusal(checkpoint(tmp_path / "a", third))
    assert "'encoder.encoder.layer.0...' or 'encoder.layers.0...'" in said
    assert "encoder.blocks.0.attention.attention.query.weight" in said
    assert "and 24 more" in said
    mixed = weights(CONFIG) | weights(CONFIG, "second")
    assert "encoder.layers.0.layernorm_before.weight is unexpected" in refusal(
        checkpoint(tmp_path / "b", mixed)
    )
    assert "the tensors of a LeWorldModel" in refusal(
        checkpoint(tmp_path / "c", {"fc.weight": torch.zeros(2)})
    )


class Hostile:
    def __reduce__(self):
        return os.makedirs, ("executed",)


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Python objects" in refusal(
        checkpoint(tmp_path / "a", {**weights(CONFIG), "x": Hostile()})
    )
    assert "Python objects" in refusal(checkpoint(tmp_path / "b", torch.nn.Linear(2, 2)))
    assert not (tmp_path / "executed").exists()
    (tmp_path / "evil_target.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    config = edited(encoder___target_="evil_target.build")
    assert build(
        read_checkpoint(
            checkpoint(tmp_path / "c", config={**config, "_target_": "evil_target.Model"})
        ),
        MEAN,
        STD,
    )
    assert "evil_target" not in sys.modules


def test_damaged_files_and_other_files(tmp_path):
    folder = checkpoint(tmp_path / "a")
    whole = (folder / "weights.pt").read_bytes()
    for damaged in (b"", b"not weights at all", whole[: len(whole) // 2]):
        (folder / "weights.pt").write_bytes(damaged)
        assert "damaged" in refusal(folder)
    assert "a state_dict" in refusal(checkpoint(tmp_path / "b", [1, 2]))
    assert "a state_dict" in refusal(checkpoint(tmp_path / "b", {"lr": 0.1}))
    folder = checkpoint(tmp_path / "c")
    for text in ("{", "[]", '{"encoder": '):
        (folder / "config.json").write_text(text)
        assert "config.json is damaged: expected the sizes of the model" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)
    folder = checkpoint(checkpoint(tmp_path / "d", name="one.pt"), name="two.pt")
    assert "one.pt, two.pt" in refusal(folder)
    (tmp_path / "e").mkdir()
    assert "no .pt file" in refusal(tmp_path / "e")
    assert "hf:user/name" in refusal(tmp_path / "nowhere")


def test_on_the_command_line_it_is_one_paragraph(tmp_path, capsys):
    config = json.loads(json.dumps(CONFIGS["full"]))
    words = [
        "import",
        str(checkpoint(tmp_path / "c", config=config)),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*words, "--action-mean=0", "--action-std=1"]) == 2
    said = capsys.readouterr().err
    assert "encoder.hidden_size 192, against 24" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
