"""What is suggested for a name that is not there: what was meant, or nothing."""

import pytest

from ray_dit import cli
from ray_dit.cli.near import near
from ray_dit.cli.settings import settings_of

MEANT = [
    # where a setting lies is what people forget
    ("generate", "--steps", "--sampler.num-inference-steps"),
    ("generate", "--num-steps", "--sampler.num-inference-steps"),
    ("generate", "--sampler.steps", "--sampler.num-inference-steps"),
    ("generate", "--num-inference-steps", "--sampler.num-inference-steps"),
    ("generate", "--guidance", "--sampler.guidance-scale"),
    ("generate", "--guidance-scale", "--sampler.guidance-scale"),
    ("generate", "--class", "--classes"),
    ("generate", "--gpus", "--use-gpu"),
    ("generate", "--images", "--num-images"),
    ("generate", "--out", "--output"),
    ("generate", "--model-path", "--model"),
    ("train", "--learning-rate", "--optimizer.learning-rate"),
    ("train", "--batch", "--batch-size"),
    ("train", "--preset", "--model.preset"),
    ("train", "--workers", "--num-workers"),
    ("train", "--output-dir", "--output"),
    ("encode", "--size", "--images.size"),
    ("encode", "--images", "--images.uri"),
    ("encode", "--images-size", "--images.size"),
    ("encode", "--cpus", "--num-cpus"),
    ("evaluate", "--steps", "--classifier.steps"),
    ("train-vae", "--epochs", None),
    # typing errors
    ("encode", "--images.sise", "--images.size"),
    ("encode", "--no-miror", "--no-mirror"),
    ("encode", "--miror", "--mirror"),
    ("encode", "--vea", "--vae"),
    ("encode", "--ouptut", "--output"),
    ("encode", "--Images.Max_Bad", "--images.max-bad"),
    ("train", "--latent", "--latents"),
    ("generate", "--modle", "--model"),
    # options of other commands, and of other programs
    ("encode", "--steps", None),
    ("encode", "--guidance-scale", None),
    ("encode", "--latents", None),
    ("generate", "--epochs", None),
    ("generate", "--lr", None),
    ("generate", "--fp16", None),
    ("generate", "--verbose", None),
    ("generate", "--prompt", None),
    ("train", "--mirror", None),
    ("train", "--resume", None),
    ("serve", "--epochs", None),
    ("serve", "--latents", None),
    ("report", "--use-gpu", None),
]


def options_of(command: str) -> list[str]:
    settings = list(settings_of(cli.COMMANDS[command].config))
    return [setting.option for setting in settings] + [each.negated for each in settings if each.is_switch]


@pytest.mark.parametrize(("command", "written", "meant"), MEANT)
def test_an_option_that_is_not_there(command: str, written: str, meant: str | None) -> None:
    assert near(written, options_of(command)) == ("" if meant is None else f" (did you mean {meant!r}?)")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("encod", "encode"),
        ("enc", "encode"),
        ("eval", "evaluate"),
        ("gen", "generate"),
        ("vae", "train-vae"),
        ("training", "train"),
        ("import", "import-checkpoint"),
        ("train_vae", "train-vae"),
        ("verfiy", "verify"),
        ("--models", "export-model"),
        ("run", None),
        ("help", None),
        ("sample", None),
    ],
)
def test_a_command_that_is_not_there(written: str, meant: str | None) -> None:
    assert near(written, cli.COMMANDS) == ("" if meant is None else f" (did you mean {meant!r}?)")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_is_found_with_one_letter_missing_or_two_exchanged(command: str) -> None:
    options = options_of(command)
    for option in options:
        for place in range(3, len(option) - 1, 5):
            missing = option[:place] + option[place + 1 :]
            exchanged = option[:place] + option[place + 1] + option[place] + option[place + 2 :]
            for written in {missing, exchanged} - {*options}:
                assert near(written, options) == f" (did you mean {option!r}?)", written
