"""What the shipped texts promise: their form, and that SmolLM2 knows each fact and copies the name."""

import json
from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assay.activations.material import Fact, Passage, facts, facts_of, passage, subjects
from assay.errors import BadInput
from assay.models.model import Model

SCALE = 3.0  # of the noise, in standard deviations of the subjects' embeddings: the trace's default
SAMPLES = 5


def test_facts_are_many_and_of_many_kinds() -> None:
    relations = Counter(fact.relation for fact in facts())
    assert len(facts()) >= 110
    assert len(relations) >= 10
    assert min(relations.values()) >= 5  # too few of a kind would say nothing about the kind


def test_facts_of_the_user_are_read_from_json() -> None:
    rows = [{"subject": "France", "prompt": "The capital of France is", "answer": " Paris"}]
    assert facts_of(json.dumps(rows)) == (Fact("France", "", "The capital of France is", " Paris"),)
    kept = [{"relation": fact.relation, **vars(fact)} for fact in facts()]
    assert facts_of(json.dumps(kept)) == facts()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("facts.json", "not JSON.*given as @FILE"),
        ("{}", "not a list of objects"),
        ('[{"subject": "France", "prompt": "Its capital is"}]', "not a list of objects"),
        ('[{"subject": "France", "prompt": "Its capital is", "answer": 3}]', "each of whose values is text"),
    ],
)
def test_what_are_no_facts_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        facts_of(text)


def test_no_fact_is_there_twice() -> None:
    assert len({fact.prompt for fact in facts()}) == len(facts())
    assert len({(fact.subject, fact.relation) for fact in facts()}) == len(facts())


def test_every_fact_is_well_formed() -> None:
    malformed = [
        fact.prompt
        for fact in facts()
        if fact.prompt.count(fact.subject) != 1
        or fact.prompt.endswith((" ", fact.subject))  # other tokens stand between the subject and the answer
        or fact.answer != f" {fact.answer.strip()}"
        or fact.answer in f" {fact.prompt}"  # nothing to copy
    ]
    assert not malformed


def test_subjects_hold_the_facts_and_many_other_names() -> None:
    assert {fact.subject for fact in facts()} < set(subjects())
    assert len(set(subjects())) == len(subjects())
    assert len(subjects()) >= 250
    assert all(subject == subject.strip() != "" for subject in subjects())


def test_the_name_recurs_late_and_the_prompt_stops_inside_it() -> None:
    told = passage()
    earlier = told.text.index(told.name)
    last = told.text.rindex(told.name)
    assert len(told.text) / 2 < earlier < last
    assert told.text.startswith(told.prompt + told.answer)
    assert last < len(told.prompt) < last + len(told.name)
    assert told.name not in told.replacements
    assert len(set(told.replacements)) == len(told.replacements) >= 3


@pytest.mark.smollm2
def test_subjects_of_the_facts_vary_in_length_and_end_where_a_token_ends(smollm2: Model) -> None:
    lengths = [len(_span(_tokenizer(smollm2), fact)) for fact in facts()]
    assert set(lengths) >= {1, 2, 3, 4, 5}
    assert sum(length >= 2 for length in lengths) >= 100  # only these have a first and a last token


@pytest.mark.smollm2
def test_smollm2_knows_every_fact(smollm2: Model) -> None:
    texts = [smollm2.tokens(fact.prompt + fact.answer) for fact in facts()]
    answers = [text[len(smollm2.tokens(fact.prompt)) :] for text, fact in zip(texts, facts(), strict=True)]
    width = max(map(len, texts))
    padding = torch.tensor([[width - len(text)] for text in texts])
    positions = torch.arange(width) - padding  # negative in the padding, which is on the left
    with torch.inference_mode():
        logits = smollm2.module(
            torch.tensor([(0,) * (width - len(text)) + text for text in texts]),
            attention_mask=(positions >= 0).long(),
            position_ids=positions.clamp(min=0),
            logits_to_keep=max(map(len, answers)) + 1,
        ).logits
    said = [
        tuple(row[-1 - len(answer) : -1])
        for row, answer in zip(logits.argmax(-1).tolist(), answers, strict=True)
    ]
    rows = zip(facts(), said, answers, strict=True)
    assert not [fact.prompt for fact, told, answer in rows if told != answer]


@pytest.mark.smollm2
def test_the_passage_is_short_and_its_names_have_as_many_tokens(smollm2: Model) -> None:
    told = passage()
    assert 30 <= len(smollm2.tokens(told.text)) <= 40
    name = smollm2.tokens(f" {told.name}")
    assert len(name) >= 2
    assert smollm2.tokens(told.prompt)[-1] == name[0]
    assert smollm2.tokens(told.prompt + told.answer)[-len(name) :] == name
    for replacement in told.replacements:
        swapped = smollm2.tokens(told.text.replace(told.name, replacement))
        assert len(swapped) == len(smollm2.tokens(told.text))
        assert len(smollm2.tokens(f" {replacement}")) == len(name)


@pytest.mark.smollm2
def test_smollm2_copies_the_name_and_only_copies_it(smollm2: Model) -> None:
    told = passage()
    clean = _embedded(smollm2, told.prompt + told.answer)
    replaced = [
        _embedded(smollm2, told.prompt.replace(told.name, other) + told.answer) for other in told.replacements
    ]
    assert _probability(smollm2, torch.stack([clean]), told).item() > 0.8
    assert _probability(smollm2, torch.stack(replaced), told).mean() < 0.2
    assert _probability(smollm2, _noised(smollm2, clean, told), told).mean() < 0.2


def _span(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> list[int]:
    """Positions of the subject's tokens; fails where a token runs over the subject's end."""
    start = fact.prompt.index(fact.subject)
    end = start + len(fact.subject)
    offsets = tokenizer(fact.prompt, return_offsets_mapping=True)["offset_mapping"]
    span = [i for i, (begin, stop) in enumerate(offsets) if begin < end and stop > start]
    assert offsets[span[0]][0] in {start, start - 1}  # a token may bring the space before the subject
    assert offsets[span[-1]][1] == end
    return span


def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    assert model.tokenizer is not None
    return model.tokenizer


def _embedding(model: Model) -> Tensor:
    return model.module.get_input_embeddings().weight.detach()


def _embedded(model: Model, text: str) -> Tensor:
    return _embedding(model)[list(model.tokens(text))]


def _noised(model: Model, clean: Tensor, told: Passage) -> Tensor:
    """Copies of the clean embeddings with noise on the name where it stands first."""
    first = len(model.tokens(told.text[: told.text.index(told.name)].rstrip()))
    name = slice(first, first + len(model.tokens(f" {told.name}")))
    sigma = torch.cat([_embedded(model, subject) for subject in subjects()]).std()
    noise = torch.randn((SAMPLES, *clean[name].shape), generator=torch.Generator().manual_seed(0))
    noised = clean.repeat(SAMPLES, 1, 1)
    noised[:, name] += SCALE * sigma * noise
    return noised


def _probability(model: Model, embedded: Tensor, told: Passage) -> Tensor:
    """Of the whole answer, at the end of each row."""
    answer = torch.tensor(model.tokens(told.prompt + told.answer)[len(model.tokens(told.prompt)) :])
    with torch.inference_mode():
        logits = model.module(inputs_embeds=embedded, logits_to_keep=len(answer) + 1).logits[:, :-1]
    return logits.softmax(-1)[:, torch.arange(len(answer)), answer].prod(-1)
