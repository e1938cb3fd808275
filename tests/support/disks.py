"""A small disk in memory, to be filled or made read-only; needs root on Linux."""

import os
import subprocess
from pathlib import Path
from typing import Self


class NoDisk(RuntimeError):
    """This user may not mount one."""


class SmallDisk:
    """A tmpfs of some pages of 4 KiB at ``folder``; a context."""

    def __init__(self, folder: Path, *, pages: int) -> None:
        self.folder, self._pages = folder, pages

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise NoDisk("only root mounts a disk")
        self.folder.mkdir(parents=True)
        self._mount("-t", "tmpfs", "-o", f"size={self._pages * 4096}", "tmpfs")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        self.folder.rmdir()

    def enlarge(self) -> None:
        """Gives it 64 MiB."""
        self._mount("-o", f"remount,size={64 << 20}")

    def set_read_only(self, read_only: bool) -> None:
        """Refuses writes from now on, or takes them again."""
        self._mount("-o", "remount,ro" if read_only else "remount,rw")

    def _mount(self, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, str(self.folder)], capture_output=True, text=True)
        if done.returncode:
            raise NoDisk(done.stderr.strip())
