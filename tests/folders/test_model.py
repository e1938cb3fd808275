"""Model folders: the same objects for the same model, read back whole; clear errors for other folders."""

from pathlib import Path

import pytest
import torch

from ray_dit.config import DiTConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.errors import NotFound, UserError
from ray_dit.folders.model import read_model
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_card, model_objects
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts
from ray_dit.results import ModelResult
from ray_dit.storage.open import open_store

CONFIG = ModelConfig(
    model=DiTConfig(input_size=4, hidden_size=8, depth=1, num_heads=2, num_classes=2),
    latents=LatentsConfig(shift=(0.5, 0.25, 0.0, -1.0), scale=0.7, image_size=16),
    guidance_channels=3,
    licence="CC-BY-NC-4.0",
    origin="a test",
)
LABELS = Labels(("cat", "dog"))
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.1])}
VAE_FILES = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"weights"}


def objects() -> dict[str, bytes]:
    return model_objects(CONFIG, STATE, LABELS, VAE_FILES, model_card(CONFIG, LABELS, title="A test"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for key, data in objects().items():
        path = tmp_path / "model" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "model"


def test_round_trip(folder: Path) -> None:
    model = read_model(str(folder))
    assert (model.config, model.labels) == (CONFIG, LABELS)
    state = model.state_dict()
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert Path(model.vae_uri) == folder / "vae"
    assert {path.name: path.read_bytes() for path in (folder / "vae").iterdir()} == VAE_FILES


def test_read_from_a_remote_store(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/models/m", recursive=True)
    model = read_model("memory://models/m")
    assert model.config == CONFIG
    assert torch.equal(model.state_dict()["a.weight"], STATE["a.weight"])


def test_bytes_do_not_depend_on_order_or_memory_layout() -> None:
    shuffled = {"b": STATE["b"], "a.weight": STATE["a.weight"].T.contiguous().T}
    other = model_objects(CONFIG, shuffled, LABELS, VAE_FILES, model_card(CONFIG, LABELS, title="A test"))
    assert other == objects()


def test_weights_are_float32() -> None:
    half = {name: tensor.bfloat16() for name, tensor in STATE.items()}
    stored = model_objects(CONFIG, half, LABELS, {}, "")["model.safetensors"]
    assert b"BF16" not in stored
    assert b'"F32"' in stored


def test_card_states_licence_and_origin() -> None:
    card = model_card(CONFIG, LABELS, title="A test", notes="Made to be read.")
    assert card.startswith("---\n")
    assert "license: cc-by-nc-4.0" in card
    assert "origin: a test" in card
    assert "first 3 of them" in card
    assert "Made to be read." in card
    unknown = model_card(ModelConfig(model=CONFIG.model), LABELS, title="A test")
    assert "license:" not in unknown
    assert "not recorded" in unknown


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latents": {"scale": (1.0, 2.0)}}, "latents.scale has 2 numbers for 4 channels"),
        ({"guidance_channels": 5}, "guidance_channels is 5, but the latents have 4"),
    ],
)
def test_configuration_is_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"model": CONFIG.model, **fields})


def test_labels_must_be_as_many_as_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match="1 labels for 2 classes"):
        model_objects(CONFIG, STATE, Labels(("cat",)), {}, "")
    (folder / "labels.json").write_bytes(Labels(("cat",)).to_json())
    with pytest.raises(UserError, match="has 2 classes, but its labels.json names 1"):
        read_model(str(folder))


def test_what_is_no_model_is_named(tmp_path: Path, folder: Path) -> None:
    def message(name: str, **files: str) -> str:
        place = tmp_path / name
        place.mkdir()
        for key, text in files.items():
            (place / f"{key}.json").write_text(text)
        with pytest.raises(UserError) as caught:
            read_model(str(place))
        assert str(place) in str(caught.value)
        assert "`ray-dit train`" in str(caught.value)
        return str(caught.value)

    assert "nothing is there" in message("empty")
    assert "result of `encode`" in message("latents", _job='{"stage": "encode"}')
    assert "diffusers pipeline" in message("pipeline", model_index="{}")
    assert "something else" in message("pictures", cat="x")
    assert "something else, not a model" in message("vae", config='{"_class_name": "AutoencoderKL"}')
    assert "can't be read" in message("damaged", config="{")
    with pytest.raises(NotFound, match="no model at .*nowhere"):
        read_model(str(tmp_path / "nowhere"))
    (folder / "config.json").write_text(CONFIG.model_dump_json().replace('"depth":1', '"depth":0'))
    with pytest.raises(UserError, match=r"model\.depth: Input should be greater than 0"):
        read_model(str(folder))


def test_weights_outlive_what_happens_to_the_file(folder: Path) -> None:
    state = read_model(str(folder)).state_dict()
    size = (folder / "model.safetensors").stat().st_size
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(bytes(size))
    assert torch.equal(state["a.weight"], STATE["a.weight"])


def test_missing_and_damaged_weights(folder: Path) -> None:
    model = read_model(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="model.safetensors in .* is damaged"):
        model.state_dict()
    weights.unlink()
    with pytest.raises(NotFound, match="no model.safetensors in"):
        model.state_dict()


@pytest.mark.parametrize("key", ["model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("place", ["{tmp_path}/model", "memory://models/recorded"])
def test_weights_that_are_not_what_was_written_are_refused(tmp_path: Path, key: str, place: str) -> None:
    store = open_store(place.format(tmp_path=tmp_path) + f"-{len(key)}")
    job = Job.open(store, "model", {"made": "by a test"})
    for name, data in objects().items():
        job.put(name.replace("/", "-"), name, data, Facts())
    job.finish(ModelResult())
    folder = read_model(store.uri)
    folder.check_vae()
    assert folder.state_dict().keys() == STATE.keys()
    damaged = bytearray(store.get(key))
    damaged[-1] ^= 1  # weights still, and others
    store.delete(key)
    store.put(key, bytes(damaged))
    read = folder.check_vae if key.startswith("vae/") else folder.state_dict
    with pytest.raises(UserError, match=f"{key} is not what was written there"):
        read()
