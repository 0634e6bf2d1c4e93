"""The page: everything collected -> one HTML text that needs nothing else. Autoescaped; its CSP forbids scripts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.base.quantities import format_bytes, format_seconds
from pipeline.report import pictures
from pipeline.report.collect import Collected
from pipeline.report.confusion import Confusion, confusion_view
from pipeline.report.curves import learning_rate_picture, loss_picture, scores_picture, throughput_picture
from pipeline.report.facts import facts, headline, tiles
from pipeline.report.paper import SOURCE, published_of
from pipeline.report.progressed import Progressed
from pipeline.report.tables import TaskTable
from pipeline.report.theme import Picture
from pipeline.report.verdict import Verdict
from pipeline.report.words import EVALUATOR_NAMES, count, interval, is_oracle, is_share, number, plural


@dataclass(frozen=True)
class Curves:
    """The training curves; None where nothing was logged."""

    loss: Picture | None
    learning_rate: Picture | None
    throughput: Picture | None


@dataclass(frozen=True)
class Sights:
    """What inspect recorded, as pictures; None or empty where it did not."""

    filters: Picture | None
    positions: pictures.PositionPicture | None
    samples: list[pictures.SampleCard]
    num_samples: int
    confusion: Confusion | None


def render_page(
    collected: Collected,
    tables: tuple[TaskTable, ...],
    verdicts: tuple[Verdict, ...],
    progressed: tuple[Progressed, ...],
    *,
    name: str,
    code_version: str,
) -> str:
    """The whole page of report *name*."""
    template = _environment().from_string(_resource("page.html.j2"))
    return template.render(
        css=Markup(_resource("page.css")),  # noqa: S704 - our own file, no user text in it
        name=name,
        collected=collected,
        headline=headline(collected, tables),
        tiles=tiles(collected, tables),
        facts=facts(collected, code_version),
        recipe=yaml.safe_dump(collected.run.recipe, sort_keys=False, allow_unicode=True, width=100),
        steps=collected.shown_steps,
        removed={card.step for card in collected.retired},
        tables=[(table, scores_picture(table), published_of(table)) for table in tables],
        paper=SOURCE,
        verdicts=verdicts,
        progressed=progressed,
        curves=_curves(collected),
        sights=_sights(collected),
        num_seeds=len({score.seed for score in collected.scores}),
        num_test=sorted({(score.dataset, score.num_samples) for score in collected.scores}),
    )


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
        number=number, interval=interval, is_share=is_share, is_oracle=is_oracle, evaluator_names=EVALUATOR_NAMES
    )
    return environment


def _resource(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _curves(collected: Collected) -> Curves:
    steps = [card.step for card in collected.checkpoints]
    training = collected.training
    return Curves(loss_picture(training, steps), learning_rate_picture(training), throughput_picture(training))


def _sights(collected: Collected) -> Sights:
    found = collected.artefacts
    names = collected.dataset.class_names if collected.dataset else ()
    return Sights(
        filters=None if found.patch_filters is None else pictures.filters_picture(found.patch_filters),
        positions=None if found.position_similarity is None else pictures.position_picture(found.position_similarity),
        samples=[] if found.samples is None else pictures.sample_cards(found.samples, names),
        num_samples=0 if found.samples is None else len(found.samples.images),
        confusion=None if found.confusion is None else confusion_view(found.confusion, names),
    )
