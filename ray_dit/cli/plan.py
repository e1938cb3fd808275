"""``--plan``: what a command would make and take, as a table or as JSON, and its cost."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray_dit.cli.options import take_option
from ray_dit.config import Config
from ray_dit.core.units import bytes_text, duration
from ray_dit.errors import UserError

PRICE = "--price-per-hour FLOAT"
HELP = {
    "--plan [json]": "Say what would be made, read and needed, by a short trial on this Ray, and write "
    "nothing; as a table or as JSON.",
    PRICE: "With --plan: the price of one worker for an hour, for the cost.",
}


@dataclass(frozen=True)
class PlanOptions:
    """What was asked for with ``--plan``."""

    as_json: bool
    price_per_hour: float | None


def help_for(config: type[Config]) -> Mapping[str, str]:
    """The options of a command with these settings that are none of them."""
    return {option: text for option, text in HELP.items() if option != PRICE or not _has_price(config)}


def take_plan(words: list[str], config: type[Config]) -> PlanOptions | None:
    """Removes ``--plan`` and what belongs to it from the words; None where it is not given.

    The price stays where it is one of the command's settings, and the plan has the cost then.
    """
    price = None if _has_price(config) else take_option(words, "--price-per-hour", wants="a price")
    place = next((at for at, word in enumerate(words) if word.partition("=")[0] == "--plan"), None)
    if place is None:
        if price is not None:
            raise UserError("--price-per-hour belongs to --plan: give both")
        return None
    value = words.pop(place).partition("=")[2]
    if not value and place < len(words) and words[place] == "json":
        value = words.pop(place)
    if value not in ("", "json", "table"):
        raise UserError(f"--plan: {value!r} is neither json nor table")
    return PlanOptions(value == "json", None if price is None else _price(price))


def shown(plan: Any, options: PlanOptions) -> str:
    """The plan as it is printed."""
    plan = plan.priced(options.price_per_hour)
    return json.dumps(plan.model_dump(), indent=1) if options.as_json else table(plan)


def table(plan: Any) -> str:
    """The plan as lines for people."""
    rows = [
        (name, f"{count:,}", f"{plan.done[name]:,} there already" if plan.done[name] else "")
        for name, count in plan.counts.items()
    ]
    rows += [
        ("network evaluations", f"{plan.network_evaluations:,}", ""),
        ("bytes in", bytes_text(plan.bytes_in), ""),
        ("bytes out", bytes_text(plan.bytes_out), ""),
        ("workers" if "steps" in plan.counts else "actors", f"{plan.workers:,}", ""),
        *_memory(plan.memory),
        *((name, duration(seconds), "") for name, seconds in plan.seconds.items()),
        *_speed(plan),
        ("time in all", duration(plan.total_seconds), ""),
    ]
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.2f}", ""))
    lines = [f"  {name:<20} {value:>14}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([f"plan of {plan.stage} to {plan.output} (nothing was written)", *lines, plan.basis])


def _memory(parts: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """Lines for the model's size, what a worker takes, of which parts, and the most that was measured."""
    if not parts:
        return
    yield "parameters", f"{parts['weights'] // 4:,}", ""
    counted = {name: size for name, size in parts.items() if name != "measured"}
    note = ", ".join(f"{name} {bytes_text(size)}" for name, size in counted.items() if size)
    yield "memory per worker", bytes_text(sum(counted.values())), note
    if "measured" in parts:
        yield "  measured", bytes_text(parts["measured"]), ""


def _speed(plan: Any) -> Iterator[tuple[str, str, str]]:
    """A line for the steps per second that the time of a training rests on."""
    seconds = plan.seconds.get("steps", plan.seconds.get("work", 0.0))
    left = plan.counts.get("steps", 0) - plan.done.get("steps", 0)
    if left and seconds:
        yield "steps per second", f"{left / seconds:,.3g}", ""


def _has_price(config: type[Config]) -> bool:
    return "price_per_hour" in config.model_fields


def _price(word: str) -> float:
    try:
        price = float(word)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UserError(f"--price-per-hour: {word!r} is no price")
    return price
