"""Secrets never reach what is written or shown, and ordinary words stay."""

from __future__ import annotations

import pytest

from lorakit.cli.quiet import shown
from lorakit.errors import ModelError
from lorakit.events import RunStopped, Warned
from lorakit.secret import redacted

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_TOKEN", "custom-hub-secret"), ("WANDB_API_KEY", "0123456789abcdef" * 2), ("MY_PASSWORD", "correct horse")],
)
def test_what_the_environment_keeps_secret(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    for text in (
        Warned(message=f"got {value}!").to_json(),
        RunStopped(update=1, reason=value, folder="x").to_json(),
        str(ModelError("it cannot be fetched", why=f"401 for {value}")),
        shown(f"note {value}"),
    ):
        assert value not in text
        assert "(hidden)" in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"401 for {TOKEN}.", "401 for (hidden)."),
        ("https://maya:swordfish@hub.example/x", "https://(hidden)@hub.example/x"),
        ("https://hub.example/x?token=abcdefghijkl&a=1", "https://hub.example/x?token=(hidden)&a=1"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer (hidden)"),
    ],
)
def test_what_looks_like_a_secret(text, left):
    assert redacted(text) == left


@pytest.mark.parametrize(
    "text", ["a token=abcdefghijkl of love", "hf_hub is a package", "https://hub.example:8080/a@b", "key=value words"]
)
def test_ordinary_words_stay(monkeypatch, text):
    monkeypatch.setenv("HF_TOKEN_PATH", "/a")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "ordinary words")
    monkeypatch.setenv("TOKEN_LIMIT", "12345678")
    assert redacted(text + " ordinary words 12345678") == text + " ordinary words 12345678"


def test_a_caption_cannot_move_the_cursor():
    assert shown("a\x1b]0;evil\x07 \x9b2Jcat\n") == "a\ufffd]0;evil\ufffd \ufffd2Jcat\n"


def test_events_come_back_from_a_redacted_line(monkeypatch):
    from lorakit.events import Event

    assert Event.from_json(Warned(message=TOKEN, time=1).to_json()) == Warned(message="(hidden)", time=1)
