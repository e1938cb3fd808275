"""`ray-dit COMMAND`: reads options and YAML, makes the configuration, calls the stage, reports errors in a sentence.

Every setting is an option (``--images.size 32``); ``--config run.yaml`` gives settings in a section a stage, and options
win over it. Importing this module imports neither torch nor ray.
"""

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic import BaseModel

from ray_dit import config as settings
from ray_dit.errors import NotFound, UserError


@dataclass(frozen=True)
class Command:
    """One subcommand: a line for the overview, its settings, and what to do with them."""

    summary: str
    config: type[settings.Config]
    run: Callable[[Any], None]
    positional: str | None = None
    """The setting that may be given without its name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `ray-dit` command; exits with 0, 1 (a user's error, said in a sentence) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
        os.environ["RAY_DIT_DEBUG"] = "1"
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error), error, debug)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again, it goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `ray-dit info X | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        _fail(f"{error.strerror or error}: {error.filename or 'no file name known'}", error, debug)


def _fail(message: str, error: BaseException, debug: bool) -> None:
    if debug:
        raise error
    print(f"ray-dit: error: {message}", file=sys.stderr)
    sys.exit(1)


def _dispatch(arguments: list[str]) -> None:
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(known))
        return
    if arguments[0] == "--version":
        from ray_dit import __version__

        print(f"ray-dit {__version__}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in known:
        near = _near(name, known)
        raise UserError(f"there is no command {name!r}{near}; `ray-dit --help` lists them")
    command = known[name]
    if command.positional and rest and not rest[0].startswith("-"):
        rest = [f"--{command.positional}", *rest]
    command.run(parse(name, command.config, rest))


def parse(name: str, config: type[settings.Config], arguments: Sequence[str]) -> Any:
    """The configuration from ``--config FILE`` and options; options win. UserError for what is wrong with them."""
    import tyro

    given = list(arguments)
    path = _take_option(given, "--config")
    given = (yaml_options(path, name, config) if path else []) + given
    see = f"see `ray-dit {name} --help`"
    if not {"-h", "--help"} & set(given):
        _check_options(given, config, see)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config, prog=f"ray-dit {name}", args=given, description=_help(config, name))
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _refused_setting(said.getvalue(), given) or _complaint(said.getvalue())
        raise UserError(f"{message}; {see}") from stop


def _check_options(given: Sequence[str], config: type[BaseModel], see: str) -> None:
    """UserError for options that do not exist, with the near match, and for required ones that are missing."""
    known = _option_names(config)
    named = {argument: argument.partition("=")[0].replace("_", "-") for argument in given}
    for argument, option in named.items():
        if option.startswith("--") and option not in known:
            raise UserError(f"unknown option {argument.partition('=')[0]}{_near(option, known)}; {see}")
    missing = [option for option, required in known.items() if required and option not in named.values()]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; {see}")


def _option_names(config: type[BaseModel], prefix: str = "--") -> dict[str, bool]:
    """Every option of these settings, and whether it must be given."""
    names: dict[str, bool] = {}
    for name, field in config.model_fields.items():
        option = prefix + name.replace("_", "-")
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            inner = _option_names(nested, option + ".")
            names |= {key: required and field.is_required() for key, required in inner.items()}
        else:
            names[option] = field.is_required()
        if _is_switch(nested):
            names[_negated(option)] = False
    return names


def _is_switch(annotation: Any) -> bool:
    return annotation is bool  # where None is a third value, it is `--option True` or False


def _complaint(boxed: str) -> str:
    """The text of an error of tyro's, out of the box and title around it."""
    parts = [" ".join(part.split()) for part in re.split(r"[─╭╮╰╯-]{4,}", boxed.replace("│", " "))]
    texts = [part for part in parts if part] or ["wrong options"]
    text = texts[min(1, len(texts) - 1)].removesuffix(".").replace("Error parsing ", "")
    text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number", text)
    text = re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", text)
    # of a setting that may be one of several things, tyro tells what is wrong with each; often one of them is "nothing"
    several = re.match(r"(--\S+): no type matching (\S+) could be instantiated from \['(.*?)'", text)
    if several and several[2].count("|") > 1:
        return f"{several[1]}: {several[3]!r} is none of {several[2].removeprefix('{None}|')}"
    text = re.sub(r"^(--\S+): no type matching .* Got errors: .*\]?: (?=['\w])", r"\1: ", text)
    text = re.sub(
        r"input length (\d+) did not match expected argument count (\d+).*",
        r"\2 values are wanted, not \1",
        text,
    )
    return re.sub(r"Expected one of \((.*)\)", lambda found: f"There are {_choices(found[1])}", text)


def _choices(listed: str) -> str:
    return ", ".join(sorted(choice for choice in re.findall(r"'([^']*)'", listed) if choice != "None"))


def _refused_setting(boxed: str, given: Sequence[str]) -> str | None:
    """The message of a setting that pydantic refused, out of the box tyro prints around it; None for other errors."""
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", boxed)
    found = re.search(
        r"validation errors? for \w+ (?:(?P<field>[\w.]+) )??(?:Value error, |(?=Input |String ))(?P<what>.*?) \[type=",
        text,
    )
    if not found:
        return None
    if not found["field"]:
        return found["what"]
    last = (
        found["field"].split(".")[0].replace("_", "-")
    )  # pydantic names the field, not the settings it is in
    options = [argument for argument in given if re.search(rf"^--(.*\.)?{re.escape(last)}$", argument)]
    return f"{options[0] if len(set(options)) == 1 else found['field']}: {found['what']}"


def yaml_options(path: str, section: str, config: type[settings.Config]) -> list[str]:
    """The options a YAML file's section stands for; UserError for unknown sections and keys, with the near match."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            document: Any = yaml.safe_load(file) or {}
    except OSError as error:
        raise UserError(
            f"the configuration {path} cannot be read ({error.strerror}): check --config"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the configuration {path} is not a text in UTF-8: check --config") from error
    except yaml.YAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""  # type: ignore[attr-defined]
        raise UserError(f"the configuration {path} is not valid YAML{line}: mend it there") from error
    if not isinstance(document, dict):
        raise UserError(f"the configuration {path} must have a section a stage, such as `{section}:`")
    known = set(commands())
    for key in cast(dict[Any, Any], document):
        if key not in known:
            raise UserError(
                f"unknown section {key!r} in {path}{_near(str(key), known)}; sections are named as commands"
            )
    return list(_options(document.get(section) or {}, config, path, section, "--"))


def _options(values: Any, config: type[BaseModel], path: str, where: str, prefix: str) -> list[str]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} in {path} must hold settings, a `key: value` a line")
    options: list[str] = []
    for key, value in cast(Mapping[Any, Any], values).items():
        field = config.model_fields.get(str(key))
        if field is None:
            near = _near(str(key), config.model_fields)
            raise UserError(
                f"unknown key {key!r} in section {where} of {path}{near}; see `ray-dit {where.split('.')[0]} --help`"
            )
        option = prefix + str(key).replace("_", "-")
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            options += _options(value, nested, path, f"{where}.{key}", option + ".")
        elif _is_switch(nested):
            if not isinstance(value, bool):
                raise UserError(f"{where}.{key} in {path} must be true or false, not {value!r}")
            options.append(option if value else _negated(option))
        elif bool in get_args(nested) and not isinstance(value, bool | None):
            raise UserError(f"{where}.{key} in {path} must be true or false, not {value!r}")
        elif isinstance(value, Mapping):
            raise UserError(f"{where}.{key} in {path} must be a value, not settings of its own")
        elif isinstance(value, list):
            options += [option, *map(str, cast(list[Any], value))]
        else:
            options += [option, str(value)]
    return options


def _negated(option: str) -> str:
    head, _, last = option.removeprefix("--").rpartition(".")
    return f"--{head}.no-{last}" if head else f"--no-{last}"


def _take_option(arguments: list[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(name + "="):
            return arguments.pop(index).partition("=")[2]
        if argument == name:
            if index + 1 == len(arguments):
                raise UserError(f"{name} needs a file: `{name} run.yaml`")
            arguments.pop(index)
            return arguments.pop(index)
    return None


def _near(word: str, words: Any) -> str:
    close = difflib.get_close_matches(
        word.replace("-", "_"), [str(w) for w in words], n=1
    ) or difflib.get_close_matches(word, [str(w) for w in words], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _help(config: type[settings.Config], name: str) -> str:
    text = (config.__doc__ or "").strip()
    return f"{text}\n\nSettings can also stand in a YAML file, in a section `{name}:`, given by --config FILE; options win."


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            "ray-dit: train diffusion transformers and make labelled images with them, on Ray.",
            "",
            "usage: ray-dit COMMAND [--config run.yaml] [options]      ray-dit COMMAND --help",
            "",
            *lines,
            "",
            "Every command can be killed and run again: it goes on where it stopped. --debug shows tracebacks, --version the version.",
        ]
    )


def _said(result: str, where: str, next_command: str | None) -> None:
    print(f"{result}: {where}")
    if next_command:
        print(f"next: {next_command}")


def _train_vae(config: settings.TrainVaeConfig) -> None:
    from ray_dit.stages.train_vae import train_vae

    manifest = train_vae(config)
    _said(
        f"VAE, {manifest['psnr_heldout']:.1f} dB on {manifest['num_heldout']} held-out pictures",
        config.output,
        f"ray-dit encode --images.uri {config.images.uri} --images.size {config.images.size} --vae {config.output} "
        "--output latents",
    )


def _encode(config: settings.EncodeConfig) -> None:
    from ray_dit.stages.encode import encode

    manifest = encode(config)
    bad = f", {manifest['bad']} unreadable ones listed in quarantine.tsv" if manifest["bad"] else ""
    _said(
        f"latents of {manifest['rows']} pictures in {len(manifest['classes'])} classes{bad}",
        config.output,
        f"ray-dit train --latents {config.output} --output run",
    )


def _train(config: settings.TrainConfig) -> None:
    from ray_dit.stages.train import model_folder, train

    manifest = train(config)
    model = model_folder(config)
    _said(
        f"model after {manifest['steps']} steps, loss {manifest['loss']:.4f}",
        model,
        f"ray-dit generate --model {model} --num-images 1000 --output dataset",
    )


def _generate(config: settings.GenerateConfig) -> None:
    from ray_dit.stages.generate import generate

    manifest = generate(config)
    labelled = bool(manifest["classes"])
    size = manifest.get("image_size", "SIZE")
    judged = f"ray-dit evaluate --images.uri IMAGES --images.size {size} --dataset {config.output} --output evaluation"
    _said(
        f"dataset of {manifest['rows']} images"
        + (f" of {len(manifest['labels'])} classes" if labelled else ""),
        config.output,
        judged if labelled else None,
    )


def _evaluate(config: settings.EvaluateConfig) -> None:
    from ray_dit.stages.evaluate import evaluate

    manifest = evaluate(config)
    _said(f"class accuracy {manifest['class_accuracy']:.1%}", f"{config.output}/metrics.json", None)


def _report(config: settings.ReportConfig) -> None:
    from ray_dit.report.html import write_report

    write_report(config)
    _said("report", config.output, None)


def _import(config: Any) -> None:
    from ray_dit.checkpoints.importing import import_checkpoint
    from ray_dit.folders.model import read_model

    import_checkpoint(config)
    told = read_model(
        config.output
    ).config  # what the source told or was assumed, so that a wrong guess shows
    channels = told.guidance_channels or told.model.in_channels
    print(
        f"{told.model.num_classes} classes, VAE {told.vae}, latents (z - {told.latents.shift}) * {told.latents.scale}, "
        f"guidance on {channels} of {told.model.in_channels} channels, {told.diffusion.num_train_timesteps} time steps"
    )
    _said(
        "model", config.output, f"ray-dit generate --model {config.output} --num-images 1000 --output dataset"
    )


def _export(config: Any) -> None:
    from ray_dit.checkpoints.exporting import export

    _said(f"{config.format} checkpoint", export(config), None)


def _serve(config: Any) -> None:
    from ray_dit.serving.deployments.launcher import serve

    serve(config)


def _verify(config: settings.VerifyConfig) -> None:
    from ray_dit.ledger.maintenance import Tally, verify
    from ray_dit.storage.open import open_store

    tally = Tally()
    problems = 0
    for problem in verify(open_store(config.uri), tally=tally):
        problems += 1
        print(problem)
    if problems:
        raise UserError(
            f"{problems} of the objects in {config.uri} are missing or damaged: run encode or generate again with --repair; "
            "what another stage made, restore, or delete its folder and run it again"
        )
    print(
        f"verified: {tally.objects} objects, {tally.bytes / 1e6:.1f} MB in {tally.jobs} jobs at {config.uri} are whole"
    )


def _gc(config: settings.GcConfig) -> None:
    from ray_dit.ledger.maintenance import gc
    from ray_dit.storage.open import open_store

    store, removed = open_store(config.uri), 0
    for what in gc(store, older_than=config.older_than):
        removed += 1
        print(f"removed {what}")
    if not removed and next(store.list(), None) is None:
        raise NotFound(f"nothing is at {config.uri}: check the path")
    print(f"removed: {removed} leftovers at {config.uri}")


def _info(config: settings.InfoConfig) -> None:
    from ray_dit.stages.info import describe

    print(describe(config.uri))


def commands() -> dict[str, Command]:
    """All subcommands by name, in the order one uses them."""
    from ray_dit.serving.settings import ServeConfig

    return {
        "train-vae": Command("train a small VAE on your pictures", settings.TrainVaeConfig, _train_vae),
        "encode": Command("pictures to latents, in shards", settings.EncodeConfig, _encode),
        "train": Command("train a DiT on latents", settings.TrainConfig, _train),
        "generate": Command("make a labelled dataset with a model", settings.GenerateConfig, _generate),
        "evaluate": Command(
            "judge a generated dataset beside real pictures", settings.EvaluateConfig, _evaluate
        ),
        "report": Command("one HTML page about a pipeline run", settings.ReportConfig, _report),
        "serve": Command("an HTTP endpoint and a page for models", ServeConfig, _serve),
        "import-checkpoint": Command(
            "a published DiT as a model folder", settings.ImportConfig, _import, "source"
        ),
        "export": Command(
            "a model folder for diffusers or as an official .pt", settings.ExportConfig, _export, "model"
        ),
        "info": Command("what a folder holds and how far it is", settings.InfoConfig, _info, "uri"),
        "verify": Command(
            "read every object again and compare hashes", settings.VerifyConfig, _verify, "uri"
        ),
        "gc": Command("remove what killed processes left behind", settings.GcConfig, _gc, "uri"),
    }


if __name__ == "__main__":
    main()
