"""A family that knows facts and nothing else, for tests of the deciding half."""

from typing import ClassVar

from lorakit import Family, Kit, Part, Variant, hookimpl


class Fake(Family):
    name = "fake"
    title = "Fake"
    variants: ClassVar = {
        "small": Variant(
            source="nobody/fake",
            pipeline="FakePipeline",
            architecture="fake/lora",
            resolution=64,
            templates=("plain", "fancy"),
        ),
        "large": Variant(
            source="nobody/fake-large",
            pipeline="FakePipeline",
            architecture="fake/lora",
            resolution=128,
            guidance="embedded",
        ),
        "quick": Variant(source="nobody/quick", pipeline="FakePipeline", architecture="fake/lora", guidance="none"),
    }
    default_variant = "small"
    components = ("transformer", "vae")
    lora_targets = ("attn.to_q", "attn.to_k")
    side_multiple = 16
    base_model_version = "fake"

    def text_encoder(self, plan, source):
        raise NotImplementedError

    def image_coder(self, plan, source):
        raise NotImplementedError

    def denoiser(self, plan, source):
        raise NotImplementedError

    def toy(self, folder, variant):
        raise NotImplementedError


def part(name, **facts):
    return Part(name=name, summary=f"the {name}", load=f"nowhere:{name}", **facts)


class FakePlugin:
    """Brings the family, and a second scheduler and quantizer so that there is something to choose between."""

    def __init__(self, family=None) -> None:
        self.family = family or Fake()

    @hookimpl
    def register(self, registry):
        registry.family(self.family)
        registry.scheduler(part("edm", offers=("uniform",)))
        registry.quantizer(part("int3"))


def make_kit(family=None, **plugins):
    """A Kit with core, the fake family, the given plugins, and nothing that is installed."""
    return Kit(discover=False, plugins={"fake": FakePlugin(family), **plugins})


def speaker(hook, *answers, argument="request"):
    """A plugin that gives `answers` to one hook."""
    body = (lambda self, request: answers) if argument == "request" else (lambda self, plan: answers)
    return type("Speaker", (), {hook: hookimpl(body)})()
