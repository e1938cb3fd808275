"""Others' checkpoints in: the same weights from every format, and a clear refusal of what is no DiT."""

import argparse
import copy
import functools
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ray_dit
from ray_dit.checkpoints.exporting import export
from ray_dit.checkpoints.importing import import_checkpoint
from ray_dit.config import (
    DiffusionConfig,
    DiTConfig,
    ExportConfig,
    ImportConfig,
)
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.model import read_model
from ray_dit.formats.labels import Labels
from ray_dit.vae import VAE
from tests.support.checkpoints import GOLDEN, imported, same


def test_recognises_the_shape(model: str) -> None:
    expected = DiTConfig(**json.loads((GOLDEN / "config.json").read_text()))
    config = read_model(model).config
    assert config.model == expected
    assert config.guidance_channels is None
    assert config.latents == LatentsConfig(scale=0.18215, image_size=16)
    assert "tiny.pt (sha256 " in config.origin


def test_an_imported_model_makes_the_golden_output(model: str) -> None:
    with np.load(GOLDEN / "cases.npz") as cases:
        x, t, y, expected = (torch.from_numpy(cases[key]) for key in ("x", "t", "y", "forward"))
    output = ray_dit.load(model, device="cpu").model(x, t, y)
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


WAYS = [
    "ema",
    "ema of one number",
    "model",
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "half",
    "old format",
]


@pytest.mark.parametrize("wrapped", [*WAYS, "safetensors", "safetensors, compiled", "tied"])
def test_every_way_weights_are_stored(
    official: dict[str, Tensor], vae: Path, tmp_path: Path, wrapped: str
) -> None:
    other = {name: torch.zeros_like(value) for name, value in official.items()}
    contents = {
        "ema": {"model": other, "ema": official, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)},
        "model": {"model": official, "args": {"lr": 1e-4}},
        "ema of one number": {"ema": {"decay": torch.ones(())}, "model": official},
        **{
            prefix: {f"{prefix}{name}": value for name, value in official.items()}
            for prefix in ("module.", "_orig_mod.", "_orig_mod.module.")
        },
        "half": {name: value.half() for name, value in official.items()},
    }
    if wrapped == "tied":  # one tensor under two names
        name, twin = "blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight"
        official = contents["tied"] = {**official, twin: official[name]}
    path = tmp_path / ("w.safetensors" if wrapped.startswith("safetensors") else "w.pt")
    if wrapped.startswith("safetensors"):
        prefix = "_orig_mod." if wrapped.endswith("compiled") else ""
        save_file({f"{prefix}{name}": value for name, value in official.items()}, path)
    else:
        torch.save(
            contents.get(wrapped, official), path, _use_new_zipfile_serialization=wrapped != "old format"
        )
    state = read_model(imported(path, tmp_path / "model", vae=str(vae))).state_dict()
    expected = {n: v.half().float() for n, v in official.items()} if wrapped == "half" else official
    assert same(state, expected)


def test_presets_need_no_heads_and_1000_classes_are_imagenet(vae: Path, tmp_path: Path) -> None:
    config = DiTConfig.preset("DiT-S/8", input_size=8)
    torch.save(DiT(config).state_dict(), tmp_path / "DiT-XL-2-256x256.pt")
    found = read_model(
        imported(tmp_path / "DiT-XL-2-256x256.pt", tmp_path / "m", vae=str(vae), num_heads=None)
    )
    assert found.config.model == config
    assert found.labels == Labels.imagenet()
    assert found.labels.resolve("golden retriever") == 207
    assert found.config.licence == "CC-BY-NC-4.0"
    assert "license: cc-by-nc-4.0" in (tmp_path / "m" / "README.md").read_text()


def test_class_names(official: dict[str, Tensor], vae: Path, tmp_path: Path) -> None:
    torch.save(official, tmp_path / "w.pt")
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij") + "\n")
    by_name = imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae), labels=str(tmp_path / "names.txt"))
    assert read_model(by_name).labels.resolve("c") == 2
    unnamed = imported(tmp_path / "w.pt", tmp_path / "n", vae=str(vae))
    assert read_model(unnamed).labels == Labels.numbered(10)
    (tmp_path / "eleven.json").write_bytes(Labels(tuple("abcdefghijk")).to_json())
    all_classes = imported(
        tmp_path / "w.pt", tmp_path / "o", vae=str(vae), labels=str(tmp_path / "eleven.json")
    )
    assert read_model(all_classes).config.model.class_dropout_prob == 0, (
        "eleven names leave no row for a null class"
    )
    with pytest.raises(UserError, match="imagenet names 1000 classes, but w.pt has 10"):
        imported(tmp_path / "w.pt", tmp_path / "p", vae=str(vae), labels="imagenet")


def test_a_vae_by_hub_id_is_fetched_when_needed(official: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(official, tmp_path / "w.pt")
    folder = read_model(imported(tmp_path / "w.pt", tmp_path / "m"))
    assert folder.vae_uri == "stabilityai/sd-vae-ft-ema"
    assert not (tmp_path / "m" / "vae").exists()
    assert folder.config.latents.image_size == 64


def test_importing_again_redoes_nothing_and_another_source_is_refused(
    official: dict[str, Tensor], vae: Path, tmp_path: Path
) -> None:
    torch.save(official, tmp_path / "w.pt")
    output = imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))
    before = {path: path.stat().st_mtime_ns for path in Path(output).rglob("*")}
    imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))
    assert {path: path.stat().st_mtime_ns for path in Path(output).rglob("*")} == before
    torch.save({name: value + 1 for name, value in official.items()}, tmp_path / "w.pt")
    with pytest.raises(Conflict, match="inputs.source"):
        imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))


def test_a_url_is_fetched(official: dict[str, Tensor], vae: Path, tmp_path: Path) -> None:
    torch.save(official, tmp_path / "w.pt")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        import_checkpoint(
            ImportConfig(source=f"{host}/w.pt", output=str(tmp_path / "m"), vae=str(vae), num_heads=4)
        )
        with pytest.raises(NotFound, match="gone.pt"):
            import_checkpoint(ImportConfig(source=f"{host}/gone.pt", output=str(tmp_path / "n")))
        server.shutdown()
    assert same(read_model(str(tmp_path / "m")).state_dict(), official)


class Payload:
    """Code in a pickle: makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_refused_by_name_and_not_run(
    official: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"ema": official, "args": Payload(tmp_path / "trap")}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt holds code, not only weights \(posix.mkdir\)"):
        imported(tmp_path / "w.pt", tmp_path / "m")
    assert not (tmp_path / "trap").exists()
    assert not (tmp_path / "m").exists()


def test_what_is_no_dit_is_refused(official: dict[str, Tensor], tmp_path: Path) -> None:
    def refusal(weights: object, **fields: object) -> str:
        torch.save(weights, tmp_path / "w.pt")
        with pytest.raises(UserError) as caught:
            imported(tmp_path / "w.pt", tmp_path / "m", **fields)
        assert "w.pt" in str(caught.value)
        assert not (tmp_path / "m").exists(), "a refused source must leave nothing"
        return str(caught.value)

    without = {name: value for name, value in official.items() if not name.startswith("blocks.1.mlp")}
    assert "missing: blocks.1.mlp.fc1.weight, blocks.1.mlp.fc1.bias" in refusal(without)
    gone = {name: value for name, value in official.items() if not name.startswith("blocks.1.")}
    assert "missing: blocks.1." in refusal(gone)  # a whole block, and still no shallower model
    assert "depth: Input should be less than" in refusal({**official, "blocks.5000.x": torch.zeros(1)})
    assert "unexpected: blocks.50000.x" in refusal({**official, "blocks.50000.x": torch.zeros(1)})
    assert "unexpected: extra" in refusal({**official, "extra": torch.zeros(1)})
    bent = {**official, "blocks.2.attn.proj.weight": torch.zeros(3, 64)}
    assert "blocks.2.attn.proj.weight is 3x64 instead of 64x64" in refusal(bent)
    assert "of no DiT (missing: x_embedder.proj.weight)" in refusal({"weight": torch.zeros(1)})
    assert "pos_embed has shape (16, 64)" in refusal({**official, "pos_embed": torch.zeros(16, 64)})
    assert "not a multiple of num_heads 7" in refusal(official, num_heads=7)
    assert "give it with --num-heads" in refusal(official, num_heads=None)
    assert "holds no weights" in refusal({"epoch": 3})
    assert "diffusers' parameter names" in refusal({"pos_embed.proj.weight": torch.zeros(1)})


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, model: str) -> None:
    for content in (b"", b"garbage", b"PK\x03\x04garbage"):
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(UserError, match="w.pt is no torch checkpoint"):
            imported(tmp_path / "w.pt", tmp_path / "m")
    with pytest.raises(NotFound, match="gone.pt"):
        imported(tmp_path / "gone.pt", tmp_path / "m")
    with pytest.raises(NotFound, match="no checkpoint at .*nowhere"):
        imported(tmp_path / "nowhere", tmp_path / "m")
    with pytest.raises(UserError, match="is a model folder of ray-dit already"):
        imported(Path(model), tmp_path / "m")


def test_a_folder_as_diffusers_made_it(official: dict[str, Tensor], tmp_path: Path) -> None:
    """Without our side file: 1,000 classes, old class name, .bin weights."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        out_channels=8,
    )
    blocks = theirs.transformer_blocks
    for block in blocks[1:]:
        block.norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    theirs.save_pretrained(tmp_path / "new")
    found = read_model(imported(tmp_path / "new", tmp_path / "m", labels="imagenet"))
    assert found.config.model == DiTConfig(input_size=4, hidden_size=32, depth=2, num_heads=2)
    state = found.state_dict()
    assert torch.equal(state["blocks.1.attn.qkv.weight"][32:64], blocks[1].attn1.to_k.weight)
    assert torch.equal(state["pos_embed"], DiT(found.config.model).pos_embed)

    (tmp_path / "old").mkdir()
    settings = json.loads((tmp_path / "new" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(
        json.dumps({**settings, "_class_name": "Transformer2DModel"})
    )
    torch.save(theirs.state_dict(), tmp_path / "old" / "diffusion_pytorch_model.bin")
    assert same(read_model(imported(tmp_path / "old", tmp_path / "n")).state_dict(), state)

    with torch.no_grad():
        blocks[1].norm1.emb.timestep_embedder.linear_1.bias += 1
    theirs.save_pretrained(tmp_path / "drifted")
    with pytest.raises(UserError, match="different embedders .*linear_1.bias of block 1"):
        imported(tmp_path / "drifted", tmp_path / "o")
    (tmp_path / "new" / "config.json").write_text(json.dumps({**settings, "norm_type": "layer_norm"}))
    with pytest.raises(UserError, match="no DiT .norm_type is 'layer_norm'"):
        imported(tmp_path / "new", tmp_path / "o")


def test_diffusers_weights_that_are_missing_or_unknown_are_listed(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "p")
    path = tmp_path / "p" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    bias = weights.pop("proj_out_1.bias")
    del weights["transformer_blocks.1.attn1.to_k.weight"]
    save_file(weights | {"extra": bias}, path)
    with pytest.raises(UserError) as caught:
        imported(tmp_path / "p", tmp_path / "m")
    assert "missing: proj_out_1.bias, transformer_blocks.1.attn1.to_k.weight; unexpected: extra" in str(
        caught.value
    )


def test_the_schedule_of_a_pipeline_is_read(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "p")
    (tmp_path / "p" / "ray_dit.json").unlink()
    path = tmp_path / "p" / "scheduler" / "scheduler_config.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"num_train_timesteps": 500, "beta_end": 0.03}))
    read = read_model(imported(tmp_path / "p", tmp_path / "m")).config.diffusion
    assert read == DiffusionConfig(num_train_timesteps=500, beta_end=0.03)
    for told, expected in (({"num_train_timesteps": 1000}, (1000, 0.03)), ({"beta_end": 0.02}, (500, 0.02))):
        folder = tmp_path / f"told-{expected[0]}"
        found = read_model(imported(tmp_path / "p", folder, diffusion=told)).config.diffusion
        assert (found.num_train_timesteps, found.beta_end) == expected
    path.write_text(json.dumps(known | {"beta_end": None}))
    with pytest.raises(UserError, match="scheduler in .* can't be used .beta_end"):
        imported(tmp_path / "p", tmp_path / "o")
    path.write_text(json.dumps(known | {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}))
    with pytest.raises(
        UserError, match="beta_schedule is 'scaled_linear', prediction_type is 'v_prediction'"
    ):
        imported(tmp_path / "p", tmp_path / "o")


def test_what_weights_alone_do_not_say_can_be_told(
    official: dict[str, Tensor], exported: Path, vae: Path, tmp_path: Path
) -> None:
    torch.save(official, tmp_path / "tiny.pt")
    told = {"shift": (0.1, 0.2, 0.3, 0.4), "scale": 2.0, "diffusion": {"beta_end": 0.03}}
    config = read_model(imported(tmp_path / "tiny.pt", tmp_path / "m", vae=str(vae), **told)).config
    assert (config.latents.shift, config.latents.scale) == (told["shift"], 2.0)
    assert config.diffusion == DiffusionConfig(beta_end=0.03)
    over = {"licence": "MIT", "guidance_channels": 2, "scale": 0.7}
    config = read_model(imported(exported, tmp_path / "side", **over)).config
    assert (config.licence, config.guidance_channels, config.latents.scale) == ("MIT", 2, 0.7)
    assert config.origin == "a test"  # the rest as the pipeline tells it
    told_default = {"guidance_channels": 3, "diffusion": {"num_train_timesteps": 1000}}
    config = read_model(imported(exported, tmp_path / "default", **told_default)).config
    assert (config.guidance_channels, config.diffusion.num_train_timesteps) == (3, 1000)
    everywhere = read_model(
        imported(tmp_path / "tiny.pt", tmp_path / "all", vae=str(vae), guidance_channels="all")
    )
    assert everywhere.config.guidance_channels is None
    with pytest.raises(UserError, match="guidance_channels is 9, but the latents have 4"):
        imported(tmp_path / "tiny.pt", tmp_path / "nine", vae=str(vae), guidance_channels=9)


def test_a_hub_vae_that_was_exported_comes_back_as_a_folder(
    model: str, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "hub")
    config = read_model(model).config
    changed = config.model_copy(
        update={"vae": "someone/vae", "latents": LatentsConfig(shift=0.5, scale=2.0, image_size=16)}
    )
    (tmp_path / "hub" / "config.json").write_text(changed.model_dump_json())
    (tmp_path / "hub" / "_job.json").unlink()  # made by hand, so no job vouches for its bytes
    shutil.rmtree(tmp_path / "hub" / "vae")
    there = VAE.load(str(vae)).module  # what the hub would send
    monkeypatch.setattr("ray_dit.vae._from_hub", lambda hub_id: copy.deepcopy(there))
    where = Path(export(ExportConfig(model=str(tmp_path / "hub"), output=str(tmp_path / "pipeline"))))
    back = imported(where, tmp_path / "back")
    assert read_model(back).config.vae == "vae"
    before, after = (ray_dit.load(uri, device="cpu") for uri in (str(tmp_path / "hub"), back))
    latents = torch.randn(1, *before.latent_shape, generator=torch.Generator().manual_seed(0))
    assert abs(before.decode(latents).astype(int) - after.decode(latents)).max() <= 1


def test_a_vae_that_is_there_wins_over_a_hub_id(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "p")
    path = tmp_path / "p" / "ray_dit.json"
    side = json.loads(path.read_text())
    side["config"]["vae"] = "someone/vae"
    path.write_text(json.dumps(side))
    assert read_model(imported(tmp_path / "p", tmp_path / "m")).config.vae == "vae"


def test_a_position_table_of_its_own_is_not_lost(
    official: dict[str, Tensor], exported: Path, vae: Path, tmp_path: Path
) -> None:
    torch.save({**official, "pos_embed": official["pos_embed"] + 0.1}, tmp_path / "own.pt")
    own = imported(tmp_path / "own.pt", tmp_path / "own", vae=str(vae))
    with pytest.raises(UserError, match="export as official instead"):
        export(ExportConfig(model=own, output=str(tmp_path / "pipeline")))
    shutil.copytree(exported, tmp_path / "p")
    path = tmp_path / "p" / "transformer" / "diffusion_pytorch_model.safetensors"
    own_table = read_model(imported(exported, tmp_path / "plain")).state_dict()["pos_embed"]
    for table, fits in ((own_table, True), (own_table + 0.1, False), (own_table[:, :-1], False)):
        save_file(load_file(path) | {"pos_embed.pos_embed": table.contiguous()}, path)
        if fits:
            imported(tmp_path / "p", tmp_path / "same")
        else:
            with pytest.raises(UserError, match="pos_embed.*can't be imported"):
                imported(tmp_path / "p", tmp_path / "other")


def test_shards_of_a_diffusers_transformer(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "p")
    folder = tmp_path / "p" / "transformer"
    name = "diffusion_pytorch_model.safetensors"
    weights = load_file(folder / name)
    (folder / name).rename(folder / name.replace(".safetensors", ".fp16.safetensors"))
    with pytest.raises(UserError, match=r"but .*fp16.safetensors: copy or save"):
        imported(tmp_path / "p", tmp_path / "m")
    halves = [dict(list(weights.items())[place::2]) for place in range(2)]
    for number, half in enumerate(halves):
        save_file(half, folder / f"part-{number}.safetensors")
    where = {key: f"part-{number}.safetensors" for number, half in enumerate(halves) for key in half}
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": where}))
    whole = read_model(imported(exported, tmp_path / "whole")).state_dict()
    assert same(read_model(imported(tmp_path / "p", tmp_path / "m")).state_dict(), whole)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(UserError):
        imported(tmp_path / "p", tmp_path / "o")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("to_k", lambda w: w[:, :-1], "transformer_blocks.0.attn1.to_k.weight is .*instead of"),
        ("to_q", lambda w: w[:-2], "transformer_blocks.0.attn1.to_q.weight is .*instead of"),
        (
            "to_q",
            lambda w: w.to(torch.int8),
            "floating-point numbers: transformer_blocks.0.attn1.to_q.weight",
        ),
    ],
)
def test_wrong_diffusers_weights_are_named(
    exported: Path, tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    shutil.copytree(exported, tmp_path / "p")
    path = tmp_path / "p" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    key = f"transformer_blocks.0.attn1.{name}.weight"
    save_file(weights | {key: change(weights[key]).contiguous()}, path)
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "p", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.to(torch.int8),
        lambda w: w.to(torch.complex64),
        lambda w: w.to_sparse(),
    ],
)
def test_what_is_no_plain_number_is_refused(
    official: dict[str, Tensor], tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    name = "blocks.1.attn.proj.weight"
    torch.save({**official, name: change(official[name])}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=f"no plain floating-point numbers: {name}"):
        imported(tmp_path / "w.pt", tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("names.txt", b"a\n\nb\n", "line 2 is blank"),
        ("names.txt", b"\xff\xfe\x00a", "can't be read"),
        ("names.json", b'{"names": 5}', "lists of strings"),
        ("names.json", b'{"names": [1, 2]}', "lists of strings"),
    ],
)
def test_bad_lists_of_names_are_refused(
    official: dict[str, Tensor], tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    torch.save(official, tmp_path / "w.pt")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "w.pt", tmp_path / "m", labels=str(tmp_path / file))


def test_names_are_content_wherever_the_file_is(
    official: dict[str, Tensor], vae: Path, tmp_path: Path
) -> None:
    torch.save(official, tmp_path / "w.pt")

    def take(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        labels = str(tmp_path / name)
        return imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae), labels=labels)

    names = "\n".join("abcdefghij")
    folder = read_model(take("names.txt", names + "\n\n\n"))
    assert folder.labels.names == tuple("abcdefghij")
    assert folder.config.model.num_classes == 10
    take("elsewhere.txt", names)  # the same names, so nothing to do
    with pytest.raises(UserError, match="labels"):
        take("names.txt", names.replace("j", "k"))


@pytest.mark.parametrize("scaling_factor", [None, "much"])
def test_a_scaling_factor_that_is_no_number(exported: Path, tmp_path: Path, scaling_factor: object) -> None:
    shutil.copytree(exported, tmp_path / "p")
    (tmp_path / "p" / "ray_dit.json").unlink()
    path = tmp_path / "p" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": scaling_factor}))
    if scaling_factor is None:
        assert read_model(imported(tmp_path / "p", tmp_path / "m")).config.latents.scale == 0.18215
    else:
        with pytest.raises(UserError, match="has scaling_factor 'much'"):
            imported(tmp_path / "p", tmp_path / "m")


def test_labels_of_another_count_in_the_side_file(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "p")
    path = tmp_path / "p" / "ray_dit.json"
    side = json.loads(path.read_text())
    side["labels"]["names"] = side["labels"]["names"][:2]
    path.write_text(json.dumps(side))
    with pytest.raises(UserError, match="2 labels for 3 classes"):
        imported(tmp_path / "p", tmp_path / "m")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_torch_files_are_refused_in_a_sentence(
    official: dict[str, Tensor], tmp_path: Path, seed: int
) -> None:
    torch.save(official, tmp_path / "w.pt", _use_new_zipfile_serialization=bool(seed % 2))
    data = bytearray((tmp_path / "w.pt").read_bytes())
    draw = random.Random(seed)
    for _ in range(40):
        data[draw.randrange(min(len(data), 2000))] = draw.randrange(256)
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(UserError):
        imported(tmp_path / "w.pt", tmp_path / "m")


def test_a_label_table_without_rows_is_refused(official: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**official, "y_embedder.embedding_table.weight": torch.ones(())}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"y_embedder.embedding_table.weight has shape \(\)"):
        imported(tmp_path / "w.pt", tmp_path / "m")


def test_the_transformer_of_a_pipeline_brings_what_the_pipeline_tells(exported: Path, tmp_path: Path) -> None:
    whole = read_model(imported(exported, tmp_path / "whole"))
    alone = read_model(imported(exported / "transformer", tmp_path / "alone"))
    assert (alone.config, alone.labels) == (whole.config, whole.labels)
    shutil.copytree(exported / "transformer", tmp_path / "transformer")  # and with no pipeline around it
    bare = read_model(imported(tmp_path / "transformer", tmp_path / "bare"))
    assert (bare.config.model, bare.labels) == (whole.config.model, whole.labels)
