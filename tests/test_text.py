import json
import unicodedata
from xml.etree import ElementTree as ET

import pytest

from spdexport.text import json_text, one_line, printable

COMMANDING = [
    *range(0x09), 0x0B, 0x0C, 0x0D, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F,
    *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF, 0xFFFE, 0xFFFF,
]  # fmt: skip


@pytest.mark.parametrize("text", ["", "conv1", "schicht.äöü\n\t→", "日本語", "😀", "👩‍🔬", "a\u200bb", "C:\\x1b"])
def test_text_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize("code", COMMANDING)
def test_what_commands_a_terminal_or_breaks_xml_is_shown(code):
    shown = printable(f"a{chr(code)}b")
    assert shown == (f"a\\x{code:02x}b" if code < 0x100 else f"a\\u{code:04x}b")
    assert ET.fromstring(f"<x>{shown}</x>").text == shown
    assert printable(shown) == shown


def test_no_character_that_controls_or_turns_text_is_left():
    left = printable("".join(map(chr, range(0x110000))))
    assert {c for c in left if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} == {"\t", "\n"}
    turning = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
    assert not {c for c in left if unicodedata.bidirectional(c) in turning}


def test_line_breaks_of_windows_are_plain_ones():
    assert printable("a\r\nb\rc") == "a\nb\\x0dc"


def test_a_name_is_one_line():
    assert one_line("a\nb\tc\r\nd") == "a\\nb\\tc\\nd"


@pytest.mark.parametrize("code", COMMANDING)
def test_json_keeps_what_it_escapes(code):
    name = f"a{chr(code)}b"
    text = json_text(json.dumps({name: name}, ensure_ascii=False))
    assert text.isascii()
    assert json.loads(text) == {name: name}
