"""Samplers as tables: DDPM, DDIM, DPM-Solver++(2M) and UniPC are linear in state, predictions and noise.

One row is one step:  x0 = c_x·x - c_eps·eps,  x' = a·x + Σ_k b_k·x0_{-k} + d·noise.  Knows the schedule's
numbers only: no tensors, network or batch. float64; ``sampling`` gathers the rows and applies them. Each
sampler is a module here that says what its settings are and fills the columns; ``registry`` finds it by its
name.
"""

from ray_dit.core.samplers.registry import SAMPLERS, check_settings, make_table, table_from_nodes
from ray_dit.core.samplers.table import NUM_HISTORY, Sampler, SamplerTable, column_names

__all__ = [
    "NUM_HISTORY",
    "SAMPLERS",
    "Sampler",
    "SamplerTable",
    "check_settings",
    "column_names",
    "make_table",
    "table_from_nodes",
]
