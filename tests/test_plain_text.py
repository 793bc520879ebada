"""Text of others stays text: in logs, on the terminal, in spreadsheets and in Markdown."""

import csv
import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystals import rocksalt
from flowllm.commands.export import export
from flowllm.commands.inspect import cif_of, describe
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, write_table
from flowllm.plain_text import markdown_text, printable, redacted, spreadsheet_text
from flowllm.report.table import Column, Table, to_csv, to_markdown
from flowllm.runtime.log import log, setup_logging

ADDRESSES = (
    "https://host/a/b.csv?token=SECRET",
    "https://host/a?x=1&X-Amz-Signature=SECRET&y=2",
    "https://user:SECRET@host/a",
    "HTTPS://SECRET@host:80/a#x",
    "https://host?SECRET",
    "https://host/a#access_token=SECRET",
    "'/a/b?sig=SECRET'",
    '("http://localhost:8000/x?key=SECRET")',
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_secret_of_an_address_stays(address):
    text = redacted(f"before {address}, after")
    assert "SECRET" not in text
    assert text.startswith("before ")
    assert text.endswith("after")


@pytest.mark.parametrize(
    "text", ["https://host/a@b/c.csv: not there", "a?b", "is it? x = 1", "e@mail", "x://y"]
)
def test_other_text_is_not_changed(text):
    assert redacted(text) == text


def test_logs_hide_secrets_and_write_out_orders_to_the_terminal(tmp_path, capsys):
    setup_logging(tmp_path / "log")
    try:
        raise ValueError(f"{ADDRESSES[0]} \x1b[2J \x9b1m \u202e")
    except ValueError:
        log.exception("row %s\r, second\nline", "\x1b]0;title\x07")
    for handler in list(log.handlers):
        handler.flush()
    for said in (capsys.readouterr().err, (tmp_path / "log").read_text()):
        assert "SECRET" not in said
        assert not set("\x1b\x9b\x07\r\u202e") & set(said)
        assert "\\x1b[2J" in said
        assert "second\nline" in said
    log.handlers.clear()
    logging.getLogger("flowllm").setLevel(logging.NOTSET)


@given(st.text())
def test_printable_text_has_no_control_character_and_keeps_the_rest(text):
    shown = printable(text)
    assert not set("\x1b\x07\x9b\n\r\u202e\u2028") & set(shown)
    if text.isprintable():
        assert shown == text


EVIL = "\x1b[31m\x9b2J\u202eevil\x07"


def test_inspect_prints_no_escape_sequence(tmp_path):
    row = {"id": EVIL, **crystal_columns(rocksalt()), "formula": EVIL, "status": "ok"}
    row |= {"text": EVIL, "rejections": [EVIL]}
    path = tmp_path / f"t{EVIL}.parquet"
    write_table(path, [row], schemas.BASE, {"stage": EVIL, "settings": {EVIL: EVIL}})
    text = "\n".join(describe(path, 3)) + cif_of(path, EVIL)
    assert "evil" in text
    assert not set("\x1b\x9b\x07\u202e") & set(text)


FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "=HYPERLINK(1)")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_text_in_every_csv_file_and_comes_back(tmp_path, text):
    write_table(
        tmp_path / "t.parquet",
        [{"id": text, **crystal_columns(rocksalt()), "status": "ok"}],
        schemas.BASE,
        {},
    )
    export([tmp_path / "t.parquet"], tmp_path / "out.csv", "csv")
    (row,) = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    table = Table("t", "T", "C", (Column("a", "A"), Column(text, "B")), [{"a": text, text: -1.5}])
    header, (first, second) = csv.reader(io.StringIO(to_csv(table), newline=""))
    for found in (row["material_id"], first, header[1]):
        assert found == f"'{text}"
        assert found[1:] == text
    assert float(second) == -1.5
    assert spreadsheet_text(-1) == -1


HTML = (
    "<script>alert(1)</script> <img src=x onerror=a()> [a](javascript:b) ![c](http://d) | `e` &lt;"
)


def test_markdown_holds_no_html_no_link_and_no_column_of_others():
    columns = (Column("a", "A"), Column("b", HTML))
    text = to_markdown(Table("t", HTML, HTML, columns, [{"a": HTML + "\n\nx", "b": "y"}]))
    assert "<" not in text.replace("&lt;", "")
    assert "](" not in text.replace("\\](", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert {line.replace("\\|", "").count("|") for line in rows} == {3}
    assert markdown_text("E_hull < 0.1 eV") == "E_hull &lt; 0.1 eV"
