import pytest
from pydantic import ValidationError

from lorakit.planned import Planned
from lorakit.settings import Settings


def sections(model):
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }


def test_planned_settings_have_the_same_keys_as_written_ones():
    assert list(Planned.model_fields) == list(Settings.model_fields)
    planned = sections(Planned)
    for name, written in sections(Settings).items():
        assert list(planned[name].model_fields) == list(written.model_fields), name


def test_the_least_that_can_be_written():
    settings = Settings(family="fake")
    assert (settings.lora.rank, settings.data, settings.train.updates, settings.trigger) == (16, (), None, "")


@pytest.mark.parametrize("name", ["maya", "maya_char-1.5", "7"])
def test_names_that_are_safe_as_file_names(name):
    assert Settings(family="fake", name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "-x", "a b", "a\n", "x" * 101])
def test_names_that_are_not(name):
    with pytest.raises(ValidationError):
        Settings(family="fake", name=name)


@pytest.mark.parametrize("extension", ["../txt", "t.xt", "", "*"])
def test_a_caption_extension_is_only_an_extension(extension):
    with pytest.raises(ValidationError):
        Settings(family="fake", data=({"folder": "x", "captions": extension},))


@pytest.mark.parametrize(
    ("timesteps", "given"),
    [("logit-normal", {"mean": 0.5, "std": 2.0}), ("shift", {"shift": 3.0}), (None, {"shift": 3.0})],
)
def test_scheduler_settings_that_have_an_effect(timesteps, given):
    Settings(family="fake", scheduler={"timesteps": timesteps, **given})
