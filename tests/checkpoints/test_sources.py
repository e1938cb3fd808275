"""What checkpoints hold beside weights and around their names: taken as it is meant, or refused by name."""

import argparse
import json
import random
import types
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_dit.checkpoints.exporting import export
from ray_dit.checkpoints.importing import import_checkpoint
from ray_dit.config import DiffusionConfig, DiTConfig, ExportConfig, ImportConfig
from ray_dit.core.dit import DiT
from ray_dit.errors import UserError
from ray_dit.folders.model import read_model
from ray_dit.formats.foreign.official import config_of
from ray_dit.formats.labels import Labels
from tests.support.checkpoints import imported, same

Weights = dict[str, Tensor]


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def zeros(weights: Weights) -> Weights:
    return {name: torch.zeros_like(value) for name, value in weights.items()}


def compiled_blocks(weights: Weights, inner: str = "_orig_mod.") -> Weights:
    """As torch.compile of each block by itself names them."""
    return {
        f"blocks.{name.split('.')[1]}.{inner}{name.split('.', 2)[2]}"
        if name.startswith("blocks.")
        else name: value
        for name, value in weights.items()
    }


def averaged_model(weights: Weights) -> Weights:
    """As torch.optim.swa_utils.AveragedModel keeps them."""
    return {"n_averaged": torch.tensor(7), **prefixed(weights, "module.")}


HOLDERS: dict[str, Callable[[Weights], Any]] = {
    "model. under state_dict": lambda w: {"state_dict": prefixed(w, "model."), "epoch": 3},
    "ema_model. beside model.": lambda w: {
        "state_dict": prefixed(zeros(w), "model.") | prefixed(w, "ema_model.") | {"step": torch.tensor([5])}
    },
    "ema_model. beside online_model.": lambda w: (
        prefixed(zeros(w), "online_model.") | prefixed(w, "ema_model.") | {"initted": torch.tensor([True])}
    ),
    "net.": lambda w: prefixed(w, "net."),
    "any prefix": lambda w: prefixed(w, "diffusion.backbone."),
    "beside another network": lambda w: (
        {"state_dict": prefixed(w, "dit.") | {"vae.conv.weight": torch.zeros(3)}}
    ),
    "compiled blocks": compiled_blocks,
    "compiled blocks in DDP": lambda w: prefixed(compiled_blocks(w), "module."),
    "sharded blocks": lambda w: compiled_blocks(w, "_fsdp_wrapped_module._checkpoint_wrapped_module."),
    "ema_state_dict": lambda w: {"state_dict": zeros(w), "ema_state_dict": w},
    "params_ema": lambda w: {"params": zeros(w), "params_ema": w},
    "model_ema": lambda w: {"model": zeros(w), "model_ema": w, "optimizer": {"exp_avg": zeros(w)}},
    "ema_0.9999": lambda w: {"model": zeros(w), "ema_0.9999": w},
    "AveragedModel": averaged_model,
    "AveragedModel under ema": lambda w: {"model": zeros(w), "ema": averaged_model(w)},
    "AveragedModel under a name of its own": lambda w: {"model": zeros(w), "swa_model": averaged_model(w)},
    "AveragedModel as a part": lambda w: {
        "state_dict": prefixed(zeros(w), "model.") | prefixed(averaged_model(w), "ema_model.")
    },
    "beside the optimizer's averages": lambda w: {"model": w, "optimizer": {"exp_avg": zeros(w)}},
    "module, DeepSpeed's": lambda w: {"module": w, "dp_world_size": 8},
    "keys inside keys": lambda w: {"trainer": {"state": {"net": prefixed(w, "_orig_mod.")}}},
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_weights_are_found_wherever_training_code_puts_them(
    official: Weights, vae: Path, tmp_path: Path, holder: str
) -> None:
    torch.save(HOLDERS[holder](official), tmp_path / "w.pt")
    assert same(read_model(imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))).state_dict(), official)


def test_prefixes_in_safetensors(official: Weights, vae: Path, tmp_path: Path) -> None:
    save_file(
        prefixed(zeros(official), "model.") | prefixed(official, "ema_model."), tmp_path / "w.safetensors"
    )
    found = read_model(imported(tmp_path / "w.safetensors", tmp_path / "m", vae=str(vae)))
    assert same(found.state_dict(), official)


ARGUMENTS = {
    "numpy scalars": {
        "lr": np.float64(1e-4),
        "seed": np.int64(3),
        "ema": np.bool_(True),
        "name": np.str_("x"),
    },
    "numpy arrays": {"rng": np.random.default_rng(0).integers(5, size=3), "kind": np.dtype("float16")},
    "paths": {"data": Path("/data/imagenet"), "out": PurePosixPath("out")},
    "namespaces": argparse.Namespace(lr=1e-4, model=types.SimpleNamespace(depth=4)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_plain_data_among_the_arguments_is_taken(
    official: Weights, vae: Path, tmp_path: Path, arguments: str, zipped: bool
) -> None:
    contents = {"ema": official, "args": ARGUMENTS[arguments], "best": np.float32(0.5)}
    torch.save(contents, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_model(imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))).state_dict(), official)


@pytest.mark.parametrize(
    ("named", "written"),
    [
        (b"cpathlib\nPosixPath\n", b"cpathlib\nWindowsPath\n"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    ],
    ids=["a path of Windows", "numpy 1"],
)
def test_arguments_pickled_elsewhere_are_taken(
    official: Weights, vae: Path, tmp_path: Path, named: bytes, written: bytes
) -> None:
    contents = {"ema": official, "args": {"data": Path("data"), "lr": np.float64(1)}}
    torch.save(contents, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "w.pt").read_bytes()
    assert named in data
    (tmp_path / "w.pt").write_bytes(data.replace(named, written))
    assert same(read_model(imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))).state_dict(), official)


def refusal(contents: object, folder: Path, name: str = "w.pt", **fields: object) -> str:
    torch.save(contents, folder / name)
    with pytest.raises(UserError) as caught:
        imported(folder / name, folder / "refused", **fields)
    assert name in str(caught.value)
    assert not (folder / "refused").exists(), "a refused source must leave nothing"
    return str(caught.value)


def test_a_refusal_names_where_the_weights_were_found(official: Weights, tmp_path: Path) -> None:
    less = {name: value for name, value in official.items() if not name.startswith("blocks.1.mlp")}
    said = refusal({"state_dict": prefixed(less, "model.")}, tmp_path)
    assert "(under 'state_dict', names begin with 'model.')" in said
    assert "missing: blocks.1.mlp.fc1.weight" in said
    said = refusal({"state_dict": {"unet.down.weight": torch.zeros(1), "vae.x": torch.zeros(1)}}, tmp_path)
    assert "(under 'state_dict', names begin with 'unet.', 'vae.')" in said
    said = refusal(prefixed(official, "student.") | prefixed(official, "teacher."), tmp_path)
    assert "several sets of weights (names begin with 'student.'; names begin with 'teacher.')" in said
    said = refusal({"ema_0.999": official, "ema_0.9999": zeros(official)}, tmp_path)
    assert "several sets of weights (under 'ema_0.999'; under 'ema_0.9999')" in said
    said = refusal({**official, "module.pos_embed": official["pos_embed"]}, tmp_path)
    assert "holds pos_embed twice (pos_embed and module.pos_embed)" in said


def test_a_checkpoint_that_holds_itself_ends(official: Weights, vae: Path, tmp_path: Path) -> None:
    contents: dict[str, Any] = {"ema": official}
    contents |= {f"again {number}": contents for number in range(300)}  # 27 million ways to its depth
    torch.save(contents, tmp_path / "w.pt")
    assert same(read_model(imported(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))).state_dict(), official)


OTHERS: dict[str, tuple[Any, str]] = {
    "SiT": (
        argparse.Namespace(model="SiT-XL/2", path_type="Linear", prediction="velocity"),
        r"path_type is 'Linear', args.prediction is 'velocity', model is 'SiT-XL/2'",
    ),
    "SiT with noise": (argparse.Namespace(path_type="GVP", prediction="noise"), "args.path_type is 'GVP'"),
    "REPA": (
        {"path-type": "linear", "prediction": "v"},
        "args.path-type is 'linear', args.prediction is 'v'",
    ),
    "nested": ({"transport": {"path_type": "Linear"}}, "args.transport.path_type is 'Linear'"),
    "x0": (argparse.Namespace(predict_xstart=True), "args.predict_xstart is 'True'"),
    "v": (argparse.Namespace(objective="pred_v"), "args.objective is 'pred_v'"),
    "numpy": ({"prediction_type": np.str_("v_prediction")}, "args.prediction_type is 'v_prediction'"),
    "cosine": (argparse.Namespace(noise_schedule="cosine"), "args.noise_schedule is 'cosine'"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_objective_is_refused_by_name(official: Weights, tmp_path: Path, other: str) -> None:
    arguments, message = OTHERS[other]
    said = refusal({"model": official, "ema": official, "opt": {}, "args": arguments}, tmp_path)
    assert "was trained for something else than a DiT's prediction of eps" in said
    assert message in said


def test_sit_is_refused_by_its_file_s_name_and_by_metadata(official: Weights, tmp_path: Path) -> None:
    assert "flow matching" in refusal({"ema": official}, tmp_path, "SiT-XL-2-256x256.pt")
    save_file(official, tmp_path / "w.safetensors", metadata={"prediction": "velocity"})
    with pytest.raises(UserError, match="prediction is 'velocity'"):
        imported(tmp_path / "w.safetensors", tmp_path / "m")


def test_a_dit_s_own_arguments_are_no_objection(official: Weights, vae: Path, tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        data_path="/data", model="DiT-XL/2", image_size=256, num_classes=np.int64(10), vae="ema",
        prediction="epsilon", predict_xstart=False, noise_schedule="linear", path_type=None, objective="",
    )  # fmt: skip
    torch.save({"ema": official, "args": arguments}, tmp_path / "w.pt")
    lines = accounted(tmp_path / "w.pt", tmp_path / "m", vae=str(vae))
    assert lines["read"] == "10 classes, prediction of eps"


def accounted(source: Path, output: Path, **fields: object) -> dict[str, str]:
    """The lines that are printed, by their first word."""
    lines: list[str] = []
    config = ImportConfig(source=str(source), output=str(output), **{"num_heads": 4, **fields})
    import_checkpoint(config, say=lines.append)
    return dict(line.split(": ", 1) for line in lines)


def test_what_was_read_told_and_assumed_is_said(
    official: Weights, exported: Path, vae: Path, tmp_path: Path
) -> None:
    torch.save(official, tmp_path / "w.pt")
    lines = accounted(tmp_path / "w.pt", tmp_path / "m", vae=str(vae), diffusion={"beta_end": 0.03})
    assert lines == {
        "told": "4 attention heads, linear betas to 0.03, VAE vae",
        "assumed": "10 classes, class names (0, 1, ...), prediction of eps, 1000 time steps, linear betas "
        "from 0.0001, latents' shift 0.0, latents' scale 0.18215, guidance on 4 of 4 channels",
    }
    lines = accounted(exported, tmp_path / "whole", guidance_channels=3)
    assert lines.keys() == {"read", "told"}
    assert lines["told"] == "guidance on 3 of 4 channels"
    assert "3 classes, class names (cat, dog, hound, ...), 2 attention heads" in lines["read"]
    assert "guidance" not in lines["read"]


def test_guidance_on_three_channels_is_of_the_published_files_alone(vae: Path, tmp_path: Path) -> None:
    config = DiTConfig(input_size=4, hidden_size=32, depth=1, num_heads=2, num_classes=4)
    for name, channels in (
        ("DiT-XL-2-256x256.pt", 3),
        ("DiT-XL-2-512x512.pt", 3),
        ("DiT-XL-2-tuned.pt", None),
    ):
        torch.save(DiT(config).state_dict(), tmp_path / name)
        found = read_model(imported(tmp_path / name, tmp_path / f"{name}-m", vae=str(vae)))
        assert found.config.guidance_channels == channels
    told = imported(tmp_path / name, tmp_path / "told", vae=str(vae), guidance_channels=3)
    assert read_model(told).config.guidance_channels == 3


@pytest.mark.parametrize("query", ["?download=true", "?sig=a//b%2Fc/../d#top", f"?token={'x' * 400}"])
def test_a_query_is_no_part_of_the_name(official: Weights, vae: Path, tmp_path: Path, query: str) -> None:
    torch.save(official, tmp_path / "DiT-XL-2-256x256.pt")
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    ) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        import_checkpoint(
            ImportConfig(
                source=f"{url}/DiT-XL-2-256x256.pt{query}",
                output=str(tmp_path / "m"),
                labels=f"{url}/names.txt{query}",
                vae=str(vae),
                num_heads=4,
            )
        )
        server.shutdown()
    found = read_model(str(tmp_path / "m"))
    assert same(found.state_dict(), official)
    assert found.config.origin.startswith("DiT-XL-2-256x256.pt (sha256 ")
    assert (found.config.guidance_channels, found.labels.names[0]) == (3, "a")


@pytest.mark.parametrize(("width", "ratio"), [(352, 8 / 3), (28, 2.2), (704, 2.4), (832, 4.1), (1152, 4.0)])
def test_the_width_of_the_mlp_comes_back(width: int, ratio: float) -> None:
    config = DiTConfig(hidden_size=width, depth=1, num_heads=1, input_size=2, num_classes=1, mlp_ratio=ratio)
    state = DiT(config).state_dict()
    found = config_of(state, "here", num_heads=1)
    assert {name: value.shape for name, value in DiT(found).state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }


def test_any_width_of_the_mlp_comes_back() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        width = 4 * draw.randrange(1, 600)
        hidden = draw.randrange(1, 9 * width)
        shapes = {
            "x_embedder.proj.weight": (width, 4, 2, 2), "pos_embed": (1, 4, width),
            "final_layer.linear.weight": (16, width), "blocks.0.mlp.fc1.weight": (hidden, width),
        }  # fmt: skip
        weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        assert int(width * config_of(weights, "here", num_heads=1).mlp_ratio) == hidden


# --- what diffusers opened and saved again


@pytest.fixture(scope="module")
def ten(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of ten named classes with guidance on 2 channels and a schedule of its own, imported."""
    folder = tmp_path_factory.mktemp("ten")
    config = DiTConfig(input_size=4, hidden_size=32, depth=2, num_heads=2, num_classes=10)
    dit = DiT(config, generator=torch.Generator().manual_seed(0))
    torch.save(dit.state_dict(), folder / "ten.pt")
    names = [f"name {number}, synonym {number}" for number in range(10)]
    ids = [f"n0000000{number}" for number in range(10)]
    (folder / "labels.json").write_text(json.dumps({"names": names, "wordnet_ids": ids}))
    return imported(
        folder / "ten.pt",
        folder / "model",
        vae=str(vae),
        num_heads=2,
        labels=str(folder / "labels.json"),
        guidance_channels=2,
        licence="MIT",
        scale=0.5,
        diffusion={"num_train_timesteps": 500, "beta_end": 0.03},
    )


def saved_again(exported: str, output: Path, change: Callable[[Any], None] = lambda pipe: None) -> Path:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(exported, local_files_only=True)
    change(pipe)
    pipe.save_pretrained(output)
    return output


def test_a_pipeline_that_diffusers_saved_again_comes_back(ten: str, tmp_path: Path) -> None:
    where = export(ExportConfig(model=ten, output=str(tmp_path / "pipeline")))
    again = saved_again(where, tmp_path / "again")
    assert not (again / "ray_dit.json").exists()
    assert "id2label" not in json.loads((again / "model_index.json").read_text())
    before, after = read_model(ten), read_model(imported(again, tmp_path / "back"))
    assert after.labels == before.labels
    assert same(after.state_dict(), before.state_dict())
    assert after.config == before.config.model_copy(update={"origin": after.config.origin})
    assert after.config.guidance_channels == 2
    assert after.config.diffusion == DiffusionConfig(num_train_timesteps=500, beta_end=0.03)
    twice = export(ExportConfig(model=str(tmp_path / "back"), output=str(tmp_path / "pipeline 2")))
    alone = read_model(imported(saved_again(twice, tmp_path / "3") / "transformer", tmp_path / "alone"))
    assert (alone.labels, alone.config.guidance_channels) == (before.labels, 2)


def test_what_was_changed_in_diffusers_is_what_comes_back(ten: str, tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    def change(pipe: Any) -> None:
        scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, beta_end=0.01)
        pipe.register_modules(scheduler=scheduler)
        with torch.no_grad():
            for block in pipe.transformer.transformer_blocks:
                block.norm1.emb.class_embedder.embedding_table.weight[:10] += 1

    where = export(ExportConfig(model=ten, output=str(tmp_path / "pipeline")))
    again = saved_again(where, tmp_path / "again", change)
    index = json.loads((again / "model_index.json").read_text())
    index["id2label"] = {str(number): f"renamed {number}" for number in range(10)}
    (again / "model_index.json").write_text(json.dumps(index))
    found = read_model(imported(again, tmp_path / "back"))
    assert found.config.diffusion == DiffusionConfig(num_train_timesteps=500, beta_end=0.01)
    assert found.labels == Labels(tuple(f"renamed {number}" for number in range(10)))
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(found.state_dict()[table][:10], read_model(ten).state_dict()[table][:10] + 1)


@pytest.mark.parametrize("names", [10, 0, 1000])
def test_rows_like_the_null_row_are_padding_without_our_settings(
    ten: str, tmp_path: Path, names: int
) -> None:
    """As from an export of an earlier version: ``names`` in model_index.json, and nothing else of ours."""
    where = Path(export(ExportConfig(model=ten, output=str(tmp_path / "pipeline"))))
    (where / "ray_dit.json").unlink()
    transformer = json.loads((where / "transformer" / "config.json").read_text())
    del transformer["_ray_dit"]
    (where / "transformer" / "config.json").write_text(json.dumps(transformer))
    index = json.loads((where / "model_index.json").read_text())
    index["id2label"] = {str(number): f"name {number}" for number in range(names)}
    (where / "model_index.json").write_text(json.dumps(index))
    found = read_model(imported(where, tmp_path / "back"))
    if names == 1000:  # then each of them is said to be a class
        assert found.config.model.num_classes == 1000
        return
    assert same(found.state_dict(), read_model(ten).state_dict())
    assert found.labels == (Labels.numbered(10) if not names else Labels(tuple(index["id2label"].values())))
    assert found.config.guidance_channels is None


def test_a_class_like_the_null_class_is_one_where_it_has_a_name(ten: str, tmp_path: Path) -> None:
    where = Path(export(ExportConfig(model=ten, output=str(tmp_path / "pipeline"))))
    (where / "ray_dit.json").unlink()
    path = where / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for name, value in weights.items():
        if name.endswith("embedding_table.weight"):
            value[9] = value[-1]
    save_file(weights, path)
    assert len(read_model(imported(where, tmp_path / "back")).labels) == 10


def test_damaged_settings_of_ours_are_refused(ten: str, tmp_path: Path) -> None:
    where = Path(export(ExportConfig(model=ten, output=str(tmp_path / "pipeline"))))
    (where / "ray_dit.json").unlink()
    path = where / "transformer" / "config.json"
    settings = json.loads(path.read_text())
    for damage in (5, {}, settings["_ray_dit"] | {"labels": {"names": ["a"]}}):
        path.write_text(json.dumps(settings | {"_ray_dit": damage}))
        with pytest.raises(UserError, match="_ray_dit in .*config.json can't be read"):
            imported(where, tmp_path / "back")


def test_the_exported_scheduler_names_its_spacing(ten: str, tmp_path: Path) -> None:
    where = Path(export(ExportConfig(model=ten, output=str(tmp_path / "pipeline"))))
    assert (
        json.loads((where / "scheduler" / "scheduler_config.json").read_text())["timestep_spacing"]
        == "leading"
    )


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "FlowMatchEuler.* has no betas"),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "beta_schedule": "linear",
                "use_flow_sigmas": True,
            },
            "use_flow",
        ),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
    ],
)
def test_schedulers_of_another_process_are_refused(
    ten: str, tmp_path: Path, scheduler: dict[str, object], message: str
) -> None:
    where = Path(export(ExportConfig(model=ten, output=str(tmp_path / "pipeline"))))
    (where / "ray_dit.json").unlink()
    (where / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match=message):
        imported(where, tmp_path / "back")
