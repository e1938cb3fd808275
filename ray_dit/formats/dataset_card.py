"""README.md of a dataset: the YAML header that `datasets` and the hub read, and a few words for people.

Knows no model, no plan and no format: each format says what its card must (`OutputFormat.card`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Kind = str | tuple[str, ...] | Mapping[str, Any]
"""Of a column: a type of `datasets` such as ``int64``, the names of classes, or the columns in it."""


@dataclass(frozen=True)
class Card:
    """What a format says of its datasets."""

    columns: Mapping[str, Kind]
    """By name, in the order of a row; none where `datasets` can't load the format."""
    data: str
    """Where shards lie, ``{prefix}`` standing for the generation's."""
    opened: str
    """Lines of Python that open the dataset."""
    extended: str | None = None
    """The same for a dataset of several generations, where that takes other lines."""
    counted: bool = False
    """Whether the header tells the number of images, which makes `datasets` warn: the first version's."""


def dataset_card(
    card: Card, *, title: str, words: str, num_images: int, prefixes: Sequence[str], labelled: bool
) -> str:
    """The whole README.md.

    Args:
        card: what the format says.
        title: the heading.
        words: a paragraph on how the images were made.
        num_images: of all generations.
        prefixes: of each generation, the first of which has none.
        labelled: whether the images have classes.
    """
    shards = [*dict.fromkeys(card.data.format(prefix=prefix) for prefix in prefixes)]
    tags = ["task_categories:", "- image-classification"] if labelled else []
    header = [
        *(_loading(card, shards, num_images) if card.columns else ()),
        *tags, "tags:", "- synthetic", "size_categories:", f"- {size_category(num_images)}",
    ]  # fmt: skip
    opened = card.opened if len(prefixes) == 1 else card.extended or card.opened
    return "\n".join(["---", *header, "---", f"# {title}", "", words, "", "```python", opened, "```", ""])


def _loading(card: Card, shards: Sequence[str], num_images: int) -> Iterator[str]:
    """What `datasets` goes by."""
    yield from ("configs:", "- config_name: default", "  data_files:", "  - split: train")
    if len(shards) == 1:
        yield f"    path: {shards[0]}"
    else:
        yield "    path:"
        yield from (f"    - {shard}" for shard in shards)
    yield from ("dataset_info:", "  features:")
    yield from _features(card.columns, "  ")
    if card.counted:
        yield from ("  splits:", "  - name: train", f"    num_examples: {num_images}")


def _features(columns: Mapping[str, Kind], indent: str) -> Iterator[str]:
    for name, kind in columns.items():
        yield f"{indent}- name: {name}"
        if isinstance(kind, str):
            yield f"{indent}  dtype: {kind}"
        elif isinstance(kind, Mapping):
            yield f"{indent}  struct:"
            yield from _features(kind, f"{indent}  ")
        else:
            yield from (f"{indent}  dtype:", f"{indent}    class_label:", f"{indent}      names:")
            yield from (
                f"{indent}        '{number}': {yaml_text(class_name)}"
                for number, class_name in enumerate(kind)
            )


def size_category(num_images: int) -> str:
    """The hub's tag for a dataset's size."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    limits = [10**power for power in range(3, 10)]
    above = sum(num_images >= limit for limit in limits)
    if above == 0:
        return "n<1K"
    return f"{names[above - 1]}<n<{names[above]}" if above < len(names) else "n>1B"


def yaml_text(text: str) -> str:
    """A YAML string in double quotes."""
    return json.dumps(text, ensure_ascii=False)
