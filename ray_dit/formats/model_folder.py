"""A model folder's objects.

`train` and `import-checkpoint` write them, and generate, serve and `ray_dit.load` read them.

A folder holds config.json (`ModelConfig`), model.safetensors (the averaged weights, float32, under the
official checkpoints' names), labels.json, vae/ (diffusers' layout) and README.md, the model card.
"""

from collections.abc import Mapping

from torch import Tensor

from ray_dit.config.model_folder import VAE_FOLDER, ModelConfig
from ray_dit.formats.labels import Labels
from ray_dit.formats.weights import weights_bytes

CONFIG_KEY = "config.json"
WEIGHTS_KEY = "model.safetensors"
LABELS_KEY = "labels.json"
CARD_KEY = "README.md"


def model_objects(
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    labels: Labels,
    vae_files: Mapping[str, bytes],
    card: str,
) -> dict[str, bytes]:
    """The objects of a model folder by key; their bytes are a function of the arguments alone.

    ``vae_files`` are those of ``VAE.files()``; floating-point weights become float32.
    """
    if len(labels) != config.model.num_classes:
        raise ValueError(f"{len(labels)} labels for {config.model.num_classes} classes")
    return {
        CONFIG_KEY: (config.model_dump_json(indent=2) + "\n").encode(),
        WEIGHTS_KEY: weights_bytes(state_dict),
        LABELS_KEY: labels.to_json(),
        CARD_KEY: card.encode(),
        **{f"{VAE_FOLDER}/{name}": data for name, data in vae_files.items()},
    }


def model_card(config: ModelConfig, labels: Labels, *, title: str, notes: str = "") -> str:
    """README.md of a model folder: what it is, how to use it, origin, licence; YAML header as on the hub."""
    model, latents = config.model, config.latents
    size = (
        f"{model.hidden_size} wide, {model.depth} blocks, {model.num_heads} heads, "
        f"patches of {model.patch_size}"
    )
    classes = f"{len(labels)} classes" if len(labels) else "no classes (unconditional)"
    guided = "all" if config.guidance_channels is None else f"the first {config.guidance_channels}"
    ask = f"labels=[{labels.names[0]!r}]" if len(labels) else "num_images=1"
    header = ["library_name: ray-dit", "pipeline_tag: unconditional-image-generation"]
    header += [f"license: {config.licence.lower()}"] if config.licence else []
    return "\n".join(
        [
            "---",
            *header,
            "---",
            f"# {title}",
            "",
            f"A class-conditional diffusion transformer (DiT, Peebles & Xie 2022): {size}; "
            f"{latents.image_size}x{latents.image_size} pictures, {classes}.",
            "",
            "```python",
            "import ray_dit",
            "",
            'pipe = ray_dit.load("path/of/this/folder")',
            f"pipe({ask}, seed=0)[0].save('image.png')",
            "```",
            "",
            f"* Weights: float32; origin: {config.origin or 'not recorded'}.",
            f"* Licence of the weights: {config.licence or 'not recorded; ask whoever made them'}.",
            f"* Latents: {model.in_channels} channels of {model.input_size}x{model.input_size}; "
            f"guidance acts on {guided} of them.",
            *([f"* {notes}"] if notes else []),
            "",
        ]
    )
