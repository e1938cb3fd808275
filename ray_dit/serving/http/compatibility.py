"""What OpenAI's clients send, as they mean it: bodies in, bodies of the strict API and warnings out.

Pure functions, used in the mode `api.compatibility: openai` only. `relax` needs no model; `fit` puts what
depends on one in its place. What has no meaning here is not refused but named in a warning, so that every
client gets an image and may learn why it is not the one it had in mind. `loosen` says what `relax` takes as a
JSON schema.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ray_dit.errors import UserError
from ray_dit.formats.labels import Labels
from ray_dit.serving.backend import ModelInfo
from ray_dit.serving.http.class_names import find_class
from ray_dit.serving.http.errors import invalid
from ray_dit.serving.http.schemas import OpenAIImageRequest
from ray_dit.serving.http.spec import size

WARNING_HEADER = "x-ray-dit-warning"
WHOLE = ("n", "output_compression", "partial_images", "seed", "num_inference_steps")
NUMBERS = ("guidance_scale",)
NO_EFFECT = {"quality": ("auto",), "style": (), "background": ("auto", "opaque")}
"""Fields without effect here, and the values of each that promise nothing else."""
UNREAD = ("moderation", "user")
"""Fields that change no image anywhere: nothing to warn of."""
INTEGER = re.compile(r"\s*([+-]?[0-9]{1,20})(?:\.0*)?\s*")
NUMBER = re.compile(r"\s*[+-]?[0-9]{1,20}(?:\.[0-9]{0,20})?\s*")
NAMED = 8
"""Unknown fields that a warning names."""


def relax(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A body of `OpenAIImageRequest` from what a client sent, and warnings of what has no effect.

    What can't be read in any sense is left as it is: checking the body will refuse it.
    """
    known = OpenAIImageRequest.model_fields
    given = {name: value for name, value in body.items() if name in known and value not in (None, "")}
    warnings = _unknown(name for name in body if name not in known)
    for name in WHOLE:
        if name in given:
            given[name] = _whole(given[name])
    for name in NUMBERS:
        if isinstance(value := given.get(name), str) and NUMBER.fullmatch(value):
            given[name] = float(value)
    if isinstance(labels := given.get("class_labels"), list):
        given["class_labels"] = [int(one) if _is_whole_float(one) else one for one in labels]
    if given.get("seed") == -1:
        del given["seed"]
    for name, harmless in NO_EFFECT.items():
        if name in given and given.pop(name) not in harmless:
            warnings.append(f"{name} has no effect" + (": images are opaque" if name == "background" else ""))
    for name in UNREAD:
        given.pop(name, None)
    if given.get("stream") is True and given.get("response_format") == "url":
        warnings.append("response_format has no effect on a stream: its events hold b64_json")
    return given, warnings


def fit(body: OpenAIImageRequest, info: ModelInfo) -> tuple[OpenAIImageRequest, list[str]]:
    """The body as this model can do it: its own size, and the class that the prompt names.

    ApiError 400, with candidates, where the prompt names no class or several.
    """
    warnings: list[str] = []
    changes: dict[str, Any] = {"size": None, "response_format": None}
    if body.size not in (None, "auto", size(info)):
        warnings.append(f"size is {size(info)}, the model's own")
    if len(info.labels) and body.prompt and body.class_labels is None:
        try:
            label = find_class(info.labels, body.prompt)
        except UserError as error:
            raise invalid("prompt", str(error), code="unknown_class") from None
        changes |= {"prompt": None, "class_labels": [label]}
        if not _is_called(info.labels, label, body.prompt):
            warnings.append(f"prompt was taken for the class {label} ({info.labels.names[label]})")
    return body.model_copy(update=changes), warnings


def warning_header(warnings: Iterable[str]) -> dict[str, str]:
    """The header that carries these warnings, none if there are none: visible ASCII, of bounded length."""
    text = "; ".join(warnings)
    plain = "".join(character if " " <= character <= "~" else "?" for character in text)
    return {WARNING_HEADER: plain[:1000]} if plain else {}


def loosen(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of `OpenAIImageRequest` with everything in it that `relax` takes."""
    fields = {name: dict(field) for name, field in schema["properties"].items()}
    for name, field in fields.items():
        forms = field.get("anyOf", [])
        if name in WHOLE:
            field["anyOf"] = [*forms, {"type": "string", "pattern": r"^([+-]?[0-9]{1,20}(\.0*)?)?$"}]
        elif name in NUMBERS:
            field["anyOf"] = [*forms, {"type": "string", "pattern": r"^([+-]?[0-9]{1,20}(\.[0-9]{0,20})?)?$"}]
        elif forms:
            field["anyOf"] = [*forms, {"type": "string", "const": ""}]
    return {**schema, "properties": fields, "additionalProperties": True}


def _is_called(labels: Labels, label: int, prompt: str) -> bool:
    """Whether the prompt is the class as such, and nothing had to be found in it."""
    name = labels.names[label]
    spellings = (str(label), name, *name.split(","), *labels.wordnet_ids[label : label + 1])
    return prompt.strip().casefold() in {spelling.strip().casefold() for spelling in spellings}


def _unknown(names: Iterable[str]) -> list[str]:
    unknown = [name[:40] for name in names]
    if not unknown:
        return []
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return [f"ignored unknown fields: {', '.join(unknown[:NAMED])}{more}"]


def _whole(value: Any) -> Any:
    """2, 2.0 and "2" as 2; anything else as it is."""
    if isinstance(value, str) and (match := INTEGER.fullmatch(value)):
        return int(match[1])
    return int(value) if _is_whole_float(value) else value


def _is_whole_float(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()
