"""Opening a run's data: every source, the tokenizer, the validation sets, and the loader over them.

Here the config's words become objects, once, and here the log hears what there is. Nothing is
trained but a tokenizer, and nothing is written but the cache.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.config import DataConfig, Order, Packing, SourceConfig, SourceKind, naming
from data.documents import HeldOut, Source, TokenizedText, TokenSource, checked
from data.fingerprint import stages_words
from data.loader import Loader
from data.mixture import Feed
from data.order import is_held_out
from data.prepared import PreparedSource
from data.quarantine import Quarantine
from data.share import Share
from data.shelf import Shelf
from data.sources import open_source
from data.streams import packing_in_words
from data.tokenizer import Tokenizer, TokenizerConfig, check_size, open_tokenizer

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where one source's documents are: text, or shards of tokens."""

    name: str
    """In data.sources; empty where there is only one source."""
    config: SourceConfig
    text: Source | None
    shelf: Shelf | None

    def describe(self) -> str:
        """One line for the log."""
        return (self.text or self.shelf).describe()


def open_data(data: DataConfig, tokenizer: TokenizerConfig, *, seed: int, share: Share) -> Loader:
    """The loader of one rank, and in the log what it is over.

    ValueError with one sentence for what is missing or does not fit; RuntimeError where a network
    does not answer.
    """
    places = open_places(data)
    for place in places:
        log.info("data: %s", " ".join(filter(None, [place.name, place.describe()])))
    if data.sources:
        log.info("mixture: %s", stages_words(data.proportions()))
    return open_loader(
        data, places, choose_tokenizer(data, tokenizer, places), seed=seed, share=share
    )


def open_loader(
    data: DataConfig, places: list[Place], tokenizer: Tokenizer, *, seed: int, share: Share
) -> Loader:
    """The loader over opened places."""
    quarantine = Quarantine()
    feeds = [open_feed(data, place, tokenizer, quarantine) for place in places]
    validation: dict[str, HeldOut] = {}
    for place, feed in zip(places, feeds, strict=True):
        if place.config.validation_split or data.validation_fraction:
            with naming(feed.name):
                validation[feed.name or "held_out"] = feed.source.held_out(data.validation_bytes)
    opened = list(places)
    for one in data.validation_sets:
        with naming(one.name):
            place = open_place(data, one.name, one, trains=False)
            check_tokenizer(place, tokenizer)
            opened.append(place)
            source = token_source(data, place, tokenizer, quarantine, 0.0)
            validation[one.name] = source.held_out(data.validation_bytes)
    for name, held_out in validation.items():
        _say_validation(name, held_out, tokenizer)
    if data.packing is Packing.best_fit:
        for place in places:
            words = _packing(data, place, tokenizer, seed, share)
            log.info("%s", " ".join(filter(None, [place.name, words])))
    return Loader(
        data,
        feeds,
        tokenizer,
        validation,
        seed=seed,
        share=share,
        quarantine=quarantine,
        closing=[place.shelf.cache.close for place in opened if place.shelf is not None],
    )


def _packing(data: DataConfig, place: Place, tokenizer: Tokenizer, seed: int, share: Share) -> str:
    """What best_fit costs and gains, for the log; it decides nothing and leaves nothing open."""
    fraction = data.held_out_fraction(place.config)
    source = token_source(data, place, tokenizer, Quarantine(), fraction)
    try:
        return packing_in_words(source, share.rank, data.streams, seed, share.sequence_length)
    finally:
        if place.shelf is not None:
            source.close()
            place.shelf.cache.close()


def _say_validation(name: str, held_out: HeldOut, tokenizer: Tokenizer) -> None:
    """In the log: what a set has, what a token stands for, and whether the tokenizer loses text."""
    tokens = sum(len(ids) - 2 for ids in held_out.ids)
    log.info(
        "%s: %d documents, %d bytes, %.2f bytes per token with %d pieces",
        name.replace("held_out", "held out"),
        len(held_out.ids),
        held_out.bytes,
        held_out.bytes / max(tokens, 1),
        tokenizer.vocab_size,
    )
    pairs = zip(held_out.ids, held_out.texts, strict=True)
    lost = sum(tokenizer.decode(ids[1:-1].tolist()) != text for ids, text in pairs)
    if lost:
        log.warning(
            "the tokenizer does not give every text back: %d of the %d documents of %s decode to "
            "other text",
            lost,
            len(held_out.texts),
            name,
        )


def open_places(data: DataConfig) -> list[Place]:
    """Every source, in the order of the config."""
    named = [(source.name, source) for source in data.sources] or [("", data)]
    return [open_place(data, name, source) for name, source in named]


def open_place(data: DataConfig, name: str, config: SourceConfig, trains: bool = True) -> Place:
    """Find what one source's config names; `trains`: every stream must get some of it."""
    with naming(name):
        if config.kind is SourceKind.prepared:
            return Place(name, config, None, Shelf(data, config.path or ""))
        text = open_source(data, config)
        if trains:
            text.check_streams(data.streams)
        return Place(name, config, text, None)


def open_text(data: DataConfig, tokenizer: TokenizerConfig) -> tuple[Source, Tokenizer]:
    """One source of text, and the tokenizer that a run on it would have."""
    if data.sources:
        raise ValueError(
            f"data.sources names {len(data.sources)} sources: prepare each by itself, and mix the "
            "shards (kind: prepared)"
        )
    place = open_place(data, "", data)
    if place.text is None:
        raise ValueError(f"data.kind={data.kind.name}: shards have no text; give what they are of")
    log.info("data: %s", place.describe())
    return place.text, choose_tokenizer(data, tokenizer, [place])


def token_source(
    data: DataConfig, place: Place, tokenizer: Tokenizer, quarantine: Quarantine, fraction: float
) -> TokenSource:
    """A place's documents as tokens, `fraction` of them held out."""
    if place.shelf is None:
        assert place.text is not None
        return TokenizedText(
            place.text, tokenizer, fraction=fraction, longest=data.longest_document
        )
    return PreparedSource(
        place.shelf.index,
        place.shelf.cache.open,
        place.shelf.cache.ahead,
        name=place.name,
        fraction=fraction,
        window=data.shuffle_window,
        order=data.order,
        on_bad_shard=data.on_bad_shard,
        quarantine=quarantine,
        tokenizer=tokenizer,
        address=place.shelf.address,
    )


def open_feed(data: DataConfig, place: Place, tokenizer: Tokenizer, quarantine: Quarantine) -> Feed:
    """A source to train on, with what decides its documents and their order."""
    fraction = data.held_out_fraction(place.config)
    source = token_source(data, place, tokenizer, quarantine, fraction)
    parts = {"fraction": fraction, "order": Order.source.value}
    if place.shelf is None:
        windows = place.config.kind is SourceKind.dataset
        parts["longest_document"] = data.longest_document
    else:
        with naming(place.name):
            source.check_streams(data.streams)
        windows = not place.shelf.index.layout.by_document or data.order is Order.shards
        parts["order"] = data.order.value
        parts["longest_document"] = place.shelf.index.rules["longest_document"]
        place.shelf.warn_of_thrashing(data)
    parts |= {"source": source.fingerprint(), "window": data.shuffle_window if windows else None}
    return Feed(place.name, source, parts)


def choose_tokenizer(
    data: DataConfig, config: TokenizerConfig, places: list[Place], cache: Path | None = None
) -> Tokenizer:
    """The tokenizer of all sources: the given one, the one that shards bring, or one trained on the
    text and kept in `cache` (data.cache). ValueError where shards were made with another one."""
    cache = cache or Path(data.cache).expanduser()
    shelves = [place for place in places if place.shelf is not None]
    if shelves and config.path is None:
        opened = check_size(shelves[0].shelf.tokenizer(cache), config, shelves[0].config.path)
    else:
        texts = [(place, data.held_out_fraction(place.config)) for place in places if place.text]
        opened = open_tokenizer(
            config,
            lambda: _training_texts(data, texts, config.train_bytes),
            cache,
            _tokenizer_key(data, config, texts),
        )
    if opened.bos_id == opened.eos_id:
        log.info("the tokenizer has no token of its own for the beginning: <eos> begins documents")
    for place in shelves:
        check_tokenizer(place, opened)
    return opened


def check_tokenizer(place: Place, tokenizer: Tokenizer) -> None:
    """ValueError where a place has shards of another tokenizer's tokens."""
    if place.shelf is None or place.shelf.index.tokenizer_fingerprint == tokenizer.fingerprint:
        return
    raise ValueError(
        f"{place.shelf.address} was prepared with tokenizer "
        f"{place.shelf.index.tokenizer_fingerprint[:8]} and this run has "
        f"{tokenizer.fingerprint[:8]}: prepare it again with this one, or leave "
        "tokenizer.path null, which takes the one that shards bring"
    )


Texts = list[tuple[Place, float]]
"""Places of text, with the share of each that is held out."""


def _training_texts(data: DataConfig, texts: Texts, limit: int) -> Iterator[str]:
    """Training documents in one fixed order, whatever the run's seed: the tokenizer is shared.

    Of several sources each gives its share of `limit` UTF-8 bytes.
    """
    shares = data.proportions()[0][1] if data.sources else {"": 1.0}
    for place, fraction in texts:
        room = limit * shares.get(place.name, 0.0)
        for text in place.text.documents(0, 1, 0, 0):
            if room <= 0:
                break
            raw, reason = checked(text, data.longest_document)
            if not reason and not is_held_out(text, fraction):
                room -= len(raw)
                yield text


def _tokenizer_key(data: DataConfig, config: TokenizerConfig, texts: Texts) -> str:
    """What a trained tokenizer depends on, besides its size."""
    parts = [[place.text.fingerprint(), fraction] for place, fraction in texts]
    shares = [data.proportions()[0]] if data.sources else []
    key = [*(parts[0] if len(parts) == 1 else parts), config.train_bytes, *shares]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
