"""One denoising step of any mixture of rows, and the loop over it; bulk generation and the server share both.

Every row brings its own sampler, step, label, guidance scale, seed and sample id. Knows nothing of requests,
shards, the VAE or files. State and coefficients stay float32 outside autocast; what the network computes in
is the network's affair. What decides shapes (steps, scales, ids) lives on the CPU, so that a step never waits
for an accelerator.

R rows, C channels, H W height and width of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ray_dit.core.guidance import Call, GuidedModel
from ray_dit.core.rng import Stream, normal
from ray_dit.core.samplers import NUM_HISTORY, SamplerTable, column_names
from ray_dit.core.transfer import to_device

Noise = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""(seed [N], sample_id [N], step [N], shape) → standard normal [N, *shape]; step 0 is the start, i + 1
follows step i."""

COLUMN = {name: place for place, name in enumerate(column_names())}


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Latents on their way, one per row.

    ``x``, ``history`` and ``labels`` are on the model's device, the others on the CPU.
    """

    x: Float[Tensor, "R C H W"]
    history: Float[Tensor, "R 3 C H W"]
    """The latest predictions of x_start, newest first; zeros before the first step."""
    labels: Int64[Tensor, " R"]
    guidance_scale: Float[Tensor, " R"]
    seed: Int64[Tensor, " R"]
    sample_id: Int64[Tensor, " R"]
    step: Int64[Tensor, " R"]
    """The step to be done next, counted from 0 in the row's own table."""
    table: Int64[Tensor, " R"]
    """Number of the row's sampler in the ``TableBank``."""

    def __len__(self) -> int:
        return len(self.step)

    def select(self, index: Int64[Tensor, " S"]) -> "Rows":
        """These rows, by number (on the CPU), in this order."""
        (there,) = to_device(self.x.device, [index])
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Rows(**{name: value[index if value.is_cpu else there] for name, value in values.items()})

    @staticmethod
    def cat(parts: Sequence["Rows"]) -> "Rows":
        """All rows of all parts, in order."""
        names = [field.name for field in fields(Rows)]
        return Rows(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


class TableBank:
    """Sampler tables, by number; it only grows, so that numbers stay valid while rows come and go.

    ``dtype`` float64 is for measuring the samplers themselves, with float64 rows.
    """

    def __init__(self, tables: Sequence[SamplerTable] = (), *, dtype: torch.dtype = torch.float32) -> None:
        self.num_steps = torch.zeros(0, dtype=torch.int64)
        self._matrix = torch.zeros(0, len(COLUMN), dtype=dtype)
        self._first = torch.zeros(0, dtype=torch.int64)
        for table in tables:
            self.add(table)

    def add(self, table: SamplerTable) -> int:
        """Take in one more table and give its number."""
        self._first = torch.cat((self._first, torch.tensor([len(self._matrix)])))
        self._matrix = torch.cat((self._matrix, torch.tensor(table.matrix(), dtype=self._matrix.dtype)))
        self.num_steps = torch.cat((self.num_steps, torch.tensor([len(table)])))
        return len(self.num_steps) - 1

    def done(self, rows: Rows) -> Bool[Tensor, " R"]:
        """Which rows have no step left: their x is the sample."""
        return rows.step >= self.num_steps[rows.table]

    def at(self, rows: Rows) -> Float[Tensor, "R columns"]:
        """Each row's coefficients for its next step, on the CPU.

        Raises ValueError if a row has no step left.
        """
        if self.done(rows).any():
            raise ValueError("a row has no step left: take finished rows out before the next step")
        return self._matrix[self._first[rows.table] + rows.step]

    def num_twins(self, model: GuidedModel, rows: Rows) -> int:
        """How many unconditional rows the next step of these rows adds to the network's call."""
        return len(model.twins(rows.guidance_scale, _column(self.at(rows), "guided") > 0))


def counter_noise(
    seed: Int64[Tensor, " N"], sample_id: Int64[Tensor, " N"], step: Int64[Tensor, " N"], shape: Sequence[int]
) -> Float[Tensor, " N *shape"]:
    """The noise of sampling, a function of (seed, sample id, step); see ``rng``."""
    return normal(seed, sample_id, step, shape, stream=Stream.SAMPLE)


def init_rows(
    shape: Sequence[int],
    *,
    labels: Int64[Tensor, " R"],
    sample_id: Int64[Tensor, " R"],
    seed: int | Int64[Tensor, " R"],
    guidance_scale: int | float | Float[Tensor, " R"],
    table: int | Int64[Tensor, " R"] = 0,
    device: torch.device | str = "cpu",
    noise: Noise = counter_noise,
) -> Rows:
    """Rows of latents [C, H, W] = ``shape`` before their first step: pure noise.

    A single value holds for all rows.
    """
    count = len(sample_id)
    ids = sample_id.to("cpu", torch.int64)
    seeds, tables = _filled(seed, count, torch.int64), _filled(table, count, torch.int64)
    step = torch.zeros(count, dtype=torch.int64)
    device = torch.device(device)
    told = to_device(device, [seeds, ids, step, labels.to("cpu", torch.int64)])
    x = noise(told[0], told[1], told[2], shape).to(device)
    return Rows(
        x=x,
        history=x.new_zeros(count, NUM_HISTORY, *shape),
        labels=told[3],
        guidance_scale=_filled(guidance_scale, count, torch.float32),
        seed=seeds,
        sample_id=ids,
        step=step,
        table=tables,
    )


@torch.no_grad()
def denoise_step(
    model: GuidedModel,
    rows: Rows,
    bank: TableBank,
    *,
    pad_to: int | Sequence[int] | None = None,
    noise: Noise = counter_noise,
) -> tuple[Rows, Float[Tensor, "R C H W"]]:
    """One step of every row by one call of the network: the rows after it, and the predicted x_start.

    The call holds one row per row, one more for each guided row (scale not 1, inside the interval), and
    padding up to ``pad_to`` (a size, or sizes of which the least that fits is taken). Rows alone and in any
    mixture give the same but for what the network's kernels make of the batch size. Raises ValueError if a
    row has no step left.
    """
    step = _Step.of(model, rows, bank, pad_to)
    on_cpu, coefficients = step.on_cpu, step.coefficients
    eps, variance = model.predict(
        rows.x, _column(coefficients, "timesteps"), rows.labels, step.guidance_scale, step.call
    )
    # Element by element only: autocast, where the caller has it on, changes none of this.
    x_start = _spread(coefficients, "c_x") * rows.x - _spread(coefficients, "c_eps") * eps
    x = _spread(coefficients, "a") * rows.x + _spread(coefficients, "b0") * x_start
    for k in range(1, NUM_HISTORY + 1):
        if _column(on_cpu, f"b{k}").any():
            x += _spread(coefficients, f"b{k}") * rows.history[:, k - 1]
    _add_noise(x, step, variance, noise)
    history = torch.cat((x_start[:, None], rows.history[:, :-1]), dim=1)
    return replace(rows, x=x, history=history, step=rows.step + 1), x_start


def sample(
    model: GuidedModel,
    rows: Rows,
    bank: TableBank,
    *,
    pad_to: int | Sequence[int] | None = None,
    noise: Noise = counter_noise,
    callback: Callable[[Int64[Tensor, " S"], Rows, Float[Tensor, "S C H W"]], None] | None = None,
) -> Float[Tensor, "R C H W"]:
    """All steps of all rows, which leave as they finish: the latents, on the rows' device.

    ``callback`` is called after each step with the numbers of the rows still there, their state and predicted
    x_start.
    """
    latents = torch.empty_like(rows.x)
    number = torch.arange(len(rows))
    while len(rows):
        rows, x_start = denoise_step(model, rows, bank, pad_to=pad_to, noise=noise)
        if callback is not None:
            callback(number, rows, x_start)
        done = bank.done(rows)
        if done.any():
            ended, going = torch.nonzero(done).flatten(), torch.nonzero(~done).flatten()
            places, there = to_device(latents.device, [number[ended], ended])
            latents[places] = rows.x[there]
            rows, number = rows.select(going), number[going]
    return latents


@dataclass(frozen=True, eq=False)
class _Step:
    """All that the host tells the network's device for one step, which it does in one copy."""

    on_cpu: Float[Tensor, "R columns"]
    """Each row's coefficients; those below are on the device."""
    coefficients: Float[Tensor, "R columns"]
    guidance_scale: Float[Tensor, " R"]
    call: Call
    noisy: Int64[Tensor, " M"]
    """The rows that get noise."""
    ids: Int64[Tensor, "3 M"]
    """Their seeds, sample ids and steps, as ``Noise`` takes them."""

    @classmethod
    def of(
        cls, model: GuidedModel, rows: Rows, bank: TableBank, pad_to: int | Sequence[int] | None
    ) -> "_Step":
        """The next step of ``rows``; ValueError as ``denoise_step``."""
        on_cpu = bank.at(rows)
        call = model.call(rows.guidance_scale, _column(on_cpu, "guided") > 0, pad_to)
        noisy = torch.nonzero(_learned(on_cpu) | (_column(on_cpu, "d") != 0)).flatten()
        ids = torch.stack((rows.seed, rows.sample_id, rows.step + 1))[:, noisy]
        values = [on_cpu, rows.guidance_scale, call.twins, call.rows, noisy, ids]
        coefficients, scale, twins, copied, noisy, ids = to_device(rows.x.device, values)
        return cls(on_cpu, coefficients, scale, Call(call.num_rows, twins, copied), noisy, ids)


def _add_noise(x: Tensor, step: _Step, variance: Tensor | None, noise: Noise) -> None:
    """Adds its noise to each row that has any at this step; no other noise is made."""
    noisy = step.noisy
    if not len(noisy):
        return
    if variance is None and _learned(step.on_cpu).any():
        raise ValueError("a sampler with learned variance needs a model that predicts it (learn_sigma)")
    seed, sample_id, number = step.ids
    drawn = noise(seed, sample_id, number, x.shape[1:]).to(x)
    weight = _noise_weight(step.coefficients[noisy], None if variance is None else variance[noisy])
    x[noisy] += weight * drawn


def _noise_weight(coefficients: Tensor, variance: Tensor | None) -> Tensor:
    """d, or exp(½ log variance) where the variance is learned (Nichol & Dhariwal 2021, eq. 15)."""
    fixed = _spread(coefficients, "d")
    if variance is None:
        return fixed
    share = (variance + 1.0) / 2.0
    low, high = _spread(coefficients, "log_variance_min"), _spread(coefficients, "log_variance_max")
    learned = torch.exp(0.5 * (share * high + (1.0 - share) * low))
    return torch.where(_spread(coefficients, "learned_variance") > 0, learned, fixed)


def _learned(coefficients: Tensor) -> Bool[Tensor, " R"]:
    """Which rows have a learned variance at this step."""
    return _column(coefficients, "learned_variance") > 0


def _column(coefficients: Tensor, name: str) -> Float[Tensor, " R"]:
    return coefficients[:, COLUMN[name]]


def _spread(coefficients: Tensor, name: str) -> Float[Tensor, "R 1 1 1"]:
    return coefficients[:, COLUMN[name], None, None, None]


def _filled(value: int | float | Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """A CPU tensor [count] of one value or of each row's own."""
    return torch.as_tensor(value, dtype=dtype, device="cpu").expand(count).clone()
