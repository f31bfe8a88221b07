import pytest

from spdexport.text import printable


@pytest.mark.parametrize("text", ["", "conv1", "schicht.äöü\n\t→", "日本語", "😀"])
def test_text_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize("code", [0x00, 0x07, 0x1B, 0x7F, 0x9B, 0xD800, 0xFFFE])
def test_what_commands_a_terminal_or_breaks_xml_is_replaced(code):
    assert printable(f"a{chr(code)}b") == "a\ufffdb"
