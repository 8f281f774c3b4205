"""What pages make of texts."""

from lorakit.pages import _coded


def test_words_between_backquotes_are_code_and_everything_is_escaped():
    assert _coded("`lorakit resume` <b>goes on</b> `<i>`") == (
        "<code>lorakit resume</code> &lt;b&gt;goes on&lt;/b&gt; <code>&lt;i&gt;</code>"
    )
