"""Drafts in pieces: what is kept, with which random numbers, form and mask the rest is drawn."""

import pytest

from crystals import rocksalt
from flowllm.config.load import load_config
from flowllm.llm.engines.base import Draft, DraftRequest
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.redraws import MASKED_REDRAWS, MAX_RETURNS, Apart, Draw
from flowllm.llm.text import encode
from flowllm.seeds import derive
from llm_run import CONFIGS
from tiny_llm import make_tokenizer

PROMPTS = PromptTokens(load_config(CONFIGS).prompts, make_tokenizer())
SALT = encode(rocksalt())
KEPT = SALT[: SALT.rindex("\n") + 1]
NEAR, FAR = "0.01 0.00 0.00", "0.50 0.50 0.50"


def new_draw(max_redraws: int) -> Draw:
    def form(written: str) -> str:
        return f"after {written!r}"

    apart = Apart(0.5, max_redraws)
    return Draw(PROMPTS, apart, prompt=(1, 2), seed=7, form=form)


def piece(text: str, *, end: bool = True) -> Draft:
    tokens = PROMPTS.answer(text)
    return Draft(tokens if end else tokens[:-1], truncated=not end)


def test_the_first_piece_is_the_whole_text():
    request = new_draw(2).next_piece()
    assert (request.prompt, request.seed, request.kept) == ((1, 2), 7, ())
    assert (request.regex, request.masked) == ("after ''", "none")


def test_without_a_minimum_distance_the_request_is_the_plain_one():
    draw = Draw(PROMPTS, None, prompt=(1, 2), seed=7, form=None)
    assert draw.next_piece() == DraftRequest((1, 2), 7, None)
    assert not draw.finish(piece(KEPT + NEAR))
    assert PROMPTS.decode(draw.tokens) == KEPT + NEAR


def test_only_the_coordinates_that_are_too_near_are_drawn_again():
    draw = new_draw(2)
    draw.next_piece()
    assert draw.finish(piece(KEPT + NEAR + "\nCl\n0.5 0.5 0.5"))
    request = draw.next_piece()
    assert PROMPTS.decode(request.kept) == KEPT
    assert request.start == (1, 2, *request.kept)
    assert request.seed == derive(7, "redraw", 1)
    assert request.regex == f"after {KEPT!r}"
    assert not draw.finish(piece(FAR))
    assert PROMPTS.decode(draw.tokens) == SALT
    assert (draw.redraws, draw.masked, draw.rejection, draw.truncated) == (1, 0, None, False)


def test_a_piece_stops_at_the_line_break_after_the_atom():
    draw = new_draw(2)
    stops = draw.next_piece().stops
    tokens = PROMPTS.answer(KEPT + NEAR + "\nCl\n0.5 0.5 0.5")
    stopped = [stops([token]) for token in tokens]
    first = stopped.index(True)
    assert PROMPTS.decode(tokens[: first + 1]) == KEPT + NEAR + "\n"
    assert draw.finish(Draft(tokens[: first + 1], truncated=True))
    assert PROMPTS.decode(draw.next_piece().kept) == KEPT


@pytest.mark.parametrize("size", [2, 3, 7, 100])
def test_tokens_may_come_several_at_once(size):
    draw = new_draw(2)
    stops = draw.next_piece().stops
    tokens = PROMPTS.answer(KEPT + NEAR + "\nCl\n0.5 0.5 0.5")
    read = []
    for start in range(0, len(tokens), size):
        read += tokens[start : start + size]
        if stops(tokens[start : start + size]):
            break
    assert KEPT + NEAR + "\n" in PROMPTS.decode(read)
    assert KEPT + NEAR + "\n" not in PROMPTS.decode(read[:-size])
    assert draw.finish(Draft(tuple(read), truncated=True))
    assert PROMPTS.decode(draw.next_piece().kept) == KEPT


def test_after_its_redraws_an_atom_is_masked_and_then_the_one_before_is_drawn_again():
    draw = new_draw(2)
    scopes = []
    for _ in range(2 + MASKED_REDRAWS + 1):
        request = draw.next_piece()
        scopes.append(request.masked)
        assert draw.finish(piece(NEAR if request.kept else KEPT + NEAR))
    assert scopes == ["none"] * 3 + ["line"] * MASKED_REDRAWS
    assert draw.masked == MASKED_REDRAWS
    request = draw.next_piece()
    assert PROMPTS.decode(request.kept).split("\n") == [*SALT.split("\n")[:2], ""]
    assert request.masked == "none"
    assert not draw.finish(piece(SALT[len(PROMPTS.decode(request.kept)) :]))
    assert (PROMPTS.decode(draw.tokens), draw.rejection) == (SALT, None)


def test_a_draft_is_rejected_after_its_returns_which_reach_its_beginning():
    draw = new_draw(2)
    kept = []
    while True:
        kept.append(PROMPTS.decode(draw.next_piece().kept))
        if not draw.finish(piece((KEPT + NEAR)[len(kept[-1]) :])):
            break
    assert draw.rejection.reason == "close_atoms"
    assert "line 6" in draw.rejection.detail
    # The first return is to the first atom, the next ones, by two and more atoms, to the cell.
    assert [text.count("\n") for text in kept if text != KEPT] == [0, 2] + [0] * (MAX_RETURNS - 1)
    assert draw.redraws == len(kept) - 1


def test_without_redraws_all_of_the_text_is_masked():
    draw = new_draw(0)
    assert draw.next_piece().masked == "text"
    assert not draw.finish(piece(SALT))
    # At the second atom no value of the last coordinate is blocked, since x and y differ.
    assert draw.masked == 0


def test_each_atom_has_its_own_redraws():
    draw = new_draw(1)
    for text in (KEPT + NEAR, NEAR, FAR + "\nCl\n" + NEAR):
        draw.next_piece()
        assert draw.finish(piece(text))
    assert draw.redraws == 3
    assert PROMPTS.decode(draw.next_piece().kept) == SALT + "\nCl\n"


@pytest.mark.parametrize("text", ["", "hello", "\n\n" + SALT, SALT + "\n"])
def test_texts_of_another_form_end_like_others(text):
    draw = new_draw(2)
    draw.next_piece()
    assert not draw.finish(piece(text))
    assert draw.rejection is None


@pytest.mark.parametrize("apart", [None, Apart(0.5, 2)])
def test_the_group_of_a_symmetric_text_is_drawn_first_where_its_form_is_given(apart):
    settings = load_config(CONFIGS).prompts.model_copy(update={"crystal_text": "symmetric"})
    prompts = PromptTokens(settings, make_tokenizer())
    draw = Draw(prompts, apart, prompt=(1, 2), seed=7, form=lambda written: f"after {written!r}")
    assert draw.next_piece().regex == "after ''"
    assert draw.finish(Draft(prompts.answer("225\n"), truncated=False))
    request = draw.next_piece()
    assert (prompts.decode(request.kept), request.regex) == ("225\n", r"after '225\n'")
    assert request.seed == derive(7, "redraw", 1)
    rest = "5.6\nNa 4a\n0.00 0.00 0.00"
    assert not draw.finish(Draft(prompts.answer(rest), truncated=False))
    assert prompts.decode(draw.tokens) == f"225\n{rest}"
    assert draw.redraws == 0


def test_a_free_symmetric_text_is_drawn_as_a_whole():
    settings = load_config(CONFIGS).prompts.model_copy(update={"crystal_text": "symmetric"})
    prompts = PromptTokens(settings, make_tokenizer())
    draw = Draw(prompts, None, prompt=(1, 2), seed=7, form=None)
    draw.next_piece()
    assert not draw.finish(Draft(prompts.answer("225\n"), truncated=False))
