"""The command line without Ray: bad inputs end in one sentence and a status not 0; options win over YAML."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_dit import cli, config
from ray_dit.cli.settings import settings_of
from ray_dit.config import DiTConfig, SamplerConfig, VAESizeConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.errors import UserError
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts
from ray_dit.ledger.stored_json import canonical
from ray_dit.results import ModelResult
from ray_dit.storage import local
from ray_dit.storage.open import open_store
from tests.support.results import dataset_result, latents_result, training_result, vae_result
from tests.support.tiny import write_model as write_tiny_model

IMAGES = ["--images.uri", "images", "--images.size", "16"]
ENCODE = ["encode", *IMAGES, "--vae", "vae", "--output", "out"]
TRAIN = ["train", "--latents", "latents", "--output", "out"]
LEFT = {
    "vae-run": vae_result(),
    "latents": latents_result(),
    "run": training_result(),
    "dataset": dataset_result(),
}


def write_pictures(folder: Path, classes: tuple[str, ...] = ("left", "right")) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            picture = np.full((16, 16, 3), 20 * number, np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")


def write_model(folder: Path, vae_files: dict[str, bytes]) -> None:
    from ray_dit.pipeline import DiT

    shape = DiTConfig(input_size=8, hidden_size=8, depth=1, num_heads=1, num_classes=2)
    settings = ModelConfig(model=shape, latents=LatentsConfig(image_size=16))
    labels = Labels(("left", "right"))
    job = Job.open(open_store(str(folder)), "model", {"made": "by a test"})
    for key, data in model_objects(settings, DiT(shape).state_dict(), labels, vae_files, "card").items():
        job.put(key.replace("/", "-"), key, data, Facts())
    job.finish(ModelResult())


def write_links(folder: Path) -> None:
    """Symbolic links that lead nowhere, or in circles."""
    (folder / "linked").symlink_to("images")
    (folder / "itself").symlink_to("itself")
    (folder / "dangling").symlink_to("not/there")
    for name in ("endless", "looping"):
        write_pictures(folder / name)
    (folder / "endless/left/again").symlink_to("..")
    (folder / "looping/left/x.png").symlink_to("x.png")
    write_pictures(folder / "mutual")
    (folder / "mutual/left/other").symlink_to("../right")
    (folder / "mutual/right/other").symlink_to("../left")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something of every kind in it; the tests change nothing there but what they make."""
    from ray_dit.vae import VAE

    folder = tmp_path_factory.mktemp("cli")
    write_pictures(folder / "images")
    write_pictures(folder / "gap")
    (folder / "gap/void").mkdir()
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    write_links(folder)
    for name, result in LEFT.items():
        Job.open(open_store(str(folder / name)), result.stage_name, {"made": "by a test"}).finish(result)
    Job.open(open_store(str(folder / "unfinished")), "encode", {"made": "by a test"})
    size = VAESizeConfig(block_out_channels=(4, 4), norm_num_groups=2, mid_block_add_attention=False)
    files = VAE.create(size).files()
    (folder / "vae").mkdir()
    for name, data in files.items():
        (folder / "vae" / name).write_bytes(data)
    write_model(folder / "model", files)
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("RAY_DIT_DEBUG", raising=False)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says on standard error as it refuses: one line, the status 1."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.err.startswith("ray-dit: error: ")
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err + said.out
    return said.err.removeprefix("ray-dit: error: ").strip()


WRONG_OPTIONS = {
    "unknown command": (["encod"], r"no command 'encod' \(did you mean 'encode'\?\)"),
    "option for a command": (["--models", "x"], "no command '--models'"),
    "required ones missing": (["encode", *IMAGES], "missing: --output, --vae; see `ray-dit encode --help`"),
    "unknown option": ([*ENCODE, "--images.sise", "3"], "unknown option --images.sise .*'--images.size'"),
    "unknown switch": ([*ENCODE, "--no-miror"], "unknown option --no-miror .*'--no-mirror'"),
    "of another command": ([*ENCODE, "--num-images", "3"], "unknown option --num-images"),
    "stray word": ([*ENCODE, "stray"], "'stray' belongs to no option: --output takes one value; see"),
    "no value": ([*ENCODE, "--threads"], "--threads needs a value; see"),
    "no number": ([*ENCODE, "--threads", "two"], "--threads: 'two' is not a whole number"),
    "no size": ([*TRAIN, "--cache-size", "much"], "--cache-size: 'much' is not a size, as 200GB or 12GiB"),
    "no unit": ([*TRAIN, "--cache-size", "5 zz"], "--cache-size: '5 zz' is not a size, as 200GB or 12GiB"),
    "negative size": ([*TRAIN, "--cache-size=-1"], "--cache-size: '-1' is not a size"),
    "no float": ([*ENCODE, "--images.heldout", "x"], "--images.heldout: 'x' is not a number"),
    "too small": ([*ENCODE, "--images.size", "-3"], "--images.size: Input should be greater than 0"),
    "too large": ([*ENCODE, "--images.heldout", "1.5"], "--images.heldout: Input should be less than 1"),
    "nan": ([*ENCODE, "--images.heldout", "nan"], "--images.heldout: Input should be a finite number"),
    "no choice": (
        ["train", "--latents", "l", "--output", "o", "--sampler.name", "dpm"],
        r"^--sampler.name: 'dpm' is none of ddim, ddpm, dpmpp, unipc \(did you mean 'ddpm'\?\); see",
    ),
    "no whole number where none is needed": (
        ["generate", "--model", "m", "--output", "o", "--num-images", "abc"],
        "^--num-images: 'abc' is not a whole number; see",
    ),
    "one of several": (
        ["import-checkpoint", "x", "--output", "y", "--guidance-channels", "q"],
        "^--guidance-channels: 'q' is neither a whole number nor all; see",
    ),
    "one of two numbers": (
        ["generate", "--model", "m", "--output", "o", "--sampler.guidance-interval", "150"],
        "^--sampler.guidance-interval: 2 values are wanted, not 1; see",
    ),
    "no choice where none is needed": (
        ["generate", "--model", "m", "--output", "o", "--sampler.name", "euler"],
        "^--sampler.name: 'euler' is none of ddim, ddpm, dpmpp, unipc; see",
    ),
    "no class": (
        ["generate", "--model", "m", "--output", "o", "--num-images", "1", "--classes"],
        "classes needs a name or number",
    ),
    "groups": (
        ["train-vae", *IMAGES, "--output", "o", "--vae.norm-num-groups", "5"],
        "block_out_channels 8 is not a multiple of norm_num_groups 5",
    ),
    "workers": (
        ["train", "--latents", "l", "--output", "o", "--batch-size", "7", "--num-workers", "2"],
        "batch_size 7 is not a multiple of num_workers 2",
    ),
    "no range of workers": (
        ["train", "--latents", "l", "--output", "o", "--num-workers", "2.."],
        "^--num-workers: '2..' is neither a number, from 1 on, nor a range such as 2..8; see",
    ),
    "a range that shares no batch": (
        ["train", "--latents", "l", "--output", "o", "--batch-size", "7", "--num-workers", "2..6"],
        "batch_size 7 is not a multiple of num_workers 2..6",
    ),
    "checkpoints to keep that are not made": (
        ["train", "--latents", "l", "--output", "o", "--keep-every", "7"],
        "keep_every 7 is not a multiple of checkpoint_every 5000",
    ),
    "no step": (["export-model", "run"], "'run' names no checkpoint: give RUN@STEP, or RUN@last, RUN being"),
    "neither of two": (
        ["generate", "--model", "m", "--output", "o"],
        "give one of num_images, per_class and requests",
    ),
    "no YAML file": (["encode", "--config"], "--config needs a file"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG_OPTIONS[case]
    assert re.search(message, complaint(capsys, *arguments))


WRONG_YAML = {
    "unknown section": ("encod:\n  vae: x\n", r"unknown section 'encod' in run.yaml \(did you mean 'encode'"),
    "unknown key": ("encode:\n  mirrror: true\n", r"unknown key 'mirrror' in section encode .*'mirror'"),
    "unknown inner key": ("encode:\n  images: {sise: 1}\n", "unknown key 'sise' in section encode.images"),
    "switch": (
        "encode:\n  mirror: maybe\n",
        "encode.mirror in run.yaml must be true or false, not 'maybe'",
    ),
    "value for settings": ("encode:\n  images: x\n", "encode.images in run.yaml must hold settings"),
    "settings for a value": ("encode:\n  vae: {a: 1}\n", "encode.vae in run.yaml must be a value"),
    "list for settings": ("encode: [1]\n", "encode in run.yaml must hold settings"),
    "third value": (
        "train: {latents: l, output: o, model: {learn_sigma: 3}}",
        "train.model.learn_sigma in run.yaml must be true or false, not 3",
    ),
    "no sections": ("- a\n", "run.yaml must have a section per stage"),
    "no YAML": ("encode:\n  vae: [\n", "run.yaml is not valid YAML in line 3"),
    "wrong value": (
        "encode: {vae: v, output: o, images: {uri: i, size: abc}}\n",
        "^--images.size: 'abc' is not a whole number, in run.yaml; see",
    ),
    "wrong length": (
        "train: {latents: l, output: o, optimizer: {betas: [0.9]}}",
        "train.optimizer.betas in run.yaml: 2 values are wanted, not 1",
    ),
    "refused together": (
        "train: {latents: l, output: o, log_every: 7}",
        "checkpoint_every 5000 is not a multiple of log_every 7",
    ),
}


@pytest.mark.parametrize("case", WRONG_YAML)
def test_wrong_yaml(case: str, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    text, message = WRONG_YAML[case]
    (place / "run.yaml").write_text(text)
    command = "train" if text.startswith("train") else "encode"
    assert re.search(message, complaint(capsys, command, "--config", "run.yaml"))


@pytest.mark.parametrize(
    ("path", "message"), [("none.yaml", "No such file"), ("images", "Is a directory"), ("latin", "UTF-8")]
)
def test_a_configuration_that_cannot_be_read(path: str, message: str, capsys: pytest.CaptureFixture[str]):
    Path("latin").write_bytes("encode: {vae: é}".encode("latin-1"))
    said = complaint(capsys, "encode", "--config", path)
    assert path in said
    assert message in said


def encode_of(images: str) -> list[str]:
    return ["encode", "--images.uri", images, "--images.size", "16", "--vae", "vae", "--output", "out"]


def train_on(latents: str, *more: str) -> list[str]:
    return ["train", "--latents", latents, "--output", "out", *more]


def generate_with(model: str, *more: str) -> list[str]:
    return ["generate", "--model", model, "--output", "out", "--num-images", "2", *more]


WRONG_PLACES = {
    "no folder of pictures": (encode_of("missing"), "image folder .*/missing does not exist: give a folder"),
    "empty folder": (encode_of("empty"), "no images found in .*/empty: give a folder"),
    "class without pictures": (encode_of("gap"), "class folder 'void' in .*/gap holds no images: add some"),
    "file for pictures": (encode_of("file"), "/file is a file where a folder"),
    "pictures the VAE cannot shrink": ([*ENCODE, "--images.size", "15"], "15 is not a multiple of 2.*change"),
    "no VAE": ([*ENCODE, "--vae", "missing"], "no VAE at .*/missing: give a folder"),
    "latents for a VAE": ([*ENCODE, "--vae", "latents"], "no VAE at .*/latents: give a folder"),
    "all pictures held out": (
        ["train-vae", *IMAGES, "--output", "out", "--images.heldout", "0.99"],
        "every image in .*/images is held out: lower",
    ),
    "no latents": (train_on("missing"), "/missing holds no job .*run ray-dit encode first"),
    "model for latents": (train_on("model"), r"/model holds a model .*where latents \(encode\) should be"),
    "dataset for latents": (train_on("dataset"), "/dataset holds a dataset .*where latents"),
    "pictures for latents": (train_on("images"), "/images holds no job .*check the path"),
    "unfinished latents": (train_on("unfinished"), "/unfinished is unfinished: run ray-dit encode again"),
    "model that does not fit": (
        train_on("latents", "--model.patch-size", "3"),
        "does not fit the latents in .*/latents: input_size 8 is not a multiple of patch_size 3",
    ),
    "no such preset": (train_on("latents", "--model.preset", "DiT-X/2"), "no preset 'DiT-X/2'; there are DiT-S/2"),
    "latents to start from": (train_on("latents", "--init-from", "latents"), "where a model .model. should be"),
    "no model": (generate_with("missing"), "no model at .*/missing .*give the model folder"),
    "latents for a model": (generate_with("latents"), "no model at .*/latents .the result of `encode`.*give"),
    "run for a model": (generate_with("run"), "no model at .*/run .the result of `train`.*give"),
    "unknown class": (generate_with("model", "--classes", "lefd"), r"no class 'lefd'; did you mean 'left' \(0\)"),
    "no such class number": (generate_with("model", "--classes", "7"), "no class number 7; give .* 0 to 1"),
    "sampler that does not fit": (
        generate_with("model", "--sampler.name", "dpmpp", "--sampler.order", "3"),
        "do not fit together: dpmpp has order 1 or 2",
    ),
    "latents for a dataset": (["evaluate", *IMAGES, "--dataset", "latents", "--output", "out"], "where a dataset"),
    "nothing to tell of": (["info", "missing"], "/missing holds no job of ray-dit: check the path"),
    "nothing to verify": (["verify", "images"], "/images holds no job of ray-dit: check the path"),
    "nothing to clean": (["gc", "missing"], "nothing is at .*/missing: check the path"),
    "latents to export": (["export", "latents", "--output", "out"], "no model at .*/latents.*give the model"),
    "latents to make a model of": (["export-model", "latents@last"], "/latents holds latents, not a training run"),
    "a run without checkpoints": (["export-model", "run@7"], "/run has no checkpoint yet: train until there is one"),
    "no checkpoint": (["import-checkpoint", "file", "--output", "out"], "no checkpoint at .*/file: give a .pt"),
    "latents to serve": (["serve", "--model", "latents"], "no model at .*/latents.*give the model"),
    "file for the output": ([*ENCODE, "--output", "file"], "/file cannot be made .File exists.: take another"),
    "file above the output": ([*ENCODE, "--output", "file/in"], "/file/in cannot be made .*take another"),
    "output of another stage": ([*ENCODE, "--output", "run"], "/run belongs to train, not encode: take another"),
    "output that is the images": ([*ENCODE, "--output", "images"], "output .*/images lies in the image folder"),
    "output in the images": ([*ENCODE, "--output", "./images/../images/new"], "lies in the image folder .*outside"),
    "a VAE in the images": (["train-vae", *IMAGES, "--output", "images/vae"], "lies in the image folder .*outside"),
    "an evaluation in the images": (
        ["evaluate", *IMAGES, "--dataset", "dataset", "--output", "images/e"], "lies in the image folder"
    ),
    "output by a link to the images": ([*ENCODE, "--output", "linked/new"], "lies in the image folder .*outside"),
    "images in a bucket, and the output too": (
        [*encode_of("s3://bucket/a"), "--output", "s3a://bucket/a/out"], "s3a://bucket/a/out lies in the image folder"
    ),
    "one slash": ([*ENCODE, "--output", "s3:/x"], "--output: 's3:/x' is neither a path nor a URI: give s3://x, or"),
    "no colon": (encode_of("s3//b/x"), "--images.uri: 's3//b/x' is neither a path .*give s3://b/x"),
    "no bucket": ([*ENCODE, "--output", "s3://"], "'s3://' names no bucket: give s3://BUCKET/FOLDER"),
    "a key without a bucket": (generate_with("s3:///model"), "'s3:///model' names no bucket"),
    "output on the web": ([*ENCODE, "--output", "https://127.0.0.1:9/x"], "https://127.0.0.1:9/x can be read but not"),
    "no such scheme": ([*ENCODE, "--output", "foo://x"], "foo://x cannot be opened .*give a path, s3://"),
    "output by a link to itself": ([*ENCODE, "--output", "itself"], "/itself/.* leads through symbolic links that"),
    "output by a dangling link": ([*ENCODE, "--output", "dangling/o"], "link .*/dangling ends nowhere: remove"),
    "images by a link to itself": (encode_of("itself"), "/itself/? leads through symbolic links that end nowhere"),
    "a folder that holds itself": (encode_of("endless"), "endless/left/again is a symbolic link to a folder it lies in"),
    "two folders that hold each other": (encode_of("mutual"), "is a symbolic link to a folder it lies in: remove"),
    "an image that is a link to itself": (encode_of("looping"), "looping/left/x.png leads through symbolic links"),
    "no Ray there": ([*ENCODE, "--output", "ray1", "--address", "127.0.0.1:1"], "nothing answers at .*check host"),
    "no address": ([*ENCODE, "--output", "ray2", "--address", "nowhere"], "no Ray cluster .*'nowhere'.*ray start"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_PLACES)
def test_wrong_places(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG_PLACES[case]
    assert re.search(message, complaint(capsys, *arguments))


def test_an_output_with_another_configurations_result_shows_the_difference_and_stays(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    begin = [*ENCODE, "--output", "begun", "--address", "127.0.0.1:1"]
    complaint(capsys, *begin)  # no Ray there, but the job has begun
    before = {path: path.read_bytes() for path in (place / "begun").rglob("*") if path.is_file()}
    said = complaint(capsys, *begin, "--batch-size", "7", "--no-mirror", "--actors", "5")
    assert re.search("/begun was begun with other settings", said)
    assert "config.batch_size: 32 -> 7" in said
    assert "config.mirror: True -> False" in said
    assert "take another output folder" in said
    assert "actors" not in said
    assert before
    assert all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.parametrize(
    ("arguments", "setting", "default"),
    [
        (ENCODE, "mirror", True),
        (["train-vae", *IMAGES, "--vae.block-out-channels", "8"], "kl_weight", 1e-4),
        (["generate", "--model", "model", "--num-images", "2"], "precision", "float32"),
    ],
)
def test_a_folder_of_a_version_that_lacked_a_setting_goes_on(
    arguments: list[str], setting: str, default: object, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    folder = f"older-{arguments[0]}"
    begin = [*arguments, "--output", folder, "--address", "127.0.0.1:1"]
    complaint(capsys, *begin)  # no Ray there, but the job has begun
    job = json.loads((place / folder / "_job.json").read_bytes())
    assert job["parts"]["config"].pop(setting) == default
    (place / folder / "_job.json").write_bytes(canonical(job))
    assert "nothing answers at" in complaint(capsys, *begin)
    said = complaint(capsys, *begin, "--threads", "2")
    assert "(config.threads: 1 -> 2)" in said


def test_a_folder_that_may_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    # /sys refuses even root; elsewhere permissions do the same to a user
    # fmt: skip
    assert re.search(
        "/sys/out.* is not permitted to this user", complaint(capsys, *ENCODE, "--output", "/sys/out")
    )


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    def no_space(path: Path, data: bytes) -> Path:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(data)
        return path

    monkeypatch.setattr(local, "_write_temp", no_space)
    said = complaint(capsys, *ENCODE, "--output", "full")
    assert re.search("/full/.* does not fit on its disk: free some space", said)
    assert not list((place / "full").rglob("*"))


def test_a_real_full_disk_leaves_nothing_half(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    (place / "tiny").mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "tiny"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (place / "tiny/filler").write_bytes(b"\0" * 4096)
        said = complaint(capsys, *ENCODE, "--output", "tiny/out")
        assert "does not fit on its disk" in said
        for path in (place / "tiny/out").rglob("*"):
            assert path.is_dir() or json.loads(path.read_bytes())
    finally:
        subprocess.run(["umount", "tiny"], check=True)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = complaint(capsys, "serve", "--model", "model", "--port", port)
    assert f"port {port} of 127.0.0.1 can't be used ({os.strerror(errno.EADDRINUSE)}): give another" in said


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError, match="no command"):
        cli.main(["--debug", "encod"])


def test_as_a_user_runs_it() -> None:
    quiet = subprocess.run([sys.executable, "-m", "ray_dit.cli", "encod"], capture_output=True, text=True)
    # fmt: skip
    loud = subprocess.run(
        [sys.executable, "-m", "ray_dit.cli", "encod", "--debug"], capture_output=True, text=True
    )
    assert (quiet.returncode, quiet.stdout, quiet.stderr.count("\n")) == (1, "", 1)
    assert loud.returncode != 0
    assert "Traceback" in loud.stderr


def test_help_needs_neither_torch_nor_ray() -> None:
    script = (
        "import sys; from ray_dit import cli; cli.main(['--help']);"
        "print('heavy:', [m for m in ('torch', 'ray', 'diffusers', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.rstrip().endswith("heavy: []")
    assert all(f"  {name} " in ran.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command_explains_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert f"usage: ray-dit {name}" in said
    assert "--config FILE" in said
    command = cli.COMMANDS[name]
    text = " ".join(said.split())
    for setting in settings_of(command.config):
        assert f"  {setting.option}" in said
        assert " ".join((setting.field.description or "").split()) in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert re.fullmatch(r"ray-dit \d+\.\d+\.\d+\n", capsys.readouterr().out)


YAML = """
encode:
  images: {uri: pictures, size: 64, heldout: 1.0e-1}
  vae: some/vae
  output: s3://bucket/latents
  mirror: false
  batch_size: 8
train:
  latents: l
  output: o
  model_output: null
  optimizer: {betas: [0.5, 0.6]}
  sampler: {guidance_interval: [100, 900]}
"""


def test_yaml_gives_settings_and_options_win(place: Path) -> None:
    (place / "run.yaml").write_text(YAML)
    given = ["--images.size", "32", "--config", "run.yaml", "--mirror"]
    encode: config.EncodeConfig = cli.parse("encode", config.EncodeConfig, given)
    assert (encode.images.size, encode.mirror) == (32, True)
    assert (encode.images.heldout, encode.batch_size, encode.vae) == (0.1, 8, "some/vae")
    assert (encode.images.uri, encode.output) == (str(place / "pictures"), "s3://bucket/latents")
    given = ["--config=run.yaml", "--optimizer.betas", "0.1", "0.2"]
    train: config.TrainConfig = cli.parse("train", config.TrainConfig, given)
    assert (train.optimizer.betas, train.sampler.guidance_interval) == ((0.1, 0.2), (100, 900))
    assert train.model_output is None
    assert train.optimizer.learning_rate == 1e-4


def test_underscores_and_equals_do_too() -> None:
    given = ["--images.uri=i", "--vae", "v", "--output", "o", "--batch_size=3", "--no-mirror"]
    encode: config.EncodeConfig = cli.parse("encode", config.EncodeConfig, given)
    assert (encode.batch_size, encode.mirror) == (3, False)


def test_info_tells_how_a_model_samples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_tiny_model(
        tmp_path / "model", ("cat", "dog"), sampler=SamplerConfig(name="ddim", num_inference_steps=7)
    )
    cli.main(["info", str(tmp_path / "model")])
    said = capsys.readouterr().out
    assert "classes      cat, dog" in said
    assert "vae = vae" in said
    assert "sampler.name = ddim" in said
    assert "sampler.num_inference_steps = 7" in said


def test_who_reads_may_stop_reading(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", ("cat", "dog"))
    command = f"{sys.executable} -m ray_dit.cli info {tmp_path / 'model'} | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_python_finds_in_the_package() -> None:
    import ray_dit

    assert {"Pipeline", "SamplerConfig", "load"} <= set(dir(ray_dit))
    assert ray_dit.SamplerConfig is SamplerConfig
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ray_dit.nothing  # noqa: B018


@pytest.mark.parametrize("recipe", sorted((Path(cli.__file__).parents[2] / "jobs").glob("*.yaml")))
def test_recipes_are_valid_settings(recipe: Path) -> None:
    sections = re.findall(r"^([a-z-]+):", recipe.read_text(), flags=re.MULTILINE)
    assert sections
    for section in sections:
        cli.parse(section, cli.COMMANDS[section].config, ["--config", str(recipe)])
