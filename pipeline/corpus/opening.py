"""Named sources -> corpus: what kind is each, is there anything in it at all, and which classes has it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.errors import InputError
from pipeline.base.store import Stores
from pipeline.corpus.classes import load_classes
from pipeline.corpus.joined import Part, join
from pipeline.corpus.recipe import SourceRecipe
from pipeline.corpus.sources import KINDS
from pipeline.corpus.sources.place import Place, look
from pipeline.corpus.sources.source import IMAGE_SUFFIXES, Source
from pipeline.records.corpus import Corpus

_CONTAINERS = ("parquet", "tar", "tgz", "tar.gz")
_IMAGES = tuple(sorted(IMAGE_SUFFIXES - {""}))


def open_corpus(
    sources: str | Sequence[SourceRecipe], stores: Stores | None = None, classes: str | None = None
) -> Corpus:
    """List the corpus of *sources*: one place, or several joined. *classes* is the path or URI of a class table.

    Raises InputError when a source is missing, holds no image, or cannot be told; see ``join`` for the rest.
    """
    recipes = [SourceRecipe(source=sources)] if isinstance(sources, str) else list(sources)
    if not recipes:
        raise InputError("no source was named", "name a folder, a file or an s3:// prefix")
    table = load_classes(classes, stores) if classes else ()
    several = len(recipes) > 1
    parts = [
        Part(_open(recipe, stores), recipe.name or (str(number) if several else ""), recipe.weight)
        for number, recipe in enumerate(recipes)
    ]
    return join(parts, table)


def _open(recipe: SourceRecipe, stores: Stores | None) -> Source:
    place = look(recipe.source, stores)
    if recipe.kind != "auto":
        named = next(kind for kind in KINDS if kind.name == recipe.kind)
        if not named.matches(place):
            raise InputError(f"nothing of the kind {recipe.kind!r} in {recipe.source}", "leave the kind out to look")
        return named.open(place)
    _refuse_mixtures(place)
    for kind in KINDS:
        if kind.matches(place):
            return kind.open(place)
    suffixes = ", ".join(sorted(suffix or "no suffix" for suffix in place.suffixes)[:20])
    raise InputError(
        f"no images in {recipe.source}" + (f" (only: {suffixes})" if suffixes else " (it is empty)"),
        f"expected tars, parquet files, a manifest, or images ({', '.join(_IMAGES)})",
    )


def _refuse_mixtures(place: Place) -> None:
    """Refuse to guess where a guess would leave images out: what is more than a few pictures beside a data set."""
    num_images, num_containers = place.count(*_IMAGES), place.count(*_CONTAINERS)
    num_tars = num_containers - place.count("parquet")
    is_own = num_tars and place.store.head("dataset.json") is not None  # vitpipe's tars, and the indexes beside them
    if num_containers and num_images > num_containers:
        told = f"{num_images} images beside {num_containers} tars or parquet files"
    elif num_tars and place.count("parquet") and not is_own:
        told = "tars beside parquet files"
    else:
        return
    raise InputError(f"{place.uri} holds {told}", "say which are meant: kind folder, webdataset or parquet")
