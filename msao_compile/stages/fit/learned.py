"""What is learned of the samples: words that need the picture, how sure the edge may be, whether a draft is kept.

What the search and the choice of candidates read of the samples that are fitted on was said by regressions that had
not seen them (cross-fitting). Shape suffixes: N records, W words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msao_compile.manifest.mas import ProbeFit, ProbeName, Sure, WordWeights
from msao_compile.manifest.offload import Acceptance
from msao_compile.runtime.mas.measures import needed
from msao_compile.runtime.mas.sure import LEAST_AT, describe, sureness
from msao_compile.runtime.mas.words import LIMIT, prompt_score
from msao_compile.stages.fit.record import WEIGHTS, Record, WeightsBy
from msao_compile.stages.fit.regression import Floats, chances, folds, isotonic, logistic

RARE, MOST_WORDS = 8, 256
"""Samples that a word must be in to be weighed, and how many words are."""
TIMID = 0.3
"""Of a word's effect on how the least confidence counts: a prior that it has little, as a smaller feature."""
PARTS = 5
"""Of cross-fitting."""
NEVER = (8.0, 0.0, 0.0, 0.0)
"""Of a set without pictures: whatever comes is needed."""
LIKELY_USELESS = 0.5
"""Pictures that are needed less are left out now and then, so that answers without them are learned from."""


@dataclass(frozen=True)
class Guesses:
    """Chances, [N] each: the edge's answer is the cloud's, with the picture and without; the picture is needed, by each
    probe that can read it.
    """

    sure_N: Floats
    sure_text_N: Floats
    needed: Mapping[ProbeName, Floats]


@dataclass(frozen=True)
class Learned:
    """What goes to the manifest, and what it said of the samples fitted on before it saw them."""

    words: WordWeights
    sure: Sure
    probes: tuple[ProbeFit, ...]
    acceptance: Acceptance
    guesses: Guesses


def learn(records: Sequence[Record], seed: int, weights_by: WeightsBy = WEIGHTS) -> Learned:
    """Every regression, on the records of the samples that are fitted on."""
    vocabulary = _vocabulary(records)
    words_NW = _presence(records, vocabulary)
    shown_N = np.array([bool(record.pictures) for record in records])
    parts = folds(len(records), PARTS, seed)
    flips_N = flips(records)

    def needing(rest: np.ndarray) -> Floats:
        return _needing(words_NW[rest & shown_N], flips_N[rest & shown_N])

    phi_N = _cross(parts, lambda rest, held: _phi(words_NW[held], needing(rest)))
    probes = _probes(records, weights_by, (shown_N, phi_N, flips_N))
    chances_of = {probe.name: _needed(probe, records, phi_N) for probe in probes}
    useless_N = shown_N & (chances_of["words"] < LIKELY_USELESS)
    full_NF, text_NF = (_features(_described(records, full), words_NW) for full in (True, False))
    same_N, same_text_N = alike(records), alike(records, text=True)

    def fit(rest: np.ndarray) -> Floats:
        more = rest & useless_N
        return logistic(
            np.concatenate([full_NF[rest], text_NF[more]]), np.concatenate([same_N[rest], same_text_N[more]])
        )

    guesses = Guesses(
        _cross(parts, lambda rest, held: chances(full_NF[held], fit(rest))),
        _cross(parts, lambda rest, held: chances(text_NF[held], fit(rest))),
        chances_of,
    )
    all_N = np.ones(len(records), np.bool_)
    weights = needing(all_N)
    return Learned(
        WordWeights(tokens=vocabulary, weights=tuple(weights[1:].tolist())), _sure(vocabulary, fit(all_N)), probes,
        isotonic(*drafts(records)), guesses,
    )  # fmt: skip


def with_prior(learned: Learned, records: Sequence[Record], stands_N: np.ndarray) -> Learned:
    """As `learned`, with the chance by the words alone that the edge's answer stands, where `stands_N` says it did."""
    words_NW = _presence(records, learned.sure.words)
    weights = logistic(_with_constant(words_NW), stands_N.astype(np.float64), 1.0)
    prior = {"prior_base": float(weights[0]), "prior_of_word": tuple(weights[1:].tolist())}
    return replace(learned, sure=learned.sure.model_copy(update=prior))


def guess(learned: Learned, records: Sequence[Record]) -> Guesses:
    """What the runtime's own functions say of other records."""
    full, text = (
        np.array([sureness(learned.sure, record.words, *_answer(record, full)) for record in records])
        for full in (True, False)
    )
    return Guesses(full, text, {probe.name: needed_by(learned, probe.name, records) for probe in learned.probes})


def needed_by(learned: Learned, probe: ProbeName, records: Sequence[Record]) -> Floats:
    """[N]: the chance that pictures are needed as a probe reads it; 1 where there is none."""
    fitted = next(one for one in learned.probes if one.name == probe)
    weights = dict(zip(learned.words.tokens, learned.words.weights, strict=True))
    return _needed(fitted, records, [prompt_score(np.array(sorted(record.words)), weights) for record in records])


def _needed(probe: ProbeFit, records: Sequence[Record], phi_N: Sequence[float] | Floats) -> Floats:
    pairs = [(record, record.read.get(probe.name, (0.0, 0.0)), phi)
             for record, phi in zip(records, phi_N, strict=True)]  # fmt: skip
    return np.array([
        needed(probe.coefficients, similar, sparse, float(phi)) if record.pictures else 1.0
        for record, (similar, sparse), phi in pairs
    ])  # fmt: skip


def flips(records: Sequence[Record]) -> Floats:
    """[N]: whether the cloud answers otherwise without the picture."""
    return np.array([float(record.cloud_text.text != record.cloud.text) for record in records])


def alike(records: Sequence[Record], text: bool = False) -> Floats:
    """[N]: whether the edge says what the cloud says of the whole; with `text` where the edge saw no picture."""
    said = [record.edge_text if text else record.edge for record in records]
    return np.array([float(one.text == record.cloud.text) for one, record in zip(said, records, strict=True)])


def drafts(records: Sequence[Record]) -> tuple[Floats, Floats]:
    """Along the cloud's answers: how sure the drafter was of each token, and whether it would have been kept."""
    told = np.array([one for record in records for one in record.told])
    return told, np.array([float(one) for record in records for one in record.kept])


def _answer(record: Record, full: bool) -> tuple[Sequence[float], bool]:
    """How sure the edge was, and whether it saw a picture: what `describe` takes."""
    return (record.edge if full else record.edge_text).confidences, full and bool(record.pictures)


def _vocabulary(records: Sequence[Record]) -> tuple[int, ...]:
    """Tokens that tell prompts apart: in some of them, not in all."""
    counts = Counter(token for record in records for token in record.words)
    telling = [(count, token) for token, count in counts.items() if RARE <= count <= len(records) - RARE]
    return tuple(sorted(token for _, token in sorted(telling, reverse=True)[:MOST_WORDS]))


def _presence(records: Sequence[Record], vocabulary: Sequence[int]) -> Floats:
    found = np.zeros((len(records), len(vocabulary)))
    for place, record in enumerate(records):
        found[place] = [token in record.words for token in vocabulary]
    return found


def _with_constant(values_NF: Floats) -> Floats:
    return np.concatenate([np.ones((len(values_NF), 1)), values_NF], 1)


def _needing(words_NW: Floats, flips_N: Floats) -> Floats:
    """[1 + W]: a constant, and what each word says of whether the picture is needed."""
    if not len(flips_N):
        return np.zeros(words_NW.shape[1] + 1)
    return logistic(_with_constant(words_NW), flips_N, 1.0)


def _phi(words_NW: Floats, weights: Floats) -> Floats:
    return np.asarray((words_NW @ weights[1:]).clip(-LIMIT, LIMIT))


def _probes(
    records: Sequence[Record], weights_by: WeightsBy, known: tuple[np.ndarray, Floats, Floats]
) -> tuple[ProbeFit, ...]:
    """The probes that can read the records, dearest first, each with the coefficients of its chance."""
    found, (shown_N, phi_N, flips_N) = [], known
    for name, weights in weights_by.items():
        places = [place for place in np.flatnonzero(shown_N).tolist() if name == "words" or name in records[place].read]
        if not places and name != "words":
            continue
        coefficients = _coefficients(name, [records[place] for place in places], phi_N[places], flips_N[places])
        found.append(ProbeFit(name=name, weights=weights, coefficients=coefficients, ece=0.0))
    return tuple(found)


def _coefficients(
    name: ProbeName, records: Sequence[Record], phi_N: Floats, flips_N: Floats
) -> tuple[float, float, float, float]:
    """b_0 .. b_3: of similarity, of 1 - sparsity, of the words; those that a probe does not read are 0."""
    if not records:
        return NEVER
    read_N2 = np.array([record.read.get(name, (0.0, 1.0)) for record in records])
    columns = {1: read_N2[:, 0], 2: 1 - read_N2[:, 1], 3: phi_N}
    used = [place for place, column in columns.items() if np.ptp(column) > 0]
    found = np.zeros(4)
    found[[0, *used]] = logistic(_with_constant(np.stack([columns[place] for place in used], 1))
                                 if used else np.ones((len(records), 1)), flips_N, 0.1)  # fmt: skip
    first, second, third, fourth = found.tolist()
    return first, second, third, fourth


def _described(records: Sequence[Record], full: bool) -> Floats:
    return np.array([describe(*_answer(record, full)) for record in records])


def _features(described_N6: Floats, words_NW: Floats) -> Floats:
    return np.concatenate([described_N6, words_NW, TIMID * words_NW * described_N6[:, [LEAST_AT]]], 1)


def _sure(vocabulary: tuple[int, ...], weights: Floats) -> Sure:
    base, of_word, of_least = np.split(weights, [6, 6 + len(vocabulary)])
    return Sure(
        words=vocabulary, base=tuple(base.tolist()), of_word=tuple(of_word.tolist()),
        of_word_least=tuple((TIMID * of_least).tolist()), prior_base=0.0, prior_of_word=(0.0,) * len(vocabulary),
        ece=0.0, prior_ece=0.0,
    )  # fmt: skip


def _cross(parts: Sequence[np.ndarray], said: Callable[[np.ndarray, np.ndarray], Floats]) -> Floats:
    """[N]: of each part what a regression on the rest says."""
    count = sum(map(len, parts))
    found = np.zeros(count)
    for held in parts:
        rest = np.ones(count, np.bool_)
        rest[held] = False
        found[held] = said(rest, held)
    return found
