"""`ray-dit report`: reads the stages' folders, writes one HTML file and the PNGs of its grids beside it."""

from ray_dit.config import ReportConfig
from ray_dit.report.gather import gather
from ray_dit.report.page import grids, page
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store


def write_report(config: ReportConfig) -> str:
    """Writes the page to ``config.output``, and ``NAME-samples.png`` and so on; returns where the page is.

    A report holds times, so another one is written over an earlier one. UserError where a stage's result is
    missing.
    """
    folder, _, name = config.output.rpartition("/")
    store = open_store(folder or ("/" if config.output.startswith("/") else "."))
    contents = gather(config)
    stem = name.removesuffix(".html")
    for picture, data in grids(contents).items():
        _write(store, f"{stem}-{picture}", data)
    _write(store, name, page(contents).encode())
    return store.where(name)


def _write(store: Store, key: str, data: bytes) -> None:
    there = store.head(key)
    if there is None:
        store.put(key, data)
    elif store.get(key) != data:
        store.replace(key, data, if_match=there.etag or "")
