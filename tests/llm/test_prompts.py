"""Prompts as text and tokens, with the tiny tokenizer and those of other families built here."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from crystals import caesium_chloride, perovskite, rocksalt
from flowllm.config.sections.llm import Prompts
from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal
from flowllm.errors import FlowllmError
from flowllm.io.tables import crystal_columns
from flowllm.llm.prompts import (
    UNCONDITIONAL,
    Conditions,
    PromptTokens,
    conditions_of,
    infill_text,
    prompt_formula,
    prompt_text,
    splits_digits,
)
from flowllm.llm.text import CoordinatesText, decode, encode
from tiny_llm import END, make_tokenizer

PROMPTS = Prompts(
    crystal_text="coordinates",
    introduction="A crystal.",
    formula="Formula {formula}.",
    elements="Of {elements}.",
    formation_energy_per_atom="Energy {formation_energy_per_atom}.",
    band_gap="Gap {band_gap}.",
    e_above_hull="Hull {e_above_hull}.",
    space_group_number="Group {space_group_number}.",
    instruction="Write it:",
    infill="What is {mask}?",
    mask="?",
    formula_style="cell",
    properties={},
)
REDUCED = PROMPTS.model_copy(update={"formula_style": "reduced"})
ATOMS = PROMPTS.model_copy(update={"formula_style": "atoms"})


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama-2's: a space before every text, <s> in front."""
    letters = sorted(set("▁\n" + "".join(chr(i) for i in range(33, 127))))
    words = ["<unk>", "<s>", "</s>", *letters]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_prompt_text_with_and_without_the_formula():
    assert prompt_text(PROMPTS, UNCONDITIONAL) == "A crystal.\nWrite it:\n"
    assert prompt_text(PROMPTS, Conditions("Na4Cl4")) == "A crystal. Formula Na4Cl4.\nWrite it:\n"


def test_a_brace_in_a_sentence_is_only_text():
    prompts = PROMPTS.model_copy(update={"formula": "{formula} {x}"})
    assert prompt_text(prompts, Conditions("NaCl")) == "A crystal. NaCl {x}\nWrite it:\n"


def test_formula_styles():
    numbers = np.array([11, 11, 17, 17], dtype=np.uint8)
    assert prompt_formula(PROMPTS, numbers) == "Na2Cl2"
    assert prompt_formula(REDUCED, numbers) == "NaCl"
    assert prompt_formula(ATOMS, numbers) == "Na Na Cl Cl"


def test_a_formula_atom_by_atom_has_the_order_of_the_text():
    crystal = perovskite()
    symbols = encode(crystal).split("\n")[2::2]
    assert prompt_formula(ATOMS, crystal.atomic_numbers).split(" ") == symbols
    row = crystal_columns(crystal)
    assert conditions_of(ATOMS, row).formula == " ".join(symbols)


def test_a_hidden_element_is_hidden_in_its_atoms_and_in_no_others_letters():
    # C is hidden, the C of Ca and Cl is not.
    coords = [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]
    crystal = Crystal.from_arrays([20, 6, 17, 6], coords, [4, 4, 4], [90, 90, 90])
    assert infill_text(PROMPTS, CoordinatesText().describe(crystal), 6) == (
        "A crystal. What is ??\n4.0 4.0 4.0\n90 90 90\nCa\n0.00 0.00 0.00\n?\n0.50 0.00 0.00\n"
        "Cl\n0.00 0.50 0.00\n?\n0.00 0.00 0.50\n"
    )


def test_an_infilling_text_answers_with_the_symbol_alone():
    tokens = PromptTokens(PROMPTS, make_tokenizer())
    salt = CoordinatesText().describe(rocksalt())
    example = tokens.infilling(salt, 17)
    asked = infill_text(PROMPTS, salt, 17)
    assert tokens.decode(example.tokens[: example.prompt_length]) == asked
    assert tokens.decode(example.tokens[example.prompt_length :]) == "Cl"
    assert example.tokens[-1] == tokens.end_token_id


def test_any_conditions_have_their_sentences_in_a_fixed_order():
    asked = Conditions(space_group_number=225, e_above_hull=0.0, band_gap=1.23456)
    expected = "A crystal. Gap 1.235. Hull 0.000. Group 225.\nWrite it:\n"
    assert prompt_text(PROMPTS, asked) == expected
    assert asked.given() == ("band_gap", "e_above_hull", "space_group_number")
    assert asked.only(["band_gap"]) == Conditions(band_gap=1.23456)
    assert Conditions(e_above_hull=-0.0001).words("e_above_hull") == "0.000"


def test_conditions_of_a_crystal_are_what_its_row_says():
    row = {"atomic_numbers": [17, 11, 17, 11], "band_gap": 5.0, "e_above_hull": None}
    expected = Conditions("Na2Cl2", ("Na", "Cl"), band_gap=5.0)
    assert conditions_of(PROMPTS, row) == expected


@pytest.mark.parametrize("conditions", [UNCONDITIONAL, Conditions("Na1Cl1", band_gap=1.0)])
def test_an_example_is_the_prompt_the_answer_and_the_end(conditions):
    tokenizer = make_tokenizer()
    tokens = PromptTokens(PROMPTS, tokenizer)
    text = encode(rocksalt())
    example = tokens.example(conditions, text)
    assert example.tokens[: example.prompt_length] == tokens.prompt(conditions)
    assert example.tokens[-1] == tokenizer.convert_tokens_to_ids(END) == tokens.end_token_id
    assert tokens.end_token_id not in example.tokens[:-1]
    assert tokenizer.decode(tokens.prompt(conditions)) == prompt_text(PROMPTS, conditions)
    assert tokens.decode(example.tokens[example.prompt_length :]) == text


def test_an_answer_of_a_sentencepiece_tokenizer_has_no_space_of_its_own():
    tokenizer = metaspace_tokenizer()
    tokens = PromptTokens(PROMPTS, tokenizer)
    text = encode(rocksalt())
    answer = tokens.answer(text)
    pieces = tokenizer.convert_ids_to_tokens(answer)
    assert pieces[:3] == ["4", ".", "0"]
    assert pieces[-1] == "</s>"
    # Prompt and answer are what the two make as one text.
    whole = tokenizer(prompt_text(PROMPTS, UNCONDITIONAL) + text)["input_ids"]
    assert [*tokens.prompt(UNCONDITIONAL), *answer[:-1]] == whole
    assert tokenizer.convert_ids_to_tokens(tokens.prompt(UNCONDITIONAL))[0] == "<s>"


def test_a_prompt_does_not_end_the_text():
    tokenizer = metaspace_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokens = PromptTokens(PROMPTS, tokenizer)
    assert tokens.end_token_id not in tokens.prompt(UNCONDITIONAL)
    assert tokens.answer("1.0").count(tokens.end_token_id) == 1


def test_the_bound_on_answers_holds_for_the_longest_texts():
    tokens = PromptTokens(PROMPTS, make_tokenizer())
    crystal = caesium_chloride(a=99.9)
    bound = tokens.most_answer_tokens([55, 17], 2)
    answer = tokens.answer(encode(crystal))
    assert len(answer) <= bound <= len(answer) + 8
    assert decode(tokens.decode(answer), max_atoms=2).num_atoms == 2


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(FlowllmError, match="no end token"):
        PromptTokens(PROMPTS, tokenizer)


def test_digit_splitting_is_recognized():
    assert splits_digits(make_tokenizer())
    assert splits_digits(metaspace_tokenizer())
    words = {"<unk>": 0, "1": 1, "2": 2, "12": 3, **{str(i): i + 10 for i in range(3, 10)}, "0": 30}
    merging = Tokenizer(models.BPE(vocab=words, merges=[("1", "2")], unk_token="<unk>"))
    assert not splits_digits(PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="<unk>"))


def test_answers_are_written_with_the_tokens_of_crystal_text():
    """Any crystal of any elements, and every single character of it."""
    tokens = PromptTokens(PROMPTS, make_tokenizer())
    allowed = set(tokens.answer_tokens())
    rng = np.random.default_rng(0)
    for start in range(1, MAX_ATOMIC_NUMBER + 1, 8):
        numbers = np.arange(start, min(start + 8, MAX_ATOMIC_NUMBER + 1))
        text = encode(
            Crystal.from_arrays(
                numbers, rng.random((len(numbers), 3)), rng.uniform(1, 99.9, 3), [60, 90, 120]
            )
        )
        assert set(tokens.answer(text)) <= allowed
        assert {token for character in text for token in tokens.answer(character)} <= allowed
    assert len(allowed) < 200
    assert not set(tokens.prompt(UNCONDITIONAL)) <= allowed
