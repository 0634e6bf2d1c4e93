"""The page: everything collected -> one HTML text that needs nothing else. Autoescaped; its CSP forbids scripts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.base.units import format_bytes, format_seconds
from pipeline.records.evaluators import evaluator_title
from pipeline.report import pictures
from pipeline.report.collect import RunData, images_per_second, pretrain_seconds
from pipeline.report.curves import learning_rate_picture, loss_picture, scores_picture, throughput_picture
from pipeline.report.formatting import count, interval, is_oracle, is_share, metric_name, number, plural
from pipeline.report.pictures import Confusion, confusion_view
from pipeline.report.tables import SOURCE, ScoreRow, TaskTable, published_of
from pipeline.report.theme import Picture
from pipeline.report.verdicts import BaselineVerdict, CheckpointComparison

_OWN_HEAD = "classify"  # the evaluator that judges the network with its own head
_NOT_RECORDED = "not recorded"
_CHAIN = ("stage", "shard", "verify", "pretrain", "evaluate", "report")  # the order in which times are listed


@dataclass(frozen=True)
class Fact:
    """One line of the facts: a name and a value; *is_code*: the value is a digest or the like."""

    name: str
    value: str
    is_code: bool = False


@dataclass(frozen=True)
class Tile:
    """One big number of the opening, with a label above it and a note below."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Curves:
    """The training curves; None where nothing was logged."""

    loss: Picture | None
    learning_rate: Picture | None
    throughput: Picture | None


@dataclass(frozen=True)
class InspectPictures:
    """What inspect recorded, as pictures; None or empty where it did not."""

    filters: Picture | None
    positions: pictures.PositionPicture | None
    samples: list[pictures.SampleCard]
    num_samples: int
    confusion: Confusion | None


def render_page(
    collected: RunData,
    tables: tuple[TaskTable, ...],
    verdicts: tuple[BaselineVerdict, ...],
    comparisons: tuple[CheckpointComparison, ...],
    *,
    name: str,
    code_version: str,
) -> str:
    """The complete page of report *name*."""
    template = _environment().from_string(_resource("page.html.j2"))
    return template.render(
        css=Markup(_resource("page.css")),  # noqa: S704 - our own file, no user text in it
        name=name,
        collected=collected,
        headline=_headline(collected, tables),
        tiles=_tiles(collected, tables),
        facts=_facts(collected, code_version),
        recipe=yaml.safe_dump(collected.run.recipe, sort_keys=False, allow_unicode=True, width=100),
        steps=collected.shown_steps,
        removed={card.step for card in collected.retired},
        tables=[(table, scores_picture(table), published_of(table)) for table in tables],
        paper=SOURCE,
        verdicts=verdicts,
        comparisons=comparisons,
        curves=_curves(collected),
        inspected=_inspect_pictures(collected),
        num_seeds=len({score.seed for score in collected.scores}),
        num_test=sorted({(score.dataset, score.num_samples) for score in collected.scores}),
    )


def _headline(collected: RunData, tables: tuple[TaskTable, ...]) -> list[str]:
    """What was trained on what, with how many images, and what the model itself reaches on test images."""
    dataset, last = collected.dataset, collected.last_step
    images = plural(dataset.num_samples, "image") if dataset else "images"
    classes = f" in {plural(len(dataset.class_names), 'class')}" if dataset and dataset.class_names else ""
    steps = f" for {plural(last, 'step')}" if last else ""
    first = f"{_model(collected)} was trained on {images} of {collected.run.dataset_name}{classes}{steps}."
    if last is None:
        state = " is being trained " if collected.training.rows else " is to be trained "
        return [first.replace(" was trained ", state, 1), "There is no checkpoint of a trained model yet."]
    rows = _own_rows(tables)
    known = [row for row in rows if last in row.steps]
    if not known:
        return [first, f"How many test images it recognises by itself is not recorded for the last step, {last}."]
    if any(row.metric != "top1" for row in known):
        values = [f"{row.steps[last].text} {metric_name(row.metric)} on {row.task}" for row in known]
        return [first, f"By itself it reaches {' and '.join(values)}."]
    values = [f"{row.steps[last].text} of the test images of {row.task}" for row in known]
    return [first, f"By itself it recognises {' and '.join(values)}."]


def _tiles(collected: RunData, tables: tuple[TaskTable, ...]) -> list[Tile]:
    """The big numbers under the headline; each only when it is known."""
    shown: list[Tile] = []
    last, dataset, rate = collected.last_step, collected.dataset, images_per_second(collected)
    for row in _own_rows(tables):
        if last in row.steps:
            cell = row.steps[last]
            bounds = interval(row.metric, cell.low, cell.high)
            label = f"Test {metric_name(row.metric)}, own head"
            shown.append(Tile(label, number(row.metric, cell.value), f"{row.task} {bounds}"))
    if dataset:
        shown.append(Tile("Training images", count(dataset.num_samples), f"{count(dataset.num_rejected)} rejected"))
    if last:
        shown.append(Tile("Steps", count(last), _epochs(collected)))
    if rate is not None:
        shown.append(Tile("Images per second", f"{rate:,.0f}", "median of the logged steps"))
        shown.append(Tile("Pretraining", format_seconds(pretrain_seconds(collected)), _layout(collected)))
    return shown


def _facts(collected: RunData, code_version: str) -> list[tuple[str, list[Fact]]]:
    """The facts table: (heading, facts) for the run, its dataset and its time."""
    return [
        ("Run", _run_facts(collected, code_version)),
        ("Dataset", _dataset_facts(collected)),
        ("Time", _time_facts(collected)),
    ]


def _run_facts(collected: RunData, code_version: str) -> list[Fact]:
    run, training = collected.run, collected.training
    cards = collected.checkpoints
    steps = ", ".join(str(card.step) for card in cards) or "none"
    return [
        Fact("Name", run.name),
        Fact("Fingerprint", run.fingerprint, is_code=True),
        Fact("Trained by", run.code_version, is_code=True),
        Fact("Reported by", code_version, is_code=True),
        Fact("World size", str(cards[-1].world_size) if cards else _NOT_RECORDED),
        Fact("ZeRO stage", str(cards[-1].zero_stage) if cards else _NOT_RECORDED),
        Fact("Dtype", cards[-1].dtype if cards else _NOT_RECORDED),
        Fact("Global batch", plural(run.order.batch_size, "image")),
        Fact("Order", f"seed {run.order.seed}, {run.order.partitions} partitions, window {count(run.order.window)}"),
        Fact("Checkpoints", steps),
        Fact("Attempts", str(training.num_attempts)),
    ]


def _dataset_facts(collected: RunData) -> list[Fact]:
    card = collected.dataset
    known = [Fact("Name", collected.run.dataset_name), Fact("Digest", collected.run.dataset_digest, is_code=True)]
    if card is None:
        return [*known, Fact("Card", collected.dataset_note)]
    sizes = card.statistics
    return [
        *known,
        Fact("Found", count(card.num_input)),
        Fact("Written", count(card.num_samples)),
        Fact("Rejected", count(card.num_rejected)),
        Fact("Duplicates", count(card.num_duplicates)),
        Fact("Shards", count(card.num_shards)),
        Fact("Size", format_bytes(card.num_bytes)),
        Fact("Classes", count(len(card.class_names))),
        Fact("Formats", ", ".join(f"{name} {count(n)}" for name, n in sorted(sizes.formats.items())) or _NOT_RECORDED),
        Fact("Width", f"{_span(sizes.width_min, sizes.width_max)} pixels"),
        Fact("Height", f"{_span(sizes.height_min, sizes.height_max)} pixels"),
    ]


def _time_facts(collected: RunData) -> list[Fact]:
    rows, rate = collected.training.rows, images_per_second(collected)
    order = {stage: index for index, stage in enumerate(_CHAIN)}
    named = sorted(collected.seconds.items(), key=lambda entry: (order.get(entry[0], len(order)), entry[0]))
    stages = [Fact(stage.capitalize(), format_seconds(seconds)) for stage, seconds in named]
    waits = sorted(row.data_wait_share for row in rows)
    return [
        *(stages or [Fact("Stages", _NOT_RECORDED)]),
        Fact("Logged steps", count(len(rows))),
        Fact("Images/s", _NOT_RECORDED if rate is None else f"{rate:,.1f} (median)"),
        Fact("Waiting for data", f"{100 * waits[len(waits) // 2]:.1f} % (median)" if waits else _NOT_RECORDED),
    ]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _own_rows(tables: tuple[TaskTable, ...]) -> list[ScoreRow]:
    return [row for table in tables for row in table.rows if row.evaluator == _OWN_HEAD and row.is_headline]


def _model(collected: RunData) -> str:
    """The model's name where the recipe has one."""
    model = collected.run.recipe.get("model")
    named = model.get("name") if isinstance(model, dict) else model
    return f"A Vision Transformer ({named})" if isinstance(named, str) and named else "A Vision Transformer"


def _epochs(collected: RunData) -> str:
    last, dataset = collected.checkpoints[-1], collected.dataset
    seen = f"{count(last.position)} images seen"
    return f"{seen}, {last.position / dataset.num_samples:.1f} epochs" if dataset and dataset.num_samples else seen


def _layout(collected: RunData) -> str:
    if not collected.checkpoints:
        return ""
    last = collected.checkpoints[-1]
    return f"{plural(last.world_size, 'rank')}, ZeRO {last.zero_stage}, {last.dtype}"


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Any] = {
        "bytes": format_bytes,
        "seconds": format_seconds,
        "count": count,
        "plural": plural,
        "percent": lambda value: number("top1", value),
    }
    environment.filters.update(filters)
    environment.globals.update(
        number=number, interval=interval, is_share=is_share, is_oracle=is_oracle, evaluator_title=evaluator_title
    )
    return environment


def _resource(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _curves(collected: RunData) -> Curves:
    steps = [card.step for card in collected.checkpoints]
    training = collected.training
    return Curves(loss_picture(training, steps), learning_rate_picture(training), throughput_picture(training))


def _inspect_pictures(collected: RunData) -> InspectPictures:
    artefacts = collected.artefacts
    names = collected.dataset.class_names if collected.dataset else ()
    return InspectPictures(
        filters=None if artefacts.patch_filters is None else pictures.filters_picture(artefacts.patch_filters),
        positions=None
        if artefacts.position_similarity is None
        else pictures.position_picture(artefacts.position_similarity),
        samples=[] if artefacts.samples is None else pictures.sample_cards(artefacts.samples, names),
        num_samples=0 if artefacts.samples is None else len(artefacts.samples.images),
        confusion=None if artefacts.confusion is None else confusion_view(artefacts.confusion, names),
    )
