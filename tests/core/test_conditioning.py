"""What a model is told: guidance, and text that is encoded once or at every pass; nothing is accepted and ignored."""

import pytest

from lorakit.errors import ConfigError
from tests.core.fake import Fake, make_kit


class Teachable(Fake):
    trainable_text = ("text_encoder",)
    text_targets = ("q_proj",)


@pytest.fixture
def teachable():
    return make_kit(Teachable())


def test_a_frozen_encoder_is_cached_and_a_trained_one_is_not(teachable, asked):
    frozen = teachable.plan(asked).settings.text_encoder
    trained = teachable.plan({**asked, "text_encoder": {"train": True}}).settings.text_encoder
    assert (frozen.cache, frozen.learning_rate) == (True, None)
    assert (trained.cache, trained.learning_rate) == (False, 0.5e-4)


def test_a_trained_encoder_may_have_a_rate_of_its_own(teachable, asked):
    plan = teachable.plan({**asked, "text_encoder": {"train": True, "learning_rate": 1e-5}})
    assert plan.settings.text_encoder.learning_rate == 1e-5
    assert plan.choices["text_encoder.learning_rate"].because == "asked for by the user"


def test_a_trained_encoder_cannot_be_cached(teachable, asked):
    with pytest.raises(ConfigError, match=r"a trained text encoder cannot be cached.*as it was.*text_encoder\.cache"):
        teachable.plan({**asked, "text_encoder": {"train": True, "cache": True}})


def test_a_frozen_encoder_may_stay_uncached(kit, asked):
    assert kit.plan({**asked, "text_encoder": {"cache": False}}).settings.text_encoder.cache is False


def test_a_model_that_is_told_of_guidance_is_told_1_in_training(kit, asked):
    assert kit.plan({**asked, "variant": "large"}).settings.train.guidance == 1
    assert kit.plan({**asked, "variant": "large", "train": {"guidance": 3.5}}).settings.train.guidance == 3.5
    assert kit.plan(asked).settings.train.guidance is None


@pytest.mark.parametrize(
    ("settings", "name", "why"),
    [
        ({"train": {"guidance": 2}}, r"train\.guidance", "not told of guidance"),
        ({"text_encoder": {"learning_rate": 1e-5}}, r"text_encoder\.learning_rate", "is not trained"),
        ({"scheduler": {"name": "edm", "shift": 3}}, r"scheduler\.shift", "'edm' reads none"),
        ({"scheduler": {"min_snr_gamma": 5}}, r"scheduler\.min_snr_gamma", "'flowmatch' reads mean, std, shift"),
        ({"variant": "quick", "sampling": {"guidance": 3}}, r"sampling\.guidance", "draws without guidance"),
        ({"variant": "large", "sampling": {"negative": "ugly"}}, r"sampling\.negative", "not guided by a negative"),
    ],
)
def test_what_would_have_no_effect_is_refused(kit, asked, settings, name, why):
    with pytest.raises(ConfigError, match=rf"{name} would have no effect.*{why}.*Leave it out"):
        kit.plan({**asked, **settings})


def test_guidance_of_one_is_none(kit, asked):
    assert kit.plan({**asked, "variant": "quick", "sampling": {"guidance": 1}}).settings.sampling.guidance == 1
