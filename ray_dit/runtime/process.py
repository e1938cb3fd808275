"""How a process of ours that computes is set up."""


def set_up_torch(threads: int, *, tf32: bool = False) -> None:
    """Prepares this process for computing what is stored; see ``make_deterministic``."""
    from ray_dit.core.determinism import make_deterministic
    from ray_dit.core.host_memory import keep_freed_memory

    keep_freed_memory()
    make_deterministic(threads, tf32=tf32)
